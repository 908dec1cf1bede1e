"""SplitMeanFlow: its identity, its fixed point, its limits."""

import pytest
import torch
from test_distill_jump import ExactJump, Tanh, close, exact_teacher, generator, gradients, jumper
from worlds import normal, uniform

from fewstep.distill.jump_times import TimePairs
from fewstep.distill.mean_flow import mean_flow_target
from fewstep.distill.shortcut import shortcut_target
from fewstep.distill.split_mean_flow import SplitMeanFlow, split_target
from fewstep.distill.velocity import OfTeacher
from fewstep.paths import RectifiedFlow
from fewstep.toy import gaussian

FLOW = RectifiedFlow()
WORLD = gaussian(FLOW, 0.7, 0.6, dim=2)


def times(n):
    return uniform(n, low=0.5, high=1.0), uniform(n, low=0.05, high=0.45)


def test_the_average_of_the_exact_flow_is_that_of_its_parts():
    student, x = jumper(ExactJump(WORLD)), normal(16, 2)
    t, r = times(16)
    close(split_target(student.velocity, x, t, r, uniform(16)), student.velocity(x, t, r))


def test_equal_parts_are_the_shortcut():
    student, x = jumper(Tanh(scalars={"s": 1.0})), normal(16, 2)
    t, r = times(16)
    half = torch.full((16,), 0.5, dtype=torch.float64)
    close(split_target(student.velocity, x, t, r, half), shortcut_target(student.velocity, x, t, r, half > 1))


def test_a_vanishing_first_part_is_mean_flow():
    """U = l v + (1 - l) U(x_m, m, r) says U = v - (t - r) dU/dt for l -> 0, if U(x_t, t, t) = v."""
    student, x = jumper(Tanh(scalars={"s": 1.0})), normal(16, 2)
    t, r = times(16)
    own = student.velocity(x, t, r)
    v = student.velocity(x, t, t)
    wanted = mean_flow_target(student.velocity, x, v, t, r) - own
    gaps = []
    for l in (1e-3, 1e-4):
        share = torch.full((16,), l, dtype=torch.float64)
        gaps.append(((split_target(student.velocity, x, t, r, share) - own) / l - wanted).norm().item())
    assert gaps[1] < 1e-2 * wanted.norm().item()
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.1)


def test_a_student_that_is_the_flow_has_zero_loss_and_gradient():
    model = SplitMeanFlow(exact_teacher(WORLD), 1, jumper(ExactJump(WORLD)), TimePairs(equal=0.5), OfTeacher())
    loss = model.loss({"x0": WORLD.draw(64)})["split_mean_flow"]
    assert loss.item() < 1e-20
    assert all(g is None or g.abs().max() < 1e-9 for g in gradients(loss, model.student))
    with torch.no_grad():
        model.student.denoiser.net.weight.mul_(1.1)
    assert model.loss({"x0": WORLD.draw(64)})["split_mean_flow"] > 1e-3


def test_without_intervals_it_is_flow_matching():
    model = SplitMeanFlow(generator(Tanh()), 1, jumper(Tanh(scalars={"s": 1.0})), TimePairs(equal=1.0))
    x0 = normal(16, 2)
    torch.manual_seed(0)
    ours = model.loss({"x0": x0})["split_mean_flow"]
    torch.manual_seed(0)
    eps = torch.randn_like(x0)
    t = model.times(16, FLOW)[0]
    out = model.student.denoiser.net(FLOW.sample(x0, eps, t), t, s=t)
    close(ours, (out - (eps - x0)).square().mean())


def test_only_one_evaluation_has_a_gradient():
    student = jumper(Tanh(scalars={"s": 1.0}))
    model = SplitMeanFlow(generator(Tanh()), 1, student, TimePairs(equal=0.5))
    model.loss({"x0": normal(16, 2)})["split_mean_flow"].backward()
    assert student.denoiser.net.calls == [8, 8, 16]
