"""The bench of long inputs: its statistics on signals whose answer is known, and all of it on untrained models."""

import json

import torch
from small_tts import small

import fewstep
from fewstep.denoiser import Denoiser
from fewstep.grids import Uniform
from fewstep.paths import SBVE
from fewstep.prediction import Residual
from fewstep.solvers import DDIM
from fewstep_audio.bench.lengths import FRAME, HOP, compared, frame_figures, main, text, touching
from fewstep_audio.enhancement.enhancer import Enhancer
from fewstep_audio.enhancement.spectrogram_unet import SpectrogramUNet
from fewstep_audio.files import Audio, write_audio
from fewstep_audio.spectrogram import ComplexSpectrogram
from fewstep_audio.text import Characters


def test_nobody_can_tell_frames_of_one_noise_apart_but_a_click_and_a_dip_show():
    g = torch.Generator().manual_seed(0)
    wave = 0.1 * torch.randn(200_000, generator=g)
    spans = [(s, s + 500) for s in range(5000, 190_000, 8000)]

    def found(wave):
        figures = frame_figures(wave)
        hit = touching(spans, len(figures["flux"]))
        return {k: compared(v[hit], v[~hit]) for k, v in figures.items()}

    for of in found(wave).values():
        assert abs(of["auc"] - 0.5) < 4 * of["error"]
        assert of["extreme"] < 0.05
    dip, click = wave.clone(), wave.clone()
    for a, b in spans:
        dip[a:b] *= 0.7
        click[a + 200] += 3
    assert found(dip)["energy"]["auc"] < 0.1
    assert found(click)["energy"]["extreme"] > 0.3
    assert found(click)["flux"]["extreme"] > 0.2


def test_frames_touch_the_spans_they_overlap():
    hit = touching([(FRAME, FRAME + 1)], 6)
    assert hit.tolist() == [i * HOP < FRAME + 1 and i * HOP + FRAME > FRAME for i in range(6)]


def test_ties_count_half():
    assert compared(torch.zeros(5), torch.zeros(7))["auc"] == 0.5
    assert compared(torch.ones(5), torch.zeros(7))["auc"] == 1


def test_both_verbs_in_processes_of_their_own(tmp_path, capsys):
    (tmp_path / "recordings").mkdir()
    t = torch.arange(6000) / 8000
    for digit in range(3):
        for take in (0, 5):
            tone = 0.3 * (2 * torch.pi * (300 + 200 * digit) * t).sin() * (torch.pi * t * 3).sin() ** 2
            write_audio(tmp_path / f"recordings/{digit}_ann_{take}.wav", Audio(tone[None], 8000))
    net, front = SpectrogramUNet(width=8, mults=(1, 1)), ComplexSpectrogram(n_fft=62, hop=16)
    fewstep.save(
        Enhancer(Denoiser(net, SBVE(c=0.2), Residual()), DDIM(), Uniform(), 1, front, 8000), tmp_path / "enhancer"
    )
    fewstep.save(small(symbols=Characters("efghinorstuvwxz", silent=" ,."), longest=5), tmp_path / "speaker")
    args = ["--digits", str(tmp_path / "recordings"), "--enhancer", str(tmp_path / "enhancer")]
    args += ["--speaker", str(tmp_path / "speaker"), "--minutes", "0.1", "0.3", "--characters", "20", "40"]
    assert main(args) == 0
    table = json.loads(capsys.readouterr().out)
    # An untrained bridge is the identity: its windows fit together.
    assert table["enhance"]["joins"] == 3
    assert abs(table["enhance"]["gain"]["auc"] - 0.5) < 0.2
    assert min(table["speak"]["megabytes_by_characters"].values()) > 50
    assert len(text(2000)) <= 2000
