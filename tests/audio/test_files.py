"""Audio files: round trips within quantisation, every kind of bad file gets one line, nothing half-written (P17, P20)."""

import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from fewstep_audio.files import Audio, AudioError, list_audio, read_audio, write_audio
from fewstep_audio.resample import resample
from fewstep_audio.streams import AudioWriter, audio_info, read_blocks


def chirp(samples, channels, rate=16000):
    t = torch.arange(samples) / rate
    return torch.stack([0.9 * torch.sin(2 * torch.pi * (200 + 300 * c + 800 * t) * t) for c in range(channels)])


@pytest.mark.parametrize("channels", [1, 2, 8])
@pytest.mark.parametrize(
    "suffix, depth, quantum",
    [("wav", 16, 2**-15), ("wav", 24, 2**-23), ("wav", "float", 0), ("flac", 16, 2**-15), ("flac", 24, 2**-23)],
)
def test_lossless_formats_return_what_was_written_within_quantisation(tmp_path, suffix, depth, quantum, channels):
    wave = chirp(1234, channels)
    write_audio(tmp_path / f"x.{suffix}", Audio(wave, 22050), depth)
    back = read_audio(tmp_path / f"x.{suffix}")
    assert back.rate == 22050 and back.data.shape == (channels, 1234)
    # libsndfile writes x (2^15 - 1) and reads / 2^15: one more quantum at full scale
    assert (back.data - wave).abs().max() <= 1.5 * quantum
    assert os.listdir(tmp_path) == [f"x.{suffix}"]


@pytest.mark.parametrize("suffix", ["ogg", "mp3"])
def test_lossy_formats_keep_rate_length_and_most_of_the_sound(tmp_path, suffix):
    wave = chirp(16000, 2)
    write_audio(tmp_path / f"x.{suffix}", Audio(wave, 16000))
    back = read_audio(tmp_path / f"x.{suffix}")
    assert back.rate == 16000 and len(back.data) == 2 and abs(back.data.shape[1] - 16000) <= 1152
    error = (back.data[:, 2000:12000] - wave[:, 2000:12000]).square().mean() / wave.square().mean()
    assert error < 0.02


@pytest.mark.parametrize("rate", [8000, 44100, 192000])
def test_pcm_files_of_others_are_read_at_full_scale(tmp_path, rate):
    soundfile.write(tmp_path / "x.wav", np.array([[-32768, 0], [16384, 32767]], dtype=np.int16), rate)
    audio = read_audio(tmp_path / "x.wav")
    assert audio.rate == rate
    assert torch.equal(audio.data, torch.tensor([[-1, 0.5], [0, 32767 / 32768]]))
    assert torch.equal(audio.mono(), torch.tensor([-0.5, (0.5 + 32767 / 32768) / 2]))


def test_clipping_is_told_with_its_share(tmp_path):
    with pytest.warns(UserWarning, match=r"x\.wav: 25\.00% .* clipped"):
        write_audio(tmp_path / "x.wav", Audio(torch.tensor([[0.5, 2.0, -0.5, 1.0]]), 8000), "float")
    assert torch.equal(read_audio(tmp_path / "x.wav").data, torch.tensor([[0.5, 1.0, -0.5, 1.0]]))


def test_what_soundfile_cannot_decode_is_read_by_pyav(tmp_path):
    av = pytest.importorskip("av")
    wave = chirp(16000, 2)
    with av.open(str(tmp_path / "x.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(wave.numpy(), format="fltp", layout="stereo")
        frame.rate, frame.pts = 16000, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    back = read_audio(tmp_path / "x.m4a")
    assert back.rate == 16000 and len(back.data) == 2 and abs(back.data.shape[1] - 16000) <= 3 * 1024
    error = (back.data[:, 2000:12000] - wave[:, 2000:12000]).square().mean() / wave.square().mean()
    assert error < 0.02
    assert audio_info(tmp_path / "x.m4a") == (16000, 2, back.data.shape[1])
    assert torch.equal(torch.cat(list(read_blocks(tmp_path / "x.m4a", 999)), 1), back.data)
    (tmp_path / "y.m4a").write_bytes((tmp_path / "x.m4a").read_bytes()[:2000])
    with pytest.raises(AudioError, match="y.m4a: cannot be read"):
        read_audio(tmp_path / "y.m4a")


def bad_files(folder):
    write_audio(folder / "good.wav", Audio(chirp(4000, 1), 8000))
    write_audio(folder / "good.flac", Audio(chirp(40000, 1), 8000))
    whole = (folder / "good.wav").read_bytes()
    (folder / "truncated.wav").write_bytes(whole[:3000])
    (folder / "truncated.flac").write_bytes((folder / "good.flac").read_bytes()[:9000])
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("these are words")
    soundfile.write(folder / "none.wav", np.zeros((0, 1), dtype=np.float32), 8000)
    soundfile.write(folder / "nan.wav", np.array([0.1, np.nan]), 8000, subtype="FLOAT")
    (folder / "folder.wav").mkdir()


@pytest.mark.parametrize(
    "name, words",
    [
        ("truncated.wav", "truncated, 3000 of 8044 bytes"),
        ("truncated.flac", "cannot be read|damaged"),
        ("empty.wav", "the file is empty"),
        ("text.wav", "cannot be read"),
        ("none.wav", "no samples"),
        ("nan.wav", "nan or inf"),
        ("folder.wav", "a folder"),
        ("missing.wav", "no such file"),
    ],
)
def test_bad_files_are_refused_in_one_line_that_names_them(tmp_path, name, words):
    bad_files(tmp_path)
    for read in (read_audio, lambda p: list(read_blocks(p, 1000))):
        with pytest.raises(AudioError, match=words) as error:
            read(tmp_path / name)
        assert name in str(error.value) and "allowed" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, wave, depth, words",
    [
        ("x.m4a", torch.zeros(1, 8), 16, "cannot write .m4a"),
        ("x", torch.zeros(1, 8), 16, "no extension"),
        ("x.flac", torch.zeros(1, 8), "float", "bit depth float; allowed for .flac: 16, 24"),
        ("x.mp3", torch.zeros(8, 8), 16, "8 channels at 8000 Hz"),
        ("x.wav", torch.zeros(1, 0), 16, "nothing to write"),
        ("x.wav", torch.tensor([[0.0, torch.inf]]), 16, "nan or inf"),
        ("there/x.wav", torch.zeros(1, 8), 16, "does not exist"),
    ],
)
def test_what_cannot_be_written_leaves_nothing_behind(tmp_path, name, wave, depth, words):
    with pytest.raises(AudioError, match=words):
        write_audio(tmp_path / name, Audio(wave, 8000), depth)
    assert os.listdir(tmp_path) == []


def test_a_file_in_blocks_is_the_file_and_a_failed_stream_keeps_the_old_one(tmp_path):
    wave = chirp(10001, 2)
    with AudioWriter(tmp_path / "x.flac", 16000, 2, 24) as writer:
        for block in wave.split(777, dim=1):
            writer.write(block)
    blocks = list(read_blocks(tmp_path / "x.flac", 1000))
    assert [b.shape[1] for b in blocks] == [1000] * 10 + [1]
    assert torch.equal(torch.cat(blocks, 1), read_audio(tmp_path / "x.flac").data)
    assert audio_info(tmp_path / "x.flac") == (16000, 2, 10001)

    before = (tmp_path / "x.flac").read_bytes()
    with pytest.raises(RuntimeError), AudioWriter(tmp_path / "x.flac", 16000, 2) as writer:
        writer.write(wave[:, :500])
        raise RuntimeError("the model broke")
    assert os.listdir(tmp_path) == ["x.flac"] and (tmp_path / "x.flac").read_bytes() == before


def test_a_wav_written_to_a_pipe_has_no_length_and_is_read_to_its_end(tmp_path):
    write_audio(tmp_path / "x.wav", Audio(chirp(4000, 1), 8000))
    data = bytearray((tmp_path / "x.wav").read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    (tmp_path / "pipe.wav").write_bytes(data)
    assert torch.equal(read_audio(tmp_path / "pipe.wav").data, read_audio(tmp_path / "x.wav").data)


def test_folders_list_audio_and_an_empty_one_is_an_error(tmp_path):
    with pytest.raises(AudioError, match="no audio in it; allowed"):
        list_audio(tmp_path)
    (tmp_path / "below").mkdir()
    for name in ("b.wav", "a.FLAC", ".hidden.wav", "notes.txt", "below/c.ogg"):
        (tmp_path / name).touch()
    assert [p.name for p in list_audio(tmp_path)] == ["a.FLAC", "b.wav"]
    assert [p.name for p in list_audio(tmp_path, recursive=True)] == ["a.FLAC", "b.wav", "c.ogg"]
    with pytest.raises(AudioError, match="no such folder"):
        list_audio(tmp_path / "absent")


@pytest.mark.parametrize("rate, to", [(8000, 16000), (44100, 16000), (22050, 24000), (192000, 8000)])
def test_a_tone_below_both_band_edges_is_the_same_tone_at_the_other_rate(rate, to):
    tone = lambda r, n: torch.sin(2 * torch.pi * 997.0 * torch.arange(n, dtype=torch.float64) / r)
    out = resample(tone(rate, rate), rate, to)
    assert out.shape == (to,)
    inside = slice(to // 5, -to // 5)
    assert (out - tone(to, to))[inside].abs().max() < 1e-4


def test_resampling_removes_what_the_lower_rate_cannot_hold():
    tone = torch.sin(2 * torch.pi * 5000 * torch.arange(16000, dtype=torch.float64) / 16000)
    assert resample(tone, 16000, 8000)[1000:-1000].abs().max() < 1e-4


def test_front_ends_import_nothing_heavy():
    heavy = {"torchcodec", "xformers", "bitsandbytes", "wandb", "pesq", "phonemizer", "lightning", "librosa"}
    modules = ", ".join(f"fewstep_audio.{m}" for m in ("files", "streams", "mels", "spectrogram", "resample"))
    code = f"import sys, {modules}; print(*{heavy!r} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == []
