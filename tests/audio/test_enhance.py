"""`fewstep enhance`: any rate, channels and length; parts fit together; refusals in one line, nothing half-written."""

import argparse
import json
from pathlib import Path

import pytest
import soundfile
import torch
from torch import nn

import fewstep
from fewstep.artifacts import describe
from fewstep.denoiser import Denoiser
from fewstep.generator import Generator
from fewstep.grids import ThenClean, Uniform
from fewstep.nets import MLP
from fewstep.paths import OUVE, SBVE, RectifiedFlow
from fewstep.precondition import AnchoredPrecondition
from fewstep.prediction import Residual, U
from fewstep.solvers import DDIM, EulerMaruyama, MeanAtEnd, PredictorCorrector
from fewstep_audio.commands_enhance import ENHANCE, MODES
from fewstep_audio.enhance import enhanced, main
from fewstep_audio.enhancement.enhancer import Enhancer
from fewstep_audio.enhancement.spectrogram_unet import SpectrogramUNet
from fewstep_audio.enhancement.storm import Storm
from fewstep_audio.files import Audio, read_audio, write_audio
from fewstep_audio.spectrogram import ComplexSpectrogram

FRONT = ComplexSpectrogram(n_fft=62, hop=16, factor=0.25)


SB = SBVE(c=0.2)


def model(path=SB, random=True):
    """A bridge is deterministic, OUVE draws noise; without random weights the bridge is the identity."""
    torch.manual_seed(0)
    net = SpectrogramUNet(width=8, mults=(1, 1), blocks=1)
    for p in net.parameters() if random else ():
        nn.init.normal_(p, std=0.05)
    if isinstance(path, SBVE):
        return Enhancer(Denoiser(net, path, Residual()), DDIM(), Uniform(), 1, FRONT, 8000).eval()
    solver, grid = MeanAtEnd(PredictorCorrector(EulerMaruyama(), 0.5)), ThenClean(Uniform(end=0.03))
    return Enhancer(Denoiser(net, path, AnchoredPrecondition(0.1)), solver, grid, 3, FRONT, 8000).eval()


OU = OUVE(sigma_min=0.035, sigma_max=0.35)


def noise(*shape, seed=0):
    return (0.2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).clamp(-1, 1)


def low(channels, n, rate):
    """Tones below 2 kHz, far below any model's band edge."""
    t = torch.arange(n, dtype=torch.float64) / rate
    tones = [[(440.0, 0.2), (1234.5, 0.1)], [(300.0, 0.25), (1800.0, 0.05)]]
    return torch.stack(
        [sum(a * (2 * torch.pi * f * t).sin() for f, a in tones[c % 2]) for c in range(channels)]
    ).float()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    where = tmp_path_factory.mktemp("models")
    return {
        "score": fewstep.save(model(OU), where / "score"),
        "identity": fewstep.save(model(random=False), where / "identity"),
    }


@pytest.fixture
def cwd(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def run(*args):
    """As the command line does, up to its handling of errors."""
    parser = argparse.ArgumentParser()
    ENHANCE.arguments(parser)
    return main(parser.parse_args([str(a) for a in args]))


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


# --- P12: lengths and joins ----------------------------------------------------------------------------------------

WINDOW = 800  # .1 s at 8 kHz


@torch.no_grad()
@pytest.mark.parametrize("n", [1, 2, *(k * WINDOW + d for k in (1, 2, 3) for d in (-1, 0, 1))])
def test_an_identity_stays_one_at_every_length(n):
    sound, level = noise(2, n), torch.tensor([[0.9], [1.0]])
    out = torch.cat([*enhanced(model(random=False), iter(sound.split(333, 1)), 8000, level, chunk=0.1)], 1)
    torch.testing.assert_close(out, sound, rtol=0, atol=2e-6)


@torch.no_grad()
def test_a_file_of_one_part_is_what_the_model_makes_of_it_and_blocks_do_not_matter():
    sound, level, own = noise(2, 700), torch.tensor([[0.8], [0.9]]), model(OU)
    whole = own(sound, seed=3, items=[0, 0], level=level)
    for block in (1000, 97):
        out = torch.cat([*enhanced(own, iter(sound.split(block, 1)), 8000, level, seed=3, chunk=0.1)], 1)
        torch.testing.assert_close(out, whole, rtol=0, atol=1e-6)


def test_parts_are_windows_of_bounded_size_at_the_level_of_the_whole():
    own, sizes = model(random=False), []
    own.register_forward_hook(
        lambda m, args, kwargs, out: sizes.append((args[0].shape[1], kwargs["level"])), with_kwargs=True
    )
    for _ in enhanced(own, iter(noise(1, 20 * WINDOW).split(500, 1)), 8000, torch.tensor([[0.7]]), chunk=0.1):
        pass
    assert max(n for n, _ in sizes) == WINDOW
    assert all(level.item() == pytest.approx(0.7) for _, level in sizes)
    assert len(sizes) == 1 + -(-19 * WINDOW // (WINDOW * 7 // 8))


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "channels", "name"), [(8000, 1, "a.wav"), (44100, 2, "a.flac"), (192000, 1, "a.wav"), (11025, 8, "a.wav")]
)
def test_any_rate_and_any_channels_come_back_as_they_were(saved, cwd, capfd, rate, channels, name):
    n = rate // 4 + 7
    write_audio(name, Audio(low(channels, n, rate), rate))
    assert run(name, f"out{name[1:]}", "--model", saved["identity"], "--chunk", "0.1", "--json") == 0
    out, err = capfd.readouterr()
    back, facts = read_audio(f"out{name[1:]}"), json.loads(out)
    assert (back.rate, back.data.shape) == (rate, (channels, n))
    # Away from the ends, which every resampling kernel sees as a jump.
    edge = rate // 40
    torch.testing.assert_close(back.data[:, edge:-edge], low(channels, n, rate)[:, edge:-edge], rtol=0, atol=2e-3)
    said = [line for line in err.splitlines() if "resampled" in line]
    assert len(said) == (rate != 8000)
    if rate > 8000:
        assert f"{rate} Hz" in said[0]
        assert "nothing above 4000 Hz" in said[0]
    (done,) = facts["done"]
    assert (done["rate"], done["channels"], done["samples"]) == (rate, channels, n)
    assert (facts["evaluations"], facts["steps"], facts["failed"]) == (1, 1, [])
    assert done["real_time_factor"] == pytest.approx(done["seconds"] / (n / rate))


def test_a_file_sounds_the_same_alone_and_in_a_folder_and_seeds_matter(saved, cwd):
    for i, n in enumerate((900, 3000, 1500)):
        (cwd / "in/deep").mkdir(parents=True, exist_ok=True)
        write_audio(cwd / ("in/deep/c.wav" if i == 2 else f"in/{'ab'[i]}.wav"), Audio(0.1 * noise(1, n, seed=i), 8000))
    (cwd / "in/notes.txt").write_text("not sound")
    more = ["--model", saved["score"], "--chunk", "0.2"]
    assert run("in", "out", *more, "--recursive", "--plot") == 0
    assert files(cwd / "out") == ["a.png", "a.wav", "b.png", "b.wav", "deep/c.png", "deep/c.wav"]
    assert (cwd / "out/a.png").read_bytes().startswith(b"\x89PNG")
    (cwd / "single").mkdir()
    assert run("in/b.wav", "single", *more) == 0
    assert (cwd / "single/b.wav").read_bytes() == (cwd / "out/b.wav").read_bytes()
    assert run("in/b.wav", "other.wav", *more, "--seed", "1") == 0
    assert (cwd / "other.wav").read_bytes() != (cwd / "out/b.wav").read_bytes()


def test_steps_replace_those_of_the_model(saved, cwd, capfd):
    write_audio("a.wav", Audio(noise(1, 500), 8000))
    assert run("a.wav", "b.wav", "--model", saved["score"], "--steps", "5", "--json") == 0
    assert json.loads(capfd.readouterr().out)["evaluations"] == 10


# --- refusals ------------------------------------------------------------------------------------------------------


def broken(kind, name):
    """A file that cannot be enhanced."""
    if kind == "empty":
        Path(name).write_bytes(b"")
    elif kind == "no samples":
        soundfile.write(name, torch.zeros(0).numpy(), 8000)
    elif kind == "nan":
        soundfile.write(name, torch.full((500,), torch.nan).numpy(), 8000, "FLOAT", format="WAV")
    elif kind == "truncated":
        write_audio(name, Audio(noise(1, 5000), 8000))
        Path(name).write_bytes(Path(name).read_bytes()[:5000])
    else:
        Path(name).write_text("not sound, but a text of some length " * 20)


@pytest.mark.parametrize(
    ("kind", "needle"),
    [
        ("empty", "is empty"),
        ("no samples", "no samples"),
        ("nan", "nan or inf"),
        ("truncated", "truncated"),
        ("text", "cannot be read"),
    ],
)
def test_a_bad_file_is_one_line_and_leaves_nothing(saved, cwd, capfd, kind, needle):
    (cwd / "in").mkdir()
    broken(kind, "in/bad.wav")
    write_audio("in/good.wav", Audio(noise(1, 500), 8000))
    assert run("in", "out", "--model", saved["identity"], "--json") == 1
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("fewstep enhance:")]
    assert len(lines) == 1
    assert "in/bad.wav" in lines[0]
    assert needle in lines[0]
    assert files(cwd / "out") == ["good.wav"]
    assert [f["input"] for f in json.loads(out)["failed"]] == ["in/bad.wav"]


def test_what_failed_alone_makes_no_folder(saved, cwd):
    broken("nan", "bad.wav")
    assert run("bad.wav", "new/out.wav", "--model", saved["identity"]) == 1
    write_audio("a.wav", Audio(noise(1, 500), 8000))
    assert run("a.wav", "new/out.txt", "--model", saved["identity"]) == 1
    assert files(cwd) == ["a.wav", "bad.wav"]
    assert not (cwd / "new").exists()


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["nosuch.wav", "out.wav"], "nosuch.wav does not exist"),
        (["a.wav", "a.wav"], "a.wav would be written over"),
        (["a.wav", "b.wav", "--steps", "0"], "--steps must be at least 1, not 0"),
        (["a.wav", "b.wav", "--seed", "-1"], "--seed must be at least 0, not -1"),
        (["a.wav", "b.wav", "--chunk", "0"], "--chunk must be at least 0.1 seconds, not 0.0"),
        (["empty", "out"], "no audio in it"),
        (["a.wav", "b.wav", "--model", "./nosuch"], "nosuch is neither a folder"),
        (["a.wav", "b.wav", "--model", "flow"], "flow holds a Generator; needed: Enhancer"),
    ],
)
def test_misuse_is_refused(saved, cwd, args, match):
    write_audio("a.wav", Audio(noise(1, 500), 8000))
    (cwd / "empty").mkdir()
    fewstep.save(Generator(Denoiser(MLP(2, 8, 2), RectifiedFlow(), U()), DDIM(), Uniform()), "flow")
    more = [] if "--model" in args else ["--model", saved["identity"]]
    with pytest.raises((fewstep.command.UsageError, ValueError), match=match) as error:
        run(*args, *more)
    assert "\n" not in str(error.value)
    assert not (cwd / "b.wav").exists()


def test_a_mode_without_its_model_names_the_recipe(cwd, monkeypatch):
    monkeypatch.setattr("fewstep_audio.enhance.WEIGHTS", cwd / "none")
    write_audio("a.wav", Audio(noise(1, 500), 8000))
    for mode, recipe in MODES.items():
        with pytest.raises(ValueError, match=f"--mode {mode}: train the recipe audio/{recipe}"):
            run("a.wav", "b.wav", "--mode", mode)


def test_a_mode_takes_the_model_of_its_recipe(saved, cwd, monkeypatch, capfd):
    monkeypatch.setattr("fewstep_audio.enhance.WEIGHTS", cwd)
    fewstep.save(model(random=False), MODES["predict"])
    write_audio("a.wav", Audio(noise(1, 500), 8000))
    assert run("a.wav", "b.wav", "--mode", "predict", "--json") == 0
    assert json.loads(capfd.readouterr().out)["model"] == "predict"
    torch.testing.assert_close(read_audio("b.wav").data, read_audio("a.wav").data, rtol=0, atol=1e-4)


def test_stages_with_mismatched_front_ends_are_one_line(cwd):
    """An artifact edited so that its stages do not fit."""
    own = Storm(
        model(),
        Denoiser(SpectrogramUNet(("noisy", "denoised"), 8, (1, 1)), OU, AnchoredPrecondition()),
        DDIM(),
        Uniform(),
        1,
        FRONT,
        8000,
    )
    folder = fewstep.save(own, cwd / "storm")
    config = json.loads((folder / "config.json").read_text())
    assert config["model"] == describe(own)
    config["model"]["init_args"]["predictor"]["init_args"]["spectrogram"]["init_args"]["hop"] = 31
    (folder / "config.json").write_text(json.dumps(config))
    write_audio("a.wav", Audio(noise(1, 500), 8000))
    with pytest.raises(ValueError, match=r"hop=31.* at 8000 Hz, the second stage .*hop=16") as error:
        run("a.wav", "b.wav", "--model", folder)
    assert "\n" not in str(error.value)
