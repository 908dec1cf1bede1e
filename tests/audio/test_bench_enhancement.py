"""The bench of enhancement: its test set, its systems, and that finished work is not made again."""

import json
from pathlib import Path

import pytest
import torch

import fewstep
from fewstep.denoiser import Denoiser
from fewstep.grids import Uniform
from fewstep.paths import SBVE
from fewstep.prediction import Residual
from fewstep.solvers import DDIM
from fewstep_audio.bench.enhancement import SAMPLES, SNRS, digits, main
from fewstep_audio.commands_enhance import MODES
from fewstep_audio.enhance import WEIGHTS
from fewstep_audio.enhancement.enhancer import Enhancer, pretrained_enhancer
from fewstep_audio.enhancement.spectrogram_unet import SpectrogramUNet
from fewstep_audio.files import Audio, write_audio
from fewstep_audio.metrics import si_sdr
from fewstep_audio.spectrogram import ComplexSpectrogram

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "speech" / "fsdd"


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="no spoken digits")
@pytest.mark.parametrize("mode", ["student", "bridge", "predict"])
def test_the_shipped_models_take_noise_out(mode):
    """25 held-out clips at 0 to 10 dB; over 200 they gain 8.5, 8.0 and 8.4 (+- .4) dB, 5 is asked for."""
    model, clips = pretrained_enhancer(str(WEIGHTS / MODES[mode])), digits(str(DATA), 5)
    clean, noisy = (torch.stack([c.sound[k] for c in clips]) for k in ("clean", "noisy"))
    with torch.no_grad():
        assert (si_sdr(model(noisy), clean) - si_sdr(noisy, clean)).mean() > 5
    assert model.evaluations() == {"student": 2}.get(mode, 1)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "recordings").mkdir()
    t = torch.arange(6000) / 8000
    for digit in range(3):
        for take in (0, 5):
            tone = 0.3 * (2 * torch.pi * (300 + 200 * digit) * t).sin() * (torch.pi * t * 3).sin() ** 2
            write_audio(tmp_path / f"recordings/{digit}_ann_{take}.wav", Audio(tone[None], 8000))
    return tmp_path


def test_the_test_set_has_its_snrs_and_does_not_depend_on_its_size(folder):
    clips = digits(str(folder / "recordings"), 2)
    assert [c.snr for c in clips] == [snr for snr in SNRS for _ in range(2)]
    for clip in clips:
        clean, noise = clip.sound["clean"].double(), (clip.sound["noisy"] - clip.sound["clean"]).double()
        assert clean.shape == (SAMPLES,)
        assert 10 * (clean.square().sum() / noise.square().sum()).log10().item() == pytest.approx(clip.snr, abs=1e-3)
    assert not torch.equal(clips[0].sound["noisy"], clips[1].sound["noisy"])
    again = digits(str(folder / "recordings"), 2)
    assert all(torch.equal(a.sound["noisy"], b.sound["noisy"]) for a, b in zip(clips, again, strict=True))


def test_rows_of_the_noisy_speech_the_filter_and_a_trained_system(folder, capsys, monkeypatch):
    """An untrained bridge is the identity: its row is that of the noisy speech, but for the time."""
    net = SpectrogramUNet(width=8, mults=(1, 1))
    front = ComplexSpectrogram(n_fft=62, hop=16)
    model = Enhancer(Denoiser(net, SBVE(c=0.2), Residual()), DDIM(), Uniform(), 1, front, 8000)
    runs = folder / "runs"
    fewstep.save(model, runs / "0/fsdd_predictive/last", {"iteration": 3, "cpu_seconds": 1.5})
    args = ["--digits", str(folder / "recordings"), "--seeds", "0", "--clips", "1", "--folder", str(runs)]
    args += ["--systems", "fsdd_predictive"]
    assert main(args) == 0
    table = json.loads(capsys.readouterr().out)
    noisy, wiener, predictive = table["rows"]
    assert [r["system"] for r in table["rows"]] == ["noisy", "wiener", "fsdd_predictive"]
    assert (noisy["evaluations"], predictive["evaluations"]) == (0, 1)
    assert (predictive["training_cpu"], "training_cpu" in noisy) == (1.5, False)
    assert noisy["digits"]["clips"] == len(SNRS)
    assert {f"digits at {snr:g} dB" for snr in SNRS} < noisy.keys()
    assert predictive["digits"]["si_sdr"]["mean"] == pytest.approx(noisy["digits"]["si_sdr"]["mean"], abs=1e-3)
    assert abs(wiener["digits"]["si_sdr"]["mean"] - noisy["digits"]["si_sdr"]["mean"]) > 0.1
    monkeypatch.setattr("fewstep_audio.bench.enhancement.judged", lambda *_: pytest.fail("judged again"))
    assert main(args) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == table["rows"]
