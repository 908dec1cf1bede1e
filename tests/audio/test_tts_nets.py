"""Networks of speech synthesis: padding changes nothing (P2), structure, exact parts."""

import math

import pytest
import torch
from torch import nn

from fewstep.jvp import forward_mode_gap
from fewstep.nets.scalars import with_scalars
from fewstep_audio.tts.attention import RotaryAttention, WindowedAttention, turned
from fewstep_audio.tts.encoder import TextEncoder
from fewstep_audio.tts.masks import length_mask, masked_mean
from fewstep_audio.tts.norms import ChannelNorm, MaskedGroupNorm
from fewstep_audio.tts.residual1d import Residual1d
from fewstep_audio.tts.unet1d import UNet1d
from fewstep_audio.tts.unet2d import UNet2d

DECODERS = {
    "residual1d": lambda: Residual1d(8, 16, (1, 2, 4), speaker_width=4),
    "unet1d": lambda: UNet1d(8, (16, 16, 16), middle=1, heads=2, head_width=8, speaker_width=4),
    "unet2d": lambda: UNet2d(8, 8, speaker_width=4),
}


def wild(net):
    """The network in float64 with all parameters random: nothing stays at the zeros it begins with."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.5 if p.ndim < 2 else p[0].numel() ** -0.5))
    return net.double().eval()


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", DECODERS)
def test_padding_changes_nothing_in_decoders(name):
    net, lengths = wild(DECODERS[name]()), [13, 9, 2]
    x, mu, t, speaker = draw(3, 8, 20), draw(3, 8, 20, seed=1), draw(3, seed=2), draw(3, 4, seed=3)
    mask = length_mask(torch.tensor(lengths), 20).double()
    together = net(x, t, mu, mask, speaker)
    assert (together * (1 - mask)).abs().max() == 0
    for i, n in enumerate(lengths):
        one = slice(i, i + 1)
        alone = net(x[one, :, :n], t[one], mu[one, :, :n], mask[one, :, :n], speaker[one])
        assert alone.abs().max() > 0.01
        assert (alone - together[one, :, :n]).abs().max() < 1e-10


@pytest.mark.parametrize("window", [4, None])
def test_padding_changes_nothing_in_the_encoder(window):
    net, lengths = (
        wild(TextEncoder(20, 8, 12, 16, 2, 2, window, duration_width=10, speakers=3, speaker_width=4)),
        [11, 5, 1],
    )
    ids, speaker = torch.randint(20, (3, 14), generator=torch.Generator().manual_seed(0)), torch.arange(3)
    mask = length_mask(torch.tensor(lengths), 14).double()
    mu, log_durations, _ = net(ids, mask, speaker)
    for i, n in enumerate(lengths):
        one = slice(i, i + 1)
        mu_i, log_i, _ = net(ids[one, :n], mask[one, :, :n], speaker[one])
        assert (mu_i - mu[one, :, :n]).abs().max() < 1e-10
        assert (log_i - log_durations[one, :n]).abs().max() < 1e-10


def test_sizes_are_those_of_the_papers():
    def size(net):
        return sum(p.numel() for p in net.parameters())

    assert size(UNet2d()) == 7_634_887
    # Matcha-TTS reports 18.2 M for encoder and decoder (table 1).
    assert size(UNet1d()) + size(TextEncoder(179, window=None)) == pytest.approx(18.2e6, rel=0.01)


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_learn_jumps(name):
    """Forward derivatives, and a further condition that changes nothing at first."""
    net = wild(DECODERS[name]())
    x, mu, t, speaker, mask = draw(2, 8, 12), draw(2, 8, 12, seed=1), draw(2), draw(2, 4), torch.ones(2, 1, 12).double()
    assert forward_mode_gap(net, x, t, mu=mu, mask=mask, speaker=speaker) is None
    wider = with_scalars(net, {"s": 100.0}).eval()
    assert torch.allclose(wider(x, t, mu, mask, speaker, s=t / 2), net(x, t, mu, mask, speaker), atol=1e-12)


def test_group_norm_is_torchs_without_padding():
    x, norm, torchs = draw(3, 8, 5, 7), wild(MaskedGroupNorm(4, 8)), wild(nn.GroupNorm(4, 8))
    mask = torch.ones(3, 1, 1, 7, dtype=torch.float64)
    assert torch.allclose(norm(x, mask), torchs(x), atol=1e-12)
    mask[0, ..., 5:] = 0
    assert torch.allclose(norm(x, mask)[0, ..., :5], torchs(x[:1, ..., :5])[0], atol=1e-12)
    channel, layer = wild(ChannelNorm(8)), wild(nn.LayerNorm(8, 1e-4))
    flat = x[:, :, 0]
    assert torch.allclose(channel(flat), layer(flat.mT).mT, atol=1e-12)


def test_windowed_attention_follows_its_equation():
    net, x, mask = wild(WindowedAttention(6, 2, window=2)), draw(1, 6, 7), torch.ones(1, 1, 7).double()
    q, k, v = (f(x)[0].unflatten(0, (2, 3)) for f in (net.query, net.key, net.value))
    out = torch.zeros(2, 3, 7, dtype=torch.float64)
    for h in range(2):
        for i in range(7):
            near = {j: net.relative_key[j - i + 2] for j in range(7) if abs(j - i) <= 2}
            scores = torch.stack([q[h, :, i] @ (k[h, :, j] + near.get(j, torch.zeros(3))) for j in range(7)])
            for j, p in enumerate((scores / math.sqrt(3)).softmax(0)):
                out[h, :, i] += p * (v[h, :, j] + (net.relative_value[j - i + 2] if j in near else 0))
    assert torch.allclose(net(x, mask), net.out(out.flatten(0, 1)[None]), atol=1e-12)


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = draw(8).expand(12, 8), draw(8, seed=1).expand(12, 8)
    scores = turned(q) @ turned(k).mT
    for d in range(-11, 12):
        diagonal = scores.diagonal(d)
        assert (diagonal - diagonal[0]).abs().max() < 1e-12
    assert scores[0].std() > 0.05
    assert torch.allclose(turned(q).norm(dim=-1), q.norm(dim=-1))
    assert torch.equal(turned(q)[:, 4:], q[:, 4:])
    net, x, mask = wild(RotaryAttention(8, 2)), draw(1, 8, 6), torch.ones(1, 1, 6).double()
    assert (net(x, mask) - net(x.flip(2), mask).flip(2)).abs().max() > 1e-3  # order matters


def test_masked_means_count_valid_frames():
    x, mask = draw(2, 3, 5), length_mask(torch.tensor([5, 2]), 5).double()
    wanted = torch.cat([x[0].flatten(), x[1, :, :2].flatten()]).mean()
    assert torch.allclose(masked_mean(x, mask), wanted)
    assert length_mask(torch.tensor([0, 3]), 3)[:, 0].tolist() == [[0, 0, 0], [1, 1, 1]]
