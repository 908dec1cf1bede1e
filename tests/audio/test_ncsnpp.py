"""NCSN++ and the small U-Net: figures of the published networks, structure, resampling by definition."""

import math

import pytest
import torch
from torch import nn

from fewstep.artifacts import build, describe
from fewstep_audio.enhancement.fir import down, up
from fewstep_audio.enhancement.ncsnpp import NCSNpp
from fewstep_audio.enhancement.spectrogram_unet import SpectrogramUNet

SMALL = {"width": 8, "mults": (1, 2, 2), "blocks": 1, "attention": (1,)}
LIGHT = {"mults": (1, 2, 2, 2), "blocks": 1, "attention": ()}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stirred(net):
    """In float64 with random in place of zero layers."""
    torch.manual_seed(0)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return net.double()


def count(net):
    return sum(p.numel() for p in net.parameters()) + sum(b.numel() for b in net.buffers())


# --- figures -------------------------------------------------------------------------------------------------------


def test_the_default_network_has_the_parameters_of_sgmse():
    """65,590,822 of the published code, whose fixed frequencies are parameters; they are the only buffer here."""
    with torch.device("meta"):
        assert count(NCSNpp()) == 65_590_822
        assert [b.numel() for b in NCSNpp().buffers()] == [128]


def test_the_light_network_has_the_size_of_storm():
    with torch.device("meta"):
        assert count(NCSNpp(("noisy", "denoised"), **LIGHT)) / 1e6 == pytest.approx(27.8, abs=0.05)


def test_the_networks_for_cpus_have_the_size_asked_for():
    assert 0.16e6 < count(SpectrogramUNet()) < 0.3e6
    assert 0.7e6 < count(NCSNpp(width=24, mults=(1, 1, 2, 2), blocks=1, attention=())) < 0.9e6


@pytest.mark.parametrize("net", [NCSNpp(**SMALL), SpectrogramUNet(), NCSNpp((), timed=False, over_time=False, **SMALL)])
def test_networks_describe_themselves(net):
    again = build(describe(net))
    assert describe(again) == describe(net)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}


# --- resampling ----------------------------------------------------------------------------------------------------


def filtered(x, factor_up, before, after, gain):
    """Insert zeros, pad, correlate with [1, 3, 3, 1]/8 along both sides: loops over the definition (one image)."""
    h, w = x.shape
    wide = torch.zeros(h * factor_up, w * factor_up, dtype=x.dtype)
    wide[::factor_up, ::factor_up] = x
    wide = nn.functional.pad(wide, (before, after, before, after))
    k = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype) / 8
    out = torch.zeros(wide.shape[0] - 3, wide.shape[1] - 3, dtype=x.dtype)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = gain * (k[:, None] * k * wide[i : i + 4, j : j + 4]).sum()
    return out


def test_down_filters_and_keeps_every_second():
    x = randn(2, 3, 6, 8)
    by_hand = torch.stack([torch.stack([filtered(c, 1, 1, 1, 1.0)[::2, ::2] for c in item]) for item in x])
    torch.testing.assert_close(down(x), by_hand, rtol=0, atol=1e-14)


def test_up_fills_with_zeros_and_filters():
    x = randn(2, 3, 4, 5)
    by_hand = torch.stack([torch.stack([filtered(c, 2, 2, 1, 4.0) for c in item]) for item in x])
    torch.testing.assert_close(up(x), by_hand, rtol=0, atol=1e-14)


def test_a_constant_passes_both_and_the_highest_frequency_neither():
    ones = torch.ones(1, 1, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(down(ones)[..., 1:-1, 1:-1], ones[..., :6, :6], rtol=0, atol=1e-14)
    torch.testing.assert_close(up(ones)[..., 2:-2, 2:-2], ones.expand(1, 1, 16, 16)[..., :1, :1].expand(1, 1, 28, 28))
    alternating = ones * (-1.0) ** torch.arange(16)
    torch.testing.assert_close(down(alternating)[..., 1:-1, 1:-1], torch.zeros_like(ones[..., :6, :6]))


def test_up_is_four_times_the_adjoint_of_down():
    x, z = randn(1, 2, 8, 8), randn(1, 2, 4, 4, seed=1)
    torch.testing.assert_close((down(x) * z).sum() * 4, (x * up(z)).sum(), rtol=1e-12, atol=0)


# --- structure -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over_time", [True, False])
def test_the_output_pyramid_is_divided_by_the_time(over_time):
    """Without an embedding the time enters there alone: out(t) - bias is proportional to 1/t."""
    net = stirred(NCSNpp(timed=False, over_time=over_time, **SMALL))
    x, y = randn(2, 2, 8, 12), randn(2, 2, 8, 12, seed=1)
    times = [torch.full((2,), t, dtype=torch.float64) for t in (0.25, 1.0)]
    near, far = (net(x, t, noisy=y) - net.last.bias[:, None, None] for t in times)
    torch.testing.assert_close(near, (4.0 if over_time else 1.0) * far, rtol=1e-10, atol=1e-12)


def test_the_time_is_embedded_by_its_logarithm():
    net = NCSNpp(**SMALL).double()
    t = torch.tensor([0.03, 0.5], dtype=torch.float64)
    seen = []
    net.time.first.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    net.time(t)
    angle = 2 * math.pi * t.log()[:, None] * net.time.freqs.double()
    torch.testing.assert_close(seen[0], torch.cat([angle.sin(), angle.cos()], 1))


def test_an_untrained_network_returns_its_bias():
    net = NCSNpp(**SMALL)
    x = randn(1, 2, 8, 8).float()
    out = net(x, torch.ones(1), noisy=x)
    torch.testing.assert_close(out, net.last.bias[:, None, None].expand_as(out), rtol=0, atol=1e-4)
    assert not SpectrogramUNet()(x, torch.ones(1), noisy=x).any()


@pytest.mark.parametrize("kind", [NCSNpp, SpectrogramUNet])
def test_networks_see_the_conditions_that_they_name_and_no_others(kind):
    x, y, z = (randn(2, 2, 8, 8, seed=i) for i in range(3))
    t = torch.full((2,), 0.5, dtype=torch.float64)
    for names in ((), ("noisy",), ("noisy", "denoised")):
        net = stirred(kind(conditions=names, width=8, mults=(1, 2), blocks=1, attention=()))
        out = net(x, t, noisy=y, denoised=z)
        assert out.shape == x.shape
        assert torch.equal(out, net(x, t, noisy=y, denoised=y)) == ("denoised" not in names)
        assert torch.equal(out, net(x, t, noisy=x, denoised=z)) == ("noisy" not in names)
        assert not torch.equal(out, net(y, t, noisy=y, denoised=z))
    with pytest.raises(ValueError, match=r"\['denoised'\] not given"):
        net(x, t, noisy=y)


@pytest.mark.parametrize("kind", [NCSNpp, SpectrogramUNet])
def test_a_batch_is_its_items_one_by_one_and_every_parameter_learns(kind):
    net = stirred(kind(width=8, mults=(1, 2), blocks=1, attention=(1,)))
    x, y, t = randn(3, 2, 8, 8), randn(3, 2, 8, 8, seed=1), torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    out = net(x, t, noisy=y)
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1], noisy=y[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(out, alone, rtol=1e-9, atol=1e-9)
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_residual_sums_keep_the_variance():
    """Sums are divided by sqrt 2: at initialisation, where inner branches are nearly 0, a block is its input over sqrt 2."""
    from fewstep_audio.enhancement.ncsnpp import Attention, Block

    h = randn(2, 8, 8, 8).float()
    torch.testing.assert_close(Block(8, 8, 4, 0.0)(h, torch.ones(2, 4)), h / 2**0.5, rtol=0, atol=1e-3)
    torch.testing.assert_close(Attention(8)(h), h / 2**0.5, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"width": 6}, "18 channels .* multiples of 4"),
        ({"attention": (7,), "width": 8}, "levels 0 to 6"),
        ({"blocks": 0}, "blocks >= 1"),
    ],
)
def test_impossible_networks_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        NCSNpp(**arguments)


def test_sizes_that_are_no_multiple_of_the_stride_are_refused():
    net, x = NCSNpp(**SMALL), torch.zeros(1, 2, 8, 10)
    assert net.stride == 4
    with pytest.raises(ValueError, match="must be multiples of 4"):
        net(x, torch.ones(1), noisy=x)
