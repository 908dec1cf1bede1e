"""Correcting the reverse process: where its gradients flow, and the mean that it converges to on an exact conditional world."""

import pytest
import torch
from torch import nn
from worlds import normal

from fewstep.denoiser import Denoiser
from fewstep.distances import SquaredL2
from fewstep.distill.line import step
from fewstep.distill.reverse_correction import ReverseCorrection
from fewstep.distill.rollout import LastStep, RandomStep, Rollout
from fewstep.generator import Generator, Prepared
from fewstep.grids import Uniform
from fewstep.paths import OUVE, SBVE, RectifiedFlow
from fewstep.prediction import X0
from fewstep.solvers import DDIM, GammaSampling

SPREAD = 0.3  # of x0 around y


class Affine(nn.Module):
    """x0 = a_k x + b_k c + m_k with weights of its own for the first and for the second half of the times."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.5, 0.4], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([0.2, 0.3], dtype=torch.float64))
        self.m = nn.Parameter(torch.tensor([0.1, -0.2], dtype=torch.float64))

    def forward(self, x, t, c):
        k = (t > 0.75).long()
        a, b, m = (v[k][:, None] for v in (self.a, self.b, self.m))
        return a * x + b * c + m


class Anchored(Generator):
    def prepare(self, batch):
        return Prepared(batch["x0"], {"c": batch["y"]}, batch["y"] if self.denoiser.path.anchored else None)


def method(path, steps=2, solver=None, **kwargs):
    teacher = Anchored(Denoiser(Affine(), path, X0()), DDIM(), Uniform(), 8)
    return ReverseCorrection(teacher, 10, steps=steps, solver=solver, **kwargs)


def batch(n, seed=0):
    y = 1.0 + 2.0 * normal(n, 1, seed=seed)
    return {"x0": y + 0.5 + SPREAD * normal(n, 1, seed=seed + 1), "y": y}


@pytest.mark.parametrize("path", [RectifiedFlow(), OUVE(), SBVE(k=2.6, c=0.2)], ids=["rf", "ouve", "sbve"])
def test_the_loss_and_its_gradient_are_those_of_the_last_evaluation_alone(path):
    model, data = method(path, solver=DDIM()), batch(5)
    torch.manual_seed(3)
    loss = model.loss(data)["correction"]
    loss.backward()
    net, x0, cond = model.student.denoiser.net, data["x0"], {"c": data["y"]}
    y = data["y"] if path.anchored else None
    torch.manual_seed(3)
    x, (t, s, _) = path.start(torch.randn_like(x0), y), Uniform()(path, 2)
    first = net(x, t.expand(5), **cond).detach()
    x = step(path, x, first, t.expand(5), s.expand(5), y)
    by_hand = SquaredL2()(net(x, s.expand(5), **cond), x0).mean()
    torch.testing.assert_close(loss, by_hand)
    for own, p in zip(torch.autograd.grad(by_hand, list(net.parameters())), net.parameters(), strict=True):
        torch.testing.assert_close(p.grad, own)
        assert p.grad[0] != 0  # of the second half of the times
        assert p.grad[1] == 0  # the first evaluation


def test_any_exit_teaches_every_step():
    model, reached = method(OUVE(), rollout=Rollout(RandomStep())), torch.zeros(2)
    for seed in range(12):
        torch.manual_seed(seed)
        model.zero_grad()
        model.loss(batch(5))["correction"].backward()
        reached += (model.student.denoiser.net.a.grad != 0).float()
    assert reached.min() > 0
    assert reached.sum() == 12  # one at a time


@pytest.mark.parametrize("path", [RectifiedFlow(), OUVE(sigma_max=2.0)], ids=["rf", "ouve"])
@pytest.mark.parametrize("steps", [1, 2])
def test_it_converges_to_the_mean_given_the_condition(path, steps):
    """The start holds nothing of x0 that the condition lacks, so neither do the states: E[x0 | state, y] = y + 1/2, whatever the noise."""
    model = method(path, steps, rollout=Rollout(RandomStep()))
    optimizer = torch.optim.Adam(model.student.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 1500)
    torch.manual_seed(0)
    for i in range(1500):
        optimizer.zero_grad()
        model.loss(batch(512, seed=2 * i))["correction"].backward()
        optimizer.step()
        schedule.step()
    data = batch(2000, seed=9999)
    x0, cond, y = model.student.prepare(data)
    with torch.no_grad():
        own = model.student.generate(normal(2000, 1, seed=5), cond, y)
    assert (own - data["y"] - 0.5).square().mean().sqrt() < 0.1 * SPREAD
    # So few steps have lost the variety of x0 given y; its squared error is the least that there is.
    assert SquaredL2()(own, x0).mean() == pytest.approx(SPREAD**2, rel=0.1)


def test_it_begins_as_its_teacher_and_is_sampled_with_fresh_noise():
    model = method(OUVE())
    assert model.student.solver == GammaSampling(1.0)
    assert model.rollout.exit == LastStep()
    for p, q in zip(model.student.parameters(), model.teacher.parameters(), strict=True):
        assert torch.equal(p, q)
    assert not any(p.requires_grad for p in model.teacher.parameters())
    figures = model.evaluate(model.student, batch(6))
    assert figures["correction"].shape == (6,)
