"""The verb `vocode`: lengths, seams, seeds, and bad input in one line; P11 and P12 of the property list."""

import argparse
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import fewstep
from fewstep.artifacts import ArtifactError
from fewstep.command import UsageError
from fewstep.grids import Uniform
from fewstep.paths import RectifiedFlow
from fewstep.prediction import V
from fewstep.solvers import DDIM
from fewstep_audio.commands_vocode import VOCODE
from fewstep_audio.files import Audio, AudioError, read_audio, write_audio
from fewstep_audio.mel_files import read_mel, write_mel
from fewstep_audio.mels import PRESETS
from fewstep_audio.vocode import Copy, from_mel
from fewstep_audio.vocoder.conditioned import ConditionedDenoiser
from fewstep_audio.vocoder.periodwave import PeriodWave
from fewstep_audio.vocoder.scaled import ScaledU
from fewstep_audio.vocoder.spaces import MDCTSpace, WaveSpace
from fewstep_audio.vocoder.specflow import SpecFlow
from fewstep_audio.vocoder.vocoder import Vocoder

MEL = PRESETS["digits_8k"]


def specflow() -> Vocoder:
    torch.manual_seed(0)
    space = MDCTSpace()
    denoiser = ConditionedDenoiser(SpecFlow(40, width=8, blocks=1), RectifiedFlow(), V())
    return Vocoder(denoiser, DDIM(), Uniform(), MEL, space, steps=2, mean=-2.0).eval()


def periodwave() -> Vocoder:
    torch.manual_seed(0)
    net = PeriodWave(40, 128, (1, 2, 3), hidden=16, blocks=(1, 1))
    denoiser = ConditionedDenoiser(net, RectifiedFlow(1e-4), ScaledU(0.25))
    return Vocoder(denoiser, DDIM(), Uniform(), MEL, WaveSpace(0.2, 2.8, 0.25), steps=1).eval()


def sound(n: int, channels: int = 1) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    level = 0.02 + 0.1 * torch.sin(torch.arange(n) / 700.0).square()
    return torch.randn(channels, n, generator=g) * level


def blocks(wave: torch.Tensor, size: int) -> list[torch.Tensor]:
    return list(wave.split(size, 1))


class Through(Vocoder):
    """Gives a wave that says where its frames lie: what remains to be tested is the cutting and joining around it."""

    def vocode(self, mel, steps=None, seed=0, first=0):
        frames = first + torch.arange(mel.shape[2] - (self.mel.framing == "centre"))
        return frames.repeat_interleave(self.mel.hop).expand(len(mel), -1).float()


def through() -> Through:
    voc = specflow()
    return Through(voc.denoiser, DDIM(), Uniform(), MEL, voc.space)


@pytest.mark.parametrize("windows", [0, 0.4, 1, 1.7, 3])
@pytest.mark.parametrize("off", [-1, 0, 1])
def test_a_copy_is_as_long_as_its_original_and_every_frame_lies_where_it_belongs(windows, off):
    window = 2 * 8000
    n = max(round(windows * window) + off, 1)
    copy = torch.cat(list(Copy(through(), 8000, window=2.0, overlap=0.5)(blocks(torch.zeros(2, n), 3333))), 1)
    assert copy.shape == (2, n)
    assert torch.allclose(copy, (torch.arange(n) // 128).float().expand(2, -1), atol=1e-3)


@pytest.mark.parametrize("frames", [1, 60, 624, 625, 626, 1500])
def test_a_mel_of_any_length_becomes_sound_frame_by_frame(frames):
    wave = torch.cat(list(from_mel(through(), torch.zeros(40, frames))), 1)
    assert wave.shape == (1, 128 * frames)
    assert torch.allclose(wave[0], (torch.arange(128 * frames) // 128).float(), atol=1e-3)


def test_a_long_copy_is_that_of_the_whole():
    voc, wave = specflow(), sound(8000 * 4)
    streamed = torch.cat(list(Copy(voc, 8000, seed=3, window=1.6, overlap=0.8)(blocks(wave, 5000))), 1)
    whole = voc.vocode(MEL(wave), seed=3)
    assert torch.allclose(streamed[:, :-600], whole[:, :-600], atol=1e-4)  # the end: padded to a whole unit or not
    assert float((whole - wave).abs().mean()) > 1e-3  # the network is no identity


def test_windows_of_periodwave_begin_where_the_columns_of_all_periods_do():
    voc = periodwave()
    assert voc.unit == 384  # lcm(64 * 6, 128)
    assert Copy(voc, 8000).unit == 384 and Copy(voc, 16000).unit == 768
    assert (
        Copy(voc, 11025).unit == 441 * 6
    )  # 441 samples are 320 of the vocoder's; 1920 is the first multiple of both 320 and 384
    starts, inside = [], Copy(voc, 8000, window=1.0, overlap=0.3)
    own = inside.window
    inside.window = lambda wave, start: (starts.append(start), own(wave, start))[1]
    copy = torch.cat(list(inside(blocks(sound(20_000), 4000))), 1)
    assert copy.shape == (1, 20_000) and copy.isfinite().all()
    assert len(starts) > 2 and all(s % 384 == 0 for s in starts)


def test_other_rates_are_resampled_for_the_vocoder_and_back():
    wave = sound(12_345, channels=3)
    copy = torch.cat(list(Copy(specflow(), 44_100)(blocks(wave, 5000))), 1)
    assert copy.shape == (3, 12_345)
    one = torch.cat(list(Copy(specflow(), 44_100)(blocks(wave[:1], 5000))), 1)
    assert torch.allclose(copy[:1], one, atol=1e-5)


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    VOCODE.arguments(parser)
    return VOCODE.run(parser.parse_args([str(w) for w in words]))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return fewstep.save(specflow(), tmp_path_factory.mktemp("models") / "voc")


def test_the_verb_copies_files_and_says_what_it_did(tmp_path, model, capsys):
    write_audio(tmp_path / "a.wav", Audio(0.5 * sound(5001, 2), 8000))
    assert run(tmp_path / "a.wav", tmp_path / "b.wav", "--model", model, "--json", "--plot", "--seed", "1") == 0
    said = json.loads(capsys.readouterr().out)
    copy = read_audio(tmp_path / "b.wav")
    assert copy.data.shape == (2, 5001) and copy.rate == 8000
    assert said["done"][0]["samples"] == 5001 and said["mel"]["fingerprint"] == MEL.fingerprint and said["steps"] == 2
    assert (tmp_path / "b.png").read_bytes()[:4] == b"\x89PNG"
    for seed, same in ((1, True), (2, False)):
        run(tmp_path / "a.wav", tmp_path / "c.wav", "--model", model, "--seed", seed)
        assert torch.equal(read_audio(tmp_path / "c.wav").data, copy.data) == same


def test_a_folder_of_sounds_and_mels(tmp_path, model, capsys):
    (tmp_path / "in").mkdir()
    write_audio(tmp_path / "in" / "a.flac", Audio(sound(3000), 16000))
    mel = MEL(sound(2560))
    np.save(tmp_path / "in" / "b.npy", mel[0].numpy())
    write_mel(tmp_path / "in" / "c.safetensors", mel[0], MEL)
    (tmp_path / "in" / "d.wav").write_bytes(b"RIFF")
    assert run(tmp_path / "in", tmp_path / "out", "--model", model) == 1
    errors = capsys.readouterr().err
    told = [line for line in errors.splitlines() if line.startswith("fewstep vocode:")]
    assert len(told) == 2 and "nothing above 4000 Hz is left" in told[0] and "a.flac" in told[0] and "d.wav" in told[1]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.flac", "b.wav", "c.wav"]
    assert read_audio(tmp_path / "out" / "a.flac").data.shape == (1, 3000)
    assert torch.equal(read_audio(tmp_path / "out" / "b.wav").data, read_audio(tmp_path / "out" / "c.wav").data)
    assert torch.allclose(read_audio(tmp_path / "out" / "b.wav").data, specflow().vocode(mel).clamp(-1, 1), atol=1e-4)


def test_mels_of_another_preset_are_refused_by_fingerprint(tmp_path, model):
    other = PRESETS["hifigan_22k"]
    write_mel(tmp_path / "m.safetensors", torch.zeros(80, 4), other)
    with pytest.raises(AudioError, match=rf"hifigan_22k \[{other.fingerprint}\].*digits_8k \[{MEL.fingerprint}\]"):
        read_mel(tmp_path / "m.safetensors", MEL)
    with pytest.raises(AudioError, match="hifigan_22k.*digits_8k"):
        np.save(tmp_path / "m.npy", np.zeros((40, 4), np.float32))
        run(tmp_path / "m.npy", tmp_path / "o.wav", "--model", model, "--preset", "hifigan_22k")
    assert not (tmp_path / "o.wav").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((80, 4), np.float32), r"shape \(80, 4\); allowed: \(40, frames\)"),
        (np.zeros((40, 0), np.float32), "shape"),
        (np.full((40, 3), np.nan, np.float32), "nan or inf"),
        (np.zeros((40, 3), np.int64), "int64; allowed: floats"),
    ],
)
def test_bad_mels_are_named(tmp_path, values, message):
    np.save(tmp_path / "m.npy", values)
    with pytest.raises(AudioError, match=message):
        read_mel(tmp_path / "m.npy", MEL)


def test_damaged_and_pickled_mels_are_refused(tmp_path):
    np.save(tmp_path / "p.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "t.safetensors").write_bytes(b"\x10\x00")
    save_file({"other": torch.zeros(1)}, tmp_path / "n.safetensors")
    for name, message in (
        ("p.npy", "not an .npy"),
        ("t.safetensors", "truncated"),
        ("n.safetensors", "named mel"),
        ("x.npy", "no such"),
    ):
        with pytest.raises(AudioError, match=message):
            read_mel(tmp_path / name, MEL)


def test_misuse_is_one_line_and_leaves_nothing(tmp_path, model):
    write_audio(tmp_path / "a.wav", Audio(sound(800), 8000))
    with pytest.raises(UsageError, match="written over"):
        run(tmp_path / "a.wav", tmp_path / "a.wav", "--model", model)
    with pytest.raises(UsageError, match="at least 1"):
        run(tmp_path / "a.wav", tmp_path / "b.wav", "--model", model, "--steps", "0")
    with pytest.raises(UsageError, match="does not exist"):
        run(tmp_path / "none.wav", tmp_path / "b.wav", "--model", model)
    with pytest.raises(UsageError, match="--preset is one of"):
        run(tmp_path / "a.wav", tmp_path / "b.wav", "--model", model, "--preset", "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AudioError, match="no sound and no mels"):
        run(tmp_path / "empty", tmp_path / "out", "--model", model)
    with pytest.raises(ArtifactError, match="needed: Vocoder"):
        run(tmp_path / "a.wav", tmp_path / "b.wav", "--model", fewstep.save(torch_module(), tmp_path / "mlp"))
    assert run(tmp_path / "a.wav", tmp_path / "b.xyz", "--model", model) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.wav", "empty", "mlp"]


def torch_module():
    from fewstep.nets import MLP

    return MLP(dim=2)
