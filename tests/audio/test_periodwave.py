"""PeriodWave (arXiv:2408.07547): structure, prior and loss against the definitions, in float64."""

import math

import pytest
import torch

from fewstep.grids import Uniform
from fewstep.paths import RectifiedFlow
from fewstep.solvers import DDIM
from fewstep.solvers.runge_kutta import MIDPOINT, RungeKutta
from fewstep.train.denoising import denoising_loss
from fewstep_audio.mels import PRESETS, Mel
from fewstep_audio.vocoder.conditioned import ConditionedDenoiser
from fewstep_audio.vocoder.free_u import free_u
from fewstep_audio.vocoder.period_unet import fold, unfold
from fewstep_audio.vocoder.periodwave import PeriodWave, sinusoid
from fewstep_audio.vocoder.scaled import ScaledU
from fewstep_audio.vocoder.spaces import WaveSpace, energy_range, linear
from fewstep_audio.vocoder.vocoder import Vocoder

MEL = PRESETS["digits_8k"]
SPACE = WaveSpace(low=0.2, high=2.8, scale=0.25)
MIDPOINT_IN_T = RungeKutta(MIDPOINT, "t")


def tiny(**kwargs) -> Vocoder:
    torch.manual_seed(0)
    net = PeriodWave(40, 128, (1, 2, 3), hidden=32, blocks=(1, 1), **kwargs)
    denoiser = ConditionedDenoiser(net, RectifiedFlow(1e-4), ScaledU(SPACE.scale))
    return Vocoder(denoiser, MIDPOINT_IN_T, Uniform(), MEL, SPACE, steps=4).double().eval()


def speech(*shape: int, seed: int = 0) -> torch.Tensor:
    """Noise whose level goes up and down, as that of speech."""
    g = torch.Generator().manual_seed(seed)
    level = 0.02 + 0.2 * torch.sin(torch.arange(shape[-1]) / 700.0).square()
    return (torch.randn(shape, generator=g) * level).double()


@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000, 1344, 5377])
@pytest.mark.parametrize("period", [1, 2, 3, 5, 7])
def test_folding_and_unfolding_is_the_identity(n, period):
    x = torch.arange(n, dtype=torch.float64).repeat(2, 1)
    folded = fold(x, period)
    assert folded.shape[2] % 64 == 0 and folded.shape[2] * period - n < 64 * period
    assert torch.equal(unfold(folded, n)[:, 0], x)


def test_columns_hold_every_pth_sample_and_the_margin_is_a_reflection():
    x = torch.arange(400.0)[None]
    folded = fold(x, 3)  # 576 samples
    assert folded[0, 0, :5, 1].tolist() == [1, 4, 7, 10, 13]
    flat = folded.flatten()
    assert torch.equal(flat[400:576], x[0, 399 - torch.arange(1, 177)])


def test_a_shift_by_one_sample_changes_the_columns():
    x = speech(1, 1344)
    assert torch.equal(fold(x.roll(-1, 1), 2)[0, 0, :100, 0], fold(x, 2)[0, 0, :100, 1])
    voc = tiny()
    cond, t = voc.conditions(MEL(x)), torch.full((1,), 0.5).double()
    whole, moved = (voc.denoiser.raw(v, t, cond) for v in (x[:, :1280], x.roll(1, 1)[:, :1280]))
    inside = slice(400, 800)
    assert not torch.allclose(whole[:, inside], moved.roll(-1, 1)[:, inside], rtol=0.05)


@pytest.mark.parametrize(
    ("hidden", "bands", "millions"),
    [(512, 100, 29.8), (256, 100, 7.57), (192, 80, 4.28), (128, 100, 1.95)],
)
def test_the_faithful_network_has_the_parameters_of_the_paper(hidden, bands, millions):
    net = PeriodWave(bands, 256, hidden=hidden)
    assert count(net) / 1e6 == pytest.approx(millions, abs=0.0051 if hidden < 512 else 0.051)
    if hidden == 512:
        assert count(net.conditioner) / 1e6 == pytest.approx(20.9, abs=0.05)
        assert count(net.unet) / 1e6 == pytest.approx(6.8, abs=0.05)


def count(net) -> int:
    return sum(p.numel() for p in net.parameters())


def test_zero_weights_give_a_zero_field_and_leave_the_noise_as_it_began():
    voc = tiny()
    for name, p in voc.named_parameters():
        if not name.endswith("original1"):  # the direction of a normalised weight; its gain is original0
            p.data.zero_()
    mel = MEL(speech(2, 1280))
    cond = voc.conditions(mel)
    noise = voc.noise(cond)
    assert voc.denoiser.raw(noise, torch.ones(2).double(), cond).abs().max() == 0
    assert torch.allclose(voc.generate(noise, cond), noise)  # dx/dt = 0


@pytest.mark.parametrize(("solver", "steps", "nfe"), [(MIDPOINT_IN_T, 16, 32), (MIDPOINT_IN_T, 3, 6), (DDIM(), 2, 2)])
def test_the_conditioner_runs_once_for_all_steps(solver, steps, nfe):
    voc, calls = tiny(), {"conditioner": 0, "field": 0}
    net = voc.denoiser.net
    net.conditioner.register_forward_hook(lambda *_: calls.update(conditioner=calls["conditioner"] + 1))
    net.last.register_forward_hook(lambda *_: calls.update(field=calls["field"] + 1))
    voc(MEL(speech(1, 640)), steps=steps, solver=solver)
    assert calls == {"conditioner": 1, "field": nfe}


def test_features_computed_once_are_those_computed_anew():
    voc = tiny()
    wave = speech(2, 1280)
    x0, cond, _ = voc.prepare({"wave": wave})
    once = voc.denoiser.bind(cond)
    for t in (1.0, 0.3):
        anew = voc.denoiser(x0, torch.full((2,), t, dtype=torch.float64), cond)
        assert torch.allclose(once(x0, t).x0, anew.x0, atol=1e-12)


@pytest.mark.parametrize("n", [128, 640, 1280, 4096])
def test_waves_are_as_long_as_their_mels_say(n):
    assert tiny()(MEL(speech(2, n)), steps=1).shape == (2, n)


def test_the_prior_has_the_variance_of_its_frames():
    wave = speech(1, 4096) * torch.linspace(0.1, 1, 4096)
    voc = tiny()
    cond = voc.conditions(MEL(wave))
    noise = torch.randn(300, 4096, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prior = voc.shaper(cond).shape(noise)
    # The definition, written out: e = sqrt(sum of linear mels), clamped (e - low) / (high - low).
    linear = 10 ** MEL(wave)[0]
    level = torch.stack([(linear[:, f].sum().sqrt() - 0.2) / 2.6 for f in range(32)]).clamp_min(0.1)
    assert level.max() > 0.15 and level.min() == 0.1  # both branches are met
    measured = prior.reshape(300, 32, 128).square().mean((0, 2))
    assert torch.allclose(measured, (0.25 * level) ** 2, rtol=0.04)


def test_temperature_scales_the_noise_that_sampling_begins_with():
    voc, noise = tiny(), speech(1, 640)
    voc.temperature = 0.667
    assert torch.allclose(voc.begin(noise), 0.667 * noise)


def test_the_loss_is_the_papers_divided_by_std_alone():
    voc, wave = tiny(), speech(3, 1280)
    x0, cond, _ = voc.prepare({"wave": wave})
    eps, t = torch.randn_like(x0), torch.tensor([0.1, 0.5, 0.9]).double()
    own = denoising_loss(voc.denoiser, x0, eps, t, cond)
    # Equations of the paper in its own coordinates, tau = 1 - t.
    std = cond["std"][:, 0].repeat_interleave(128, 1)
    n, tau = SPACE.scale * std * eps, (1 - t)[:, None]
    x_tau = tau * wave + (1 - (1 - 1e-4) * tau) * n
    u = wave - (1 - 1e-4) * n
    net = voc.denoiser.net
    predicted = -std * net(x_tau / std, t, **net.encode(**cond))
    assert torch.allclose(own, ((predicted - u) / std).square().mean(1), rtol=1e-9)


def test_the_loss_does_not_change_when_wave_and_std_are_scaled_together():
    net = tiny().denoiser.net

    def linear_field(x, t, std, **_):
        """Any field that is linear in the wave, in units of std."""
        w = x * std
        return (0.3 * w - 0.5 * w.roll(1, 1)) / std

    net.forward = linear_field
    wave = speech(2, 1280)
    losses = []
    for k in (1.0, 3.0):
        space = WaveSpace(low=0.0, high=1.0 / k, scale=0.25, floor=0.1 * k)
        mel = Mel(8000, 512, 512, 128, 40, 0, 4000, eps=0.0, log="log10", clamp=1e-3)
        denoiser = ConditionedDenoiser(net, RectifiedFlow(1e-4), ScaledU(0.25))
        voc = Vocoder(denoiser, DDIM(), Uniform(), mel, space)
        cond = {"mel": mel(wave), "std": space.level(linear(mel, mel(wave)))}
        x0 = voc.shaper(cond).white(k * wave)
        eps = torch.randn(x0.shape, dtype=x0.dtype, generator=torch.Generator().manual_seed(1))
        losses.append(denoising_loss(denoiser, x0, eps, torch.full((2,), 0.4).double(), cond))
    assert torch.allclose(losses[0], losses[1], rtol=1e-9)


def test_an_exact_field_leads_from_any_noise_to_the_wave():
    """With u = n (1 - 1e-4) - w for one known wave the flow is straight: one step is exact but for the 1e-4 that is left."""
    wave = speech(1, 1280)
    voc = tiny()
    x0, cond, _ = voc.prepare({"wave": wave})

    def field(x, t, **_):
        a, s = 1 - t[:, None], 1e-4 + (1 - 1e-4) * t[:, None]
        n = (x - a * SPACE.scale * x0) / s  # in units of std
        return (1 - 1e-4) * n - SPACE.scale * x0

    voc.denoiser.net.forward = field
    for solver, steps in ((DDIM(), 1), (DDIM(), 2), (MIDPOINT_IN_T, 4)):
        copy = voc(MEL(wave), steps=steps, solver=solver)
        assert (copy - wave).abs().max() < 1e-3 and not torch.equal(copy, wave)


def test_a_batch_is_its_items_one_by_one():
    voc = tiny()
    mels = [MEL(speech(1, n, seed=n)) for n in (640, 1280)]
    padded = torch.cat([torch.nn.functional.pad(mels[0], (0, 5), value=-3.0), mels[1]])
    both = voc(padded, frames=torch.tensor([5, 10]))
    second = voc.decode(
        voc.generate(voc.noise(voc.conditions(mels[1]), items=[1]), voc.conditions(mels[1])), voc.conditions(mels[1])
    )
    assert torch.allclose(both[:1, :640], voc(mels[0]), atol=1e-12) and both[0, 640:].abs().max() == 0
    assert torch.allclose(both[1:], second, atol=1e-12)


def test_the_same_seed_gives_the_same_noise_at_any_frame_of_any_part():
    voc = tiny()
    cond = voc.conditions(MEL(speech(2, 128 * 200)))
    part = {"mel": cond["mel"][:, :, 70:140]}
    assert torch.equal(voc.noise(cond, seed=3)[:, 70 * 128 : 140 * 128], voc.noise(part, seed=3, first=70))
    assert not torch.allclose(voc.noise(cond, seed=3), voc.noise(cond, seed=4))
    assert not torch.allclose(voc.noise(cond)[0], voc.noise(cond)[1])


def test_free_u_reweighs_the_up_blocks_while_it_lasts():
    voc = tiny()
    mel = MEL(speech(1, 640))
    plain = voc(mel)
    with free_u(voc, backbone=1.0, skip=1.0):
        assert torch.equal(voc(mel), plain)
    up = voc.denoiser.net.unet.ups[0]
    h, skip, e = torch.randn(1, 32, 4, 2).double(), torch.randn(1, 8, 16, 2).double(), torch.randn(1, 32).double()
    with free_u(voc):
        inside = up(h, skip, e)
        assert not torch.allclose(voc(mel), plain)
    scaled = up.residuals(1.1 * up.conv(torch.nn.functional.silu(h)) + 0.9 * skip + up.told(e))
    assert torch.allclose(inside, scaled) and torch.equal(voc(mel), plain)
    with pytest.raises(ValueError, match="no up blocks"), free_u(torch.nn.Linear(1, 1)):
        pass


def test_drop_path_keeps_the_mean_and_is_off_outside_of_training():
    net = tiny(drop_path=0.5).denoiser.net
    block, h = net.conditioner.slow[0], torch.randn(1, 32, 7).double()
    branch = block.eval()(h) - h
    torch.manual_seed(0)
    drawn = block.train()(h.expand(1000, -1, -1)) - h
    skipped = drawn.flatten(1).abs().amax(1) == 0
    assert float(skipped.double().mean()) == pytest.approx(0.5, abs=0.05)
    assert torch.allclose(drawn[~skipped], 2 * branch, atol=1e-9)


def test_sinusoids_reach_from_one_radian_per_unit_to_a_ten_thousandth():
    wave = sinusoid(torch.tensor([2.0]).double(), 8)[0]
    expected = [f(2 * 10 ** (-4 * k / 3)) for f in (math.sin, math.cos) for k in range(4)]
    assert torch.allclose(wave, torch.tensor(expected).double())


def test_energies_of_a_training_set():
    loud, quiet = speech(1, 4096)[0], torch.zeros(1024).double()
    low, high = energy_range(MEL, [loud, quiet])
    assert low == pytest.approx(math.sqrt(40 * 1e-3)) and high == pytest.approx(
        float((10 ** MEL(loud[None])).sum(1).max().sqrt())
    )


def test_bad_mels_are_refused_in_one_line():
    voc = tiny()
    with pytest.raises(ValueError, match=r"the mel is \(B, 40, frames\), not \(1, 80, 5\)"):
        voc(torch.zeros(1, 80, 5).double())
    with pytest.raises(ValueError, match="not finite"):
        voc(torch.full((1, 40, 5), math.nan).double())
    with pytest.raises(ValueError, match="multiple of 16"):
        PeriodWave(hidden=100)
    with pytest.raises(ValueError, match="hop"):
        PeriodWave(hop=100, hidden=32)
