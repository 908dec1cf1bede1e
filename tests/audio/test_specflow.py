"""SpecFlow and its space: whitening by what the mel says, exact copies, parts of a long mel as inside of the whole."""

import pytest
import torch

import fewstep
from fewstep.grids import Uniform
from fewstep.paths import RectifiedFlow
from fewstep.prediction import V
from fewstep.solvers import DDIM
from fewstep_audio.mels import PRESETS, Mel
from fewstep_audio.spectrogram import ComplexSpectrogram
from fewstep_audio.vocoder.conditioned import ConditionedDenoiser
from fewstep_audio.vocoder.spaces import SpectrumSpace, linear
from fewstep_audio.vocoder.specflow import SpecFlow
from fewstep_audio.vocoder.vocoder import Vocoder

MEL = PRESETS["digits_8k"]
CENTRED = Mel(8000, 512, 512, 128, 40, 0, 4000, filters="htk", framing="centre")


def tiny(mel: Mel = MEL, steps: int = 2) -> Vocoder:
    torch.manual_seed(0)
    net = SpecFlow(bands=40, bins=257, width=16, blocks=2)
    space = SpectrumSpace(ComplexSpectrogram(512, 128, 0.15, 0.5))
    denoiser = ConditionedDenoiser(net, RectifiedFlow(), V())
    return Vocoder(denoiser, DDIM(), Uniform(), mel, space, steps=steps, mean=-2.0, deviation=0.8).double().eval()


def noise_like_speech(batch: int, n: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    level = 0.02 + 0.2 * torch.sin(torch.arange(n) / 900.0).square()
    return (torch.randn(batch, n, generator=g) * level).double()


@pytest.mark.parametrize("mel", [MEL, CENTRED])
def test_states_of_a_wave_lead_back_to_it(mel):
    voc, wave = tiny(mel), noise_like_speech(2, 128 * 20)
    x0, cond, _ = voc.prepare({"wave": wave})
    assert x0.shape == (2, 2, 257, 21) and cond["mel"].shape == (2, 40, 21)
    assert torch.allclose(voc.decode(x0, cond), wave, atol=1e-7)


def test_white_noise_has_unit_variance_in_the_space_of_the_prior():
    """|S| of a stationary noise scatters around what its mel says: the state's variance per channel is close to 1 at all frequencies and levels."""
    for level in (0.3, 0.003):
        wave = level * torch.randn(1, 128 * 400, generator=torch.Generator().manual_seed(0)).double()
        voc = tiny(Mel(8000, 512, 512, 128, 40, 0, 4000, log="log10", clamp=1e-6))
        inner = voc.prepare({"wave": wave}).x0[..., 2:-2]
        assert float(inner.square().mean()) == pytest.approx(1.0, abs=0.08)
        bands = inner[0].square().mean((0, 2))[6:-6].unfold(0, 35, 35).mean(1)
        assert bands.min() > 0.85 and bands.max() < 1.2


def test_the_envelope_is_the_weighted_mean_of_the_bands():
    """S_hat by loops, from the definition, at bins inside and outside of the filters."""
    mel = Mel(8000, 512, 512, 128, 10, 500, 3000)
    space = SpectrumSpace(ComplexSpectrogram(512, 128, 0.15, 0.5))
    frames = torch.rand(1, 10, 3, dtype=torch.float64) - 3
    w, values = mel.matrix.double(), linear(mel, frames)
    envelope = torch.zeros(257, 3, dtype=torch.float64)
    covered = [f for f in range(257) if w[:, f].sum() > 1e-6 * w.sum(0).max()]
    for f in range(257):
        g = min(covered, key=lambda k: abs(k - f))
        for m in range(10):
            envelope[f] += w[m, g] * values[0, m] / w[m].sum() / w[:, g].sum()
    assert torch.allclose(space.shaper(mel, values).std[0, 0], 0.15 * envelope.sqrt() / 2**0.5, rtol=1e-6)


def test_frames_of_the_mel_are_laid_onto_those_of_the_spectrogram():
    space = SpectrumSpace(ComplexSpectrogram(512, 128))
    frames = torch.tensor([[[1.0, 3.0, 7.0]]])
    assert space.align(MEL, frames).tolist() == [[[1, 2, 5, 7]]]
    assert torch.equal(space.align(CENTRED, frames), frames)


def test_zero_weights_give_a_zero_output():
    voc = tiny()
    for p in voc.parameters():
        p.data.zero_()
    cond = voc.conditions(MEL(noise_like_speech(2, 1280)))
    assert voc.denoiser.raw(voc.noise(cond), torch.ones(2).double(), cond).abs().max() == 0


def test_the_gate_passes_states_on_by_frequency():
    net = tiny().denoiser.net
    for p in net.parameters():
        p.data.zero_()
    net.gate.bias.data = torch.arange(257.0).double()
    x = torch.randn(1, 2, 257, 4).double()
    out = net(x, torch.ones(1).double(), **net.encode(torch.zeros(1, 40, 4).double(), torch.zeros(1, 1, 4).double()))
    assert torch.allclose(out, torch.arange(257.0).double()[:, None] * x)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_evaluations_are_the_steps_and_the_mel_is_encoded_once(steps):
    voc, calls = tiny(), {"mel": 0, "field": 0}
    voc.denoiser.net.of_mel.register_forward_hook(lambda *_: calls.update(mel=calls["mel"] + 1))
    voc.denoiser.net.last.register_forward_hook(lambda *_: calls.update(field=calls["field"] + 1))
    assert voc(MEL(noise_like_speech(1, 1280)), steps=steps).shape == (1, 1280)
    assert calls == {"mel": 1, "field": steps}


def test_an_output_depends_on_no_frame_beyond_its_reach():
    voc = tiny()
    net, t = voc.denoiser.net, torch.full((1,), 0.5).double()
    cond = voc.conditions(MEL(noise_like_speech(1, 128 * 40)))
    x = voc.noise(cond).requires_grad_(True)
    net(x, t, **net.encode(**cond))[..., 20].square().sum().backward()
    seen = x.grad[0].abs().sum((0, 1)).nonzero()[:, 0].tolist()
    assert net.reach == 9 and (min(seen), max(seen)) == (20 - 9, 20 + 9)


def test_a_part_of_a_mel_is_vocoded_as_inside_of_the_whole():
    voc = tiny()
    mel = MEL(noise_like_speech(1, 128 * 150))
    whole, part = voc(mel, seed=5), voc(mel[:, :, 50:130], seed=5, first=50)
    reach = 2 * 9 + 4  # of two steps, and of the STFT's windows
    inner = slice(reach * 128, (80 - reach) * 128)
    assert torch.allclose(part[:, inner], whole[:, 50 * 128 : 130 * 128][:, inner], atol=1e-12)
    assert not torch.allclose(voc(mel[:, :, 50:130], seed=5)[:, inner], part[:, inner], atol=1e-3)


def test_a_batch_is_its_items_one_by_one():
    voc = tiny()
    a, b = (MEL(noise_like_speech(1, n, seed=n)) for n in (1280, 2560))
    padded = torch.cat([torch.nn.functional.pad(a, (0, 10)), b])
    both = voc(padded, frames=torch.tensor([10, 20]))
    assert torch.allclose(both[:1, :1280], voc(a), atol=1e-12) and both[0, 1280:].abs().max() == 0
    swapped = voc(padded[[1, 0]], frames=torch.tensor([20, 10]))
    assert torch.allclose(swapped[:1], voc(b), atol=1e-12)


def test_an_artifact_is_the_vocoder(tmp_path):
    voc = tiny().float()
    voc.temperature = 0.5
    same = fewstep.load(fewstep.save(voc, tmp_path / "voc"))
    mel = MEL(noise_like_speech(1, 1280)).float()
    assert isinstance(same, Vocoder) and same.mel == MEL and torch.equal(same(mel), voc(mel))
