"""The networks of restoration: size, reach, start at zero, and that everything in them learns."""

import pytest
import torch
from torch import nn

from fewstep_restoration.nets import FiLMResNet, FiLMUNet


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(b=2, h=8, w=6, channels=48):
    return normal(b, channels, h, w), torch.arange(b, dtype=torch.float64) * 3, normal(b, 3, h, w, seed=1)


def small(cls, **kw):
    torch.manual_seed(0)
    return cls(width=8, **kw).double()


def randomised(net):
    """With no layer at zero."""
    torch.manual_seed(1)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return net


def train(net, steps, x, t, lr):
    """Some steps of regression on a target that depends on the time."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    target = normal(*x.shape, seed=2) * (1 + t[:, None, None, None])
    for _ in range(steps):
        optimizer.zero_grad()
        (net(x, t, lr) - target).square().mean().backward()
        optimizer.step()


NETS = [FiLMResNet, FiLMUNet]


@pytest.mark.parametrize(("cls", "millions"), [(FiLMResNet, 0.29), (FiLMUNet, 0.92)])
def test_the_default_has_the_size_of_the_sheet(cls, millions):
    assert sum(p.numel() for p in cls().parameters()) == pytest.approx(millions * 1e6, rel=0.05)


@pytest.mark.parametrize("cls", NETS)
def test_an_untrained_network_says_zero(cls):
    x, t, lr = inputs()
    assert torch.equal(small(cls)(x, t, lr), torch.zeros_like(x))


@pytest.mark.parametrize("cls", NETS)
@pytest.mark.parametrize(("channels", "cond"), [(12, 3), (48, 4), (3, 1)])
def test_other_numbers_of_channels(cls, channels, cond):
    net = randomised(small(cls, channels=channels, cond_channels=cond))
    out = net(normal(1, channels, 4, 6), torch.zeros(1, dtype=torch.float64), normal(1, cond, 4, 6))
    assert out.shape == (1, channels, 4, 6)


@pytest.mark.parametrize("which", ["state", "condition"])
@pytest.mark.parametrize("blocks", [1, 2, 5])
@torch.no_grad()
def test_a_pixel_of_the_resnet_reaches_as_far_as_its_blocks_and_no_further(blocks, which):
    net, side, at = randomised(small(FiLMResNet, blocks=blocks)), 31, 15
    x, t, lr = inputs(1, side, side)
    before = net(x, t, lr)
    (x if which == "state" else lr)[0, 1, at, at] += 1.0
    changed = (net(x, t, lr) != before).any(1)[0].nonzero()
    assert (changed - at).abs().max() == 2 + 2 * blocks
    assert len(changed) == (2 * (2 + 2 * blocks) + 1) ** 2


@torch.no_grad()
def test_the_interior_of_a_tile_is_that_of_the_whole_picture():
    net, (x, t, lr) = randomised(small(FiLMResNet, blocks=2)), inputs(1, 24, 24)
    radius = 6
    tile = net(x[..., 4:20, 4:20], t, lr[..., 4:20, 4:20])[..., radius:-radius, radius:-radius]
    torch.testing.assert_close(tile, net(x, t, lr)[..., 4 + radius : 20 - radius, 4 + radius : 20 - radius])


@pytest.mark.parametrize("cls", NETS)
@torch.no_grad()
def test_pictures_of_a_batch_do_not_see_each_other(cls):
    net, (x, t, lr) = randomised(small(cls)), inputs(3)
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1], lr[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(net(x, t, lr), alone, rtol=1e-10, atol=1e-10)


# The U-Net's blocks start at zero too, so its time reaches the output one step later.
@pytest.mark.parametrize(("cls", "steps"), [(FiLMResNet, 1), (FiLMUNet, 2)])
def test_after_the_first_steps_the_time_changes_the_output(cls, steps):
    net, (x, t, lr) = small(cls), inputs()
    train(net, steps, x, t, lr)
    with torch.no_grad():
        change = (net(x, t, lr) - net(x, t + 5, lr)).abs().max()
    assert change > 1e-4


@pytest.mark.parametrize("cls", NETS)
def test_the_condition_changes_the_output(cls):
    net, (x, t, lr) = randomised(small(cls)), inputs()
    with torch.no_grad():
        assert (net(x, t, lr) - net(x, t, lr + 0.5)).abs().max() > 1e-4


@pytest.mark.parametrize("cls", NETS)
def test_gradients_reach_every_parameter(cls):
    net, (x, t, lr) = small(cls), inputs()
    train(net, 3, x, t, lr)
    net.zero_grad()
    net(x, t, lr).square().mean().backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


@pytest.mark.parametrize("cls", NETS)
@torch.no_grad()
def test_memory_formats_give_the_same_output(cls):
    net, (x, t, lr) = randomised(small(cls)), inputs()
    last = [v.contiguous(memory_format=torch.channels_last) for v in (x, lr)]
    torch.testing.assert_close(
        net(last[0], t, last[1]), net(x.contiguous(), t, lr.contiguous()), rtol=1e-10, atol=1e-10
    )


def test_the_strides_they_declare():
    assert FiLMResNet.stride == 1
    assert FiLMUNet.stride == 2
