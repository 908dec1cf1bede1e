"""SpecFlow, its transform and its space: orthonormality, whitening by what the mel says, exact copies, parts of a long mel as inside of the whole."""

import math

import pytest
import torch

import fewstep
from fewstep.grids import Uniform
from fewstep.paths import RectifiedFlow
from fewstep.prediction import V
from fewstep.solvers import DDIM
from fewstep_audio.mels import PRESETS, Mel
from fewstep_audio.vocoder.conditioned import ConditionedDenoiser
from fewstep_audio.vocoder.convnext import ConvNeXt
from fewstep_audio.vocoder.mdct import at_coefficients, imdct, mdct
from fewstep_audio.vocoder.spaces import MDCTSpace, linear
from fewstep_audio.vocoder.specflow import SpecFlow
from fewstep_audio.vocoder.vocoder import Vocoder

SPACE = MDCTSpace()
MEL = PRESETS["digits_8k"]
CENTRED = Mel(8000, 512, 512, 128, 40, 0, 4000, filters="htk", framing="centre")


def tiny(mel: Mel = MEL, steps: int = 2, space: MDCTSpace = SPACE) -> Vocoder:
    torch.manual_seed(0)
    net = SpecFlow(bands=40, width=16, blocks=2)
    denoiser = ConditionedDenoiser(net, RectifiedFlow(), V())
    return Vocoder(denoiser, DDIM(), Uniform(), mel, space, steps=steps, mean=-2.0, deviation=0.8).double().eval()


def noise_like_speech(batch: int, n: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    level = 0.02 + 0.2 * torch.sin(torch.arange(n) / 900.0).square()
    return (torch.randn(batch, n, generator=g) * level).double()


def test_the_transform_is_orthonormal_and_made_of_cosines():
    """By loops from the definition; X of a wave has its energy, the wave of X its own, but for the outer halves."""
    g = torch.Generator().manual_seed(0)
    wave = torch.randn(2, 5 * 8, generator=g, dtype=torch.float64)
    x = mdct(wave, 8)
    assert x.shape == (2, 8, 6) and torch.allclose(x.square().sum((1, 2)), wave.square().sum(1))
    assert torch.allclose(imdct(x), wave) and torch.equal(imdct(x, 13), imdct(x)[:, :13])
    for k in (0, 5):
        for t in (0, 2, 5):
            total = 0.0
            for n in range(16):
                at = (t - 1) * 8 + n
                if 0 <= at < 40:
                    cosine = math.sqrt(2 / 8) * math.cos(math.pi / 8 * (n + 0.5 + 4) * (k + 0.5))
                    total += math.sin(math.pi * (n + 0.5) / 16) * wave[1, at].item() * cosine
            assert x[1, k, t].item() == pytest.approx(total, abs=1e-12)
    state = torch.randn(2, 8, 6, generator=g, dtype=torch.float64)
    assert torch.allclose(mdct(imdct(state), 8)[:, :, 1:-1], state[:, :, 1:-1])
    with pytest.raises(ValueError, match="13 samples are no whole frames of 8"):
        mdct(wave[:, :13], 8)
    with pytest.raises(ValueError, match="n_fft is a multiple of 2 hop, not 512 with hop 100"):
        SpecFlow(40, 512, 100)


def test_a_tone_is_at_the_coefficients_of_its_bins():
    """A sinusoid at the frequency of coefficient 20 is largest there, and what the bins know about it arrives there."""
    tone = (math.pi / 128 * 20.5 * torch.arange(128 * 12, dtype=torch.float64)).sin()[None]
    assert mdct(tone, 128)[0, :, 3:-3].square().mean(1).argmax() == 20
    peak = torch.zeros(1, 257, 1)
    peak[0, 41] = 1
    assert at_coefficients(peak, 128)[0, :, 0].nonzero().tolist() == [[20]]


@pytest.mark.parametrize("mel", [MEL, CENTRED])
def test_states_of_a_wave_lead_back_to_it(mel):
    voc, wave = tiny(mel), noise_like_speech(2, 128 * 20)
    x0, cond, _ = voc.prepare({"wave": wave})
    assert x0.shape == (2, 128, 21) and {k: v.shape[1:] for k, v in cond.items()} == {
        "mel": (40, 21),
        "std": (1, 21),
        "envelope": (257, 21),
    }
    assert torch.allclose(voc.decode(x0, cond), wave, atol=1e-7)


def test_white_noise_has_unit_variance_in_the_space_of_the_prior():
    """Where the prior follows the mel wholly, noise of any level has about unit variance at all frequencies (a little less: its mel is of itself); with power p it keeps level^(1 - p)."""
    for level in (0.3, 0.003):
        wave = level * torch.randn(1, 128 * 400, generator=torch.Generator().manual_seed(0)).double()
        mel = Mel(8000, 512, 512, 128, 40, 0, 4000, log="log10", clamp=1e-6)
        inner = tiny(mel, space=MDCTSpace(power=1.0)).prepare({"wave": wave}).x0[..., 2:-2]
        assert float(inner.square().mean()) == pytest.approx(1.0, abs=0.08)
        bands = inner[0].square().mean(1)[4:-4].unfold(0, 20, 20).mean(1)
        assert bands.min() > 0.85 and bands.max() < 1.1
        part = tiny(mel, space=MDCTSpace(power=0.5, reference=0.03)).prepare({"wave": wave}).x0[..., 2:-2]
        assert float(part.square().mean()) == pytest.approx(level / 0.03, rel=0.08)


def test_the_envelope_is_the_weighted_mean_of_the_bands():
    """S_hat by loops, from the definition, at bins inside and outside of the filters."""
    mel = Mel(8000, 512, 512, 128, 10, 500, 3000)
    frames = torch.rand(1, 10, 3, dtype=torch.float64) - 3
    w, values = mel.matrix.double(), linear(mel, frames)
    envelope = torch.zeros(257, 3, dtype=torch.float64)
    covered = [f for f in range(257) if w[:, f].sum() > 1e-6 * w.sum(0).max()]
    for f in range(257):
        g = min(covered, key=lambda k: abs(k - f))
        for m in range(10):
            envelope[f] += w[m, g] * values[0, m] / w[m].sum() / w[:, g].sum()
    window = torch.hann_window(512, dtype=torch.float64)
    deviation = envelope / (math.pi / 4 * window.square().sum()).sqrt()
    found = MDCTSpace(power=0.75, reference=0.02).conditions(mel, values)["envelope"]
    assert torch.allclose(found[0], 0.02 * (deviation / 0.02) ** 0.75, rtol=1e-6)
    assert torch.equal(MDCTSpace(1.0).shaper(mel, values).std[0], MDCTSpace(1.0).envelope(mel, values)[0, 1::2])


def test_frames_of_the_mel_are_laid_onto_those_of_the_spectrogram():
    space = MDCTSpace()
    frames = torch.tensor([[[1.0, 3.0, 7.0]]])
    assert space.align(MEL, frames).tolist() == [[[1, 2, 5, 7]]]
    assert torch.equal(space.align(CENTRED, frames), frames)


def test_zero_weights_give_a_zero_output():
    voc = tiny()
    for p in voc.parameters():
        p.data.zero_()
    cond = voc.conditions(MEL(noise_like_speech(2, 1280)))
    assert voc.denoiser.raw(voc.noise(cond), torch.ones(2).double(), cond).abs().max() == 0


def test_the_gate_passes_waves_on_by_frequency():
    """One factor is the state times it, in frames with both neighbours; a factor below 1 kHz alone leaves tones there and takes those above."""
    voc = tiny()
    net, one = voc.denoiser.net, torch.ones(1).double()
    for p in net.parameters():
        p.data.zero_()
    cond = voc.conditions(MEL(noise_like_speech(1, 128 * 30)))
    net.gate.bias.data.fill_(3.0)
    x = voc.noise(cond)
    assert torch.allclose(net(x, one, **net.encode(**cond))[..., 1:-1], 3 * x[..., 1:-1])
    net.gate.bias.data = (torch.arange(257) < 64).double()
    for hertz, kept in ((500, 1.0), (2000, 0.0)):
        tone = (2 * math.pi * hertz / 8000 * torch.arange(128 * 30).double()).sin()[None]
        out = voc.decode(net(voc.shaper(cond).white(mdct(tone, 128)), one, **net.encode(**cond)), cond)
        inner = slice(1000, -1000)
        assert (out - kept * tone)[:, inner].square().mean().sqrt() < 0.01


def test_the_network_sees_spectra_with_phases_at_the_centres():
    """An impulse at the centre of a frame is real and positive at all of its bins; spectra lead back to waves."""
    net, wave = tiny().denoiser.net, torch.zeros(1, 128 * 12).double()
    wave[0, 128 * 5] = 1
    at_centre = net.spectrum(wave)[0, :, :, 5]
    assert torch.allclose(at_centre[0], torch.ones(257).double()) and at_centre[1].abs().max() < 1e-12
    sound = noise_like_speech(2, 128 * 12)
    assert torch.allclose(net.wave(net.spectrum(sound)), sound)
    assert torch.equal(net.unpatched(net.patches(net.spectrum(sound))), net.spectrum(sound))


def test_slabs_are_the_whole(monkeypatch):
    """Without gradients perceptrons see a few rows at a time."""
    block = ConvNeXt(8, 16, 4, 0.5).double()
    h, embedding = torch.randn(2, 11, 5, 8).double(), torch.randn(2, 4).double()
    whole, sizes = block(h, embedding), []
    monkeypatch.setattr("fewstep_audio.vocoder.convnext.SLAB", 3 * 2 * 5 * 8)
    block.wide.register_forward_hook(lambda module, given, out: sizes.append(out.shape[1]))
    with torch.no_grad():
        assert torch.allclose(block(h, embedding), whole, atol=1e-12)
    assert sizes == [3, 3, 3, 2]


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
    seen = x.grad[0].abs().sum(0).nonzero()[:, 0].tolist()
    assert net.reach == 8 and (min(seen), max(seen)) == (20 - 8, 20 + 8)


def test_a_part_of_a_mel_is_vocoded_as_inside_of_the_whole():
    voc = tiny()
    mel = MEL(noise_like_speech(1, 128 * 150))
    whole, part = voc(mel, seed=5), voc(mel[:, :, 50:130], seed=5, first=50)
    reach = 2 * 8 + 1  # of two steps, and of the last transform
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
