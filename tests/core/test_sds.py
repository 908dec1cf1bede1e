"""Score distillation sampling, and its relatives without a fake score: gradients in closed form."""

import pytest
import torch

from fewstep.distill.asd import asd_loss
from fewstep.distill.score_gradient import ByTime
from fewstep.distill.sds import BySoftError, sds_loss
from fewstep.distill.weighting import Even
from fewstep.estimate import Estimate
from fewstep.paths import RectifiedFlow

EVEN = ByTime(Even())


class Gaussian:
    """The exact estimate for data N(mean, var) on a path."""

    def __init__(self, path, mean, var):
        self.path, self.mean, self.var = path, mean, var

    def __call__(self, x, t):
        a, _, s = (v.view(-1, 1) for v in self.path.schedule(t))
        gain = a * self.var / (a**2 * self.var + s**2)
        x0 = self.mean + gain * (x - a * self.mean)
        return Estimate(x0, (x - a * x0) / s)


def test_the_gradient_of_sds_is_what_it_says():
    path, g = RectifiedFlow(), torch.Generator().manual_seed(0)
    x0 = torch.randn(3, 5, dtype=torch.float64, generator=g).requires_grad_()
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    eps = torch.randn(3, 5, dtype=torch.float64, generator=g)
    net = Gaussian(path, 1.0, 0.25)
    x_t = path.sample(x0, eps, t).detach()
    (grad,) = torch.autograd.grad(sds_loss(x0, x_t, t, net, path, EVEN).sum(), x0)
    a, _, s = (v.view(-1, 1) for v in path.schedule(t))
    torch.testing.assert_close(grad, (s / a) * (net(x_t, t).eps - eps) / 5, rtol=1e-9, atol=1e-12)


def test_sds_vanishes_on_average_over_the_data_of_a_perfect_teacher():
    path, net, g = RectifiedFlow(), Gaussian(RectifiedFlow(), 1.0, 0.25), torch.Generator().manual_seed(0)
    x0 = (1.0 + 0.5 * torch.randn(200_000, 1, dtype=torch.float64, generator=g)).requires_grad_()
    t = torch.full((200_000,), 0.5, dtype=torch.float64)
    x_t = path.sample(x0, torch.randn(x0.shape, dtype=torch.float64, generator=g), t).detach()
    (grad,) = torch.autograd.grad(sds_loss(x0, x_t, t, net, path, EVEN).sum(), x0)
    assert abs(grad.mean()) < 5 * grad.std() / len(grad) ** 0.5
    # Elsewhere it points to the mean, by (1 - gain a) of the way: the closed form for a fixed sample.
    off = torch.full_like(x0, 3.0, requires_grad=True)
    x_t = path.sample(off, torch.randn(x0.shape, dtype=torch.float64, generator=g), t).detach()
    (grad,) = torch.autograd.grad(sds_loss(off, x_t, t, net, path, EVEN).sum(), off)
    gain = 0.5 * 0.25 / (0.25 * 0.25 + 0.25)
    assert grad.mean().item() == pytest.approx(2 * (1 - gain * 0.5), rel=0.01)


def csd_gradient(eps, w, ratio_later=0.0):
    path, x0 = RectifiedFlow(), torch.full((2, 3), 0.4, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.3, 0.6], dtype=torch.float64)
    c, u = Gaussian(path, 1.0, 0.25), Gaussian(path, -0.5, 0.25)
    guided = lambda x, t: c(x, t).map(lambda a, b: b + w * (a - b), u(x, t))
    later = (t + ratio_later * t).clamp_max(1)
    return torch.autograd.grad(asd_loss(x0, eps, t, later, guided, c, path, EVEN).sum(), x0)[0]


def test_csd_knows_no_noise_and_vanishes_without_guidance():
    g = torch.Generator().manual_seed(0)
    eps, other = torch.randn(2, 2, 3, dtype=torch.float64, generator=g)
    torch.testing.assert_close(csd_gradient(eps, 3.0), csd_gradient(other, 3.0), rtol=1e-9, atol=1e-12)
    assert csd_gradient(eps, 3.0).abs().min() > 0.01
    assert csd_gradient(eps, 1.0).abs().max() < 1e-14
    assert csd_gradient(eps, 1.0, 0.1).abs().max() > 1e-3


def test_the_soft_weight():
    x0, wanted = torch.zeros(2, 4), torch.tensor([[0.1] * 4, [0.4] * 4])
    weight = BySoftError(0.1)(x0, wanted, torch.zeros(2), RectifiedFlow())
    torch.testing.assert_close(weight, torch.tensor([5.0, 2.0]))
