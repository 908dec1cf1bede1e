"""Discriminators of waves against the layer tables of their papers, and the constant-Q transform against its definition."""

import math

import pytest
import torch

from fewstep.discriminators.losses import LeastSquares
from fewstep.discriminators.sample import feature_matching
from fewstep_audio.cqt import CQT
from fewstep_audio.discriminators.multi_period import PeriodDiscriminator
from fewstep_audio.discriminators.multi_resolution import ResolutionDiscriminator
from fewstep_audio.discriminators.sub_band_cqt import SubBandCQTDiscriminator


def wave(batch: int = 2, n: int = 4001) -> torch.Tensor:
    return 0.1 * torch.randn(batch, n, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("period", [2, 3, 5, 7, 11])
def test_multi_period_layers_are_those_of_the_paper(period):
    """Kernel 5, stride 3, padding 2: L -> (L - 1) // 3 + 1, four times; then two layers that keep L."""
    *layers, logits = PeriodDiscriminator(period, width=2)(wave())
    length, expected = math.ceil(4001 / period), []
    for channels in (2, 8, 32, 64):
        length = (length - 1) // 3 + 1
        expected.append((2, channels, length, period))
    expected += [(2, 64, length, period), (2, 1, length, period)]
    assert [tuple(v.shape) for v in layers] == expected and logits.shape == (2, length * period)


def test_multi_period_discriminators_have_the_parameters_of_hifi_gan():
    """Convolutions of 5 taps 1-32-128-512-1024-1024 and of 3 to 1, biases; weight normalisation adds a gain per channel."""
    net = PeriodDiscriminator(3)
    sizes = [(1, 32, 5), (32, 128, 5), (128, 512, 5), (512, 1024, 5), (1024, 1024, 5), (1024, 1, 3)]
    assert sum(p.numel() for p in net.parameters()) == sum(i * o * k + 2 * o for i, o, k in sizes)


def test_a_period_discriminator_sees_samples_of_a_column_alone():
    """The logit of column j does not depend on samples of other columns."""
    net, x = PeriodDiscriminator(3, width=1).double(), wave(1, 999).double().requires_grad_(True)
    net(x)[-1].unflatten(1, (-1, 3))[0, :, 1].sum().backward()
    assert x.grad[0, 1::3].abs().min() > 0 and x.grad[0, 0::3].abs().max() == 0 == x.grad[0, 2::3].abs().max()


@pytest.mark.parametrize(("n_fft", "hop", "win"), [(1024, 120, 600), (2048, 240, 1200), (512, 50, 240)])
def test_multi_resolution_layers_are_those_of_the_paper(n_fft, hop, win):
    *layers, logits = ResolutionDiscriminator(n_fft, hop, win, width=3)(wave())
    frames = (4001 + 2 * ((n_fft - hop) // 2) - n_fft) // hop + 1
    lengths = [frames]
    for _ in range(3):
        lengths.append((lengths[-1] - 1) // 2 + 1)
    bins = n_fft // 2 + 1
    expected = [(2, 3, bins, n) for n in [*lengths, lengths[-1]]] + [(2, 1, bins, lengths[-1])]
    assert [tuple(v.shape) for v in layers] == expected and logits.shape == (2, bins * lengths[-1])


def test_the_spectrogram_of_a_resolution_by_its_definition():
    net, x = ResolutionDiscriminator(256, 60, 200, width=1), wave(1, 1000).double()
    frames = torch.nn.functional.pad(x[:, None], (98, 98), "reflect")[0, 0].unfold(0, 256, 60)
    window = torch.zeros(256, dtype=torch.float64)
    window[28:228] = 0.5 - 0.5 * torch.cos(2 * torch.pi * torch.arange(200) / 200)
    assert torch.allclose(net.spectrogram(x)[0], torch.fft.rfft(frames * window).abs().T, rtol=1e-5, atol=1e-6)


def test_cqt_against_sums_over_its_definition():
    rate, hop, octaves, bins, lowest = 4000, 64, 5, 6, 50.0
    x = torch.randn(3000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    own = CQT(rate, hop, octaves, bins, lowest)(x[None])[0]
    assert own.shape == (30, 2999 // 64 + 1)
    q = 1 / (2 ** (1 / bins) - 1)
    for k in (0, 7, 16, 23, 29):
        f = lowest * 2 ** (k / bins)
        length = q * rate / f
        for frame in (10, 23, 35):
            total, weight = 0j, 0.0
            for m in range(-math.ceil(length / 2), math.ceil(length / 2) + 1):
                w = math.cos(math.pi * m / length) ** 2 if abs(m) < length / 2 else 0.0
                angle = 2 * math.pi * f * m / rate
                total += x[frame * hop + m].item() * w * complex(math.cos(angle), -math.sin(angle))
                weight += w
            expected = math.sqrt(length) * total / weight
            # The lower octaves' kernels are those of the highest at a lower rate: another sampling of the same window.
            assert abs(own[k, frame].item() - expected) < 0.02 * math.sqrt(q)


def test_a_tone_is_found_at_its_bin():
    cqt = CQT(16000, 64, 7, 24)
    for k in (30, 75, 130):
        f = 32.703 * 2 ** (k / 24)
        tone = torch.sin(2 * torch.pi * f * torch.arange(32000, dtype=torch.float64) / 16000)
        size = cqt(tone[None])[0, :, 250].abs() / cqt.scale
        assert int(size.argmax()) == k and float(size[k]) == pytest.approx(0.5, rel=0.01)


def test_cqt_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="beyond half of 8000 Hz"):
        CQT(8000, 256, 9)
    with pytest.raises(ValueError, match="hop"):
        CQT(48000, 100, 9)


def test_cqt_layers_are_those_of_the_public_code():
    *layers, logits = SubBandCQTDiscriminator(8000, 128, octaves=7, bins=12, width=3)(wave(2, 2000))
    frames, sizes = 3999 // 128 + 1, [84, 42, 21, 11, 11]
    assert [tuple(v.shape) for v in layers] == [(2, 3, frames, n) for n in sizes]
    assert logits.shape == (2, frames * 11)


@pytest.mark.parametrize(
    "net",
    [
        PeriodDiscriminator(5, width=1),
        ResolutionDiscriminator(256, 60, 200, width=2),
        SubBandCQTDiscriminator(8000, 128, 7, 12, width=2),
    ],
    ids=lambda net: type(net).__name__,
)
def test_discriminators_learn_and_pass_finite_gradients_at_silence(net):
    fake = wave(2, 2000)
    fake[:, :1200] = 0  # where magnitudes have no gradient
    fake.requires_grad_(True)
    real, own = net(wave(2, 2000)), net(fake)
    assert own[-1].ndim == 2
    (LeastSquares().student(own[-1], real[-1]) + feature_matching(real[:-1], own[:-1])).sum().backward()
    assert fake.grad.isfinite().all() and fake.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
