"""AccVideo's adversary: the student's own states beside the teacher's at the same times, each judged by heads of its time."""

import pytest
import torch
from torch import nn
from worlds import normal

from fewstep.class_generator import ClassGenerator
from fewstep.denoiser import Denoiser
from fewstep.discriminators import Adversary, GlobalHead, Hinge
from fewstep.discriminators.discriminator import Discriminator, features
from fewstep.discriminators.staged import StagedDiscriminator
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.key_points import KeyPoints
from fewstep.distill.key_points_gan import KeyPointsGAN
from fewstep.distill.pool import PairPool
from fewstep.generator import Generator
from fewstep.grids import Uniform
from fewstep.nets import MLP
from fewstep.paths import RectifiedFlow
from fewstep.prediction import U
from fewstep.solvers import DDIM

FLOW = RectifiedFlow()
ADVERSARY = Adversary(["rest.0"], GlobalHead(width=8), Hinge(), weight=0.3)
TIMES = Uniform()(FLOW, 5)
# x at TIMES[k] is SCALE[k] z: what a student has to do in its steps.
SCALE = torch.tensor([1.0, 0.7, 0.9, 0.4, 0.3, 0.1], dtype=torch.float64)


class Walk(nn.Module):
    """The velocity that takes x to x SCALE[k + 1]/SCALE[k] in a step from TIMES[k]."""

    dim = 2

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x, t):
        k = (t[:, None] - TIMES).abs().argmin(1)
        u = (1 - SCALE[k + 1] / SCALE[k]) / (TIMES[k] - TIMES[k + 1])
        return self.one * u[:, None] * x


def teacher(seed=0, **kwargs):
    torch.manual_seed(seed)
    return Generator(Denoiser(MLP(2, 16, 2, **kwargs).double(), FLOW, U()), DDIM(), Uniform(), 10)


def gan(student=None, **kwargs):
    model = KeyPointsGAN(teacher(), 10, ADVERSARY, student=student or teacher(1), steps=5, **kwargs)
    model.critics.double()
    return model


def grads(loss, *networks):
    """For each network, whether this loss moves it."""
    found = [torch.autograd.grad(loss, list(n.parameters()), allow_unused=True, retain_graph=True) for n in networks]
    return [any(g is not None and g.abs().max() > 0 for g in each) for each in found]


def test_a_student_that_walks_the_stored_states_is_the_teacher_at_every_time():
    model = gan(Generator(Denoiser(Walk(), FLOW, U()), DDIM(), Uniform(), 5), stored=tuple(TIMES[1:-1].tolist()))
    z = normal(200, 2)
    states = SCALE[:, None] * z[:, None]
    drawn = model.drawn({"noise": z, "target": states[:, -1], "states": states[:, 1:-1]})
    torch.testing.assert_close(drawn.x0, states)
    assert not torch.equal(drawn.noise, z), "the adversary compares laws: its samples are the student's own"
    drawn = drawn._replace(noise=z)
    torch.manual_seed(0)
    reached = model.reach(drawn, {})
    judge, fake, real = model.judged(reached, drawn)
    k = 1 + (reached.t[:, None] - TIMES[:-1]).abs().argmin(1)
    assert set(k.tolist()) == {1, 2, 3, 4, 5}
    torch.testing.assert_close(judge.t, TIMES[k])
    torch.testing.assert_close(real, states[torch.arange(200), k])
    torch.testing.assert_close(fake, real)
    terms = model.student_terms(reached, drawn, {})
    assert terms["chord"] < 1e-24
    torch.testing.assert_close(
        terms["adversarial"], ADVERSARY.weight * ADVERSARY.loss.student(judge(real), real).mean()
    )


def test_each_network_learns_from_its_own_terms():
    model = gan()
    drawn = model.drawn({"x0": normal(32, 2)})
    reached = model.reach(drawn, {})
    own, theirs = model.student_terms(reached, drawn, {}), model.critic_terms(reached, drawn, {})
    assert grads(own["adversarial"], model.student) == [True]
    assert grads(own["chord"], model.student, model.heads) == [True, False]
    assert grads(theirs["critic"], model.heads) == [True]
    model.loss({"x0": normal(32, 2)})["critic"].backward()
    assert all(p.grad is None for p in model.student.parameters())


def test_the_gradient_passes_through_the_last_step_alone():
    model = gan()
    drawn = model.drawn({"x0": normal(32, 2)})
    reached = model.reach(drawn, {})
    assert not reached.x.requires_grad
    assert reached.estimate.x0.requires_grad
    assert not reached.wanted.requires_grad


def test_the_chord_is_that_of_key_points():
    model, plain = gan(), KeyPoints(teacher(), 10, student=teacher(1), steps=5)
    torch.manual_seed(3)
    states, cond, y = plain.trajectories({"x0": normal(32, 2)})
    after = torch.get_rng_state()
    wanted = plain.chord(states, cond, y).mean()
    torch.set_rng_state(after)
    torch.testing.assert_close(model.chord(states, cond, y).mean(), wanted, rtol=0, atol=0)


def test_every_time_has_heads_of_its_own():
    net = teacher()
    stages = [Discriminator.on(net, ["first", "rest.0"], GlobalHead(width=8)).double() for _ in TIMES[1:]]
    judge, x, k = StagedDiscriminator(TIMES[1:], stages), normal(40, 2), torch.arange(40) % 5
    t = TIMES[1:][k] + 1e-9  # times are met but for rounding
    found = judge(net.denoiser, x, t, {})
    one_by_one = [stages[j](net.denoiser, x[i : i + 1], t[i : i + 1], {}) for i, j in enumerate(k.tolist())]
    torch.testing.assert_close(found, torch.cat(one_by_one))
    assert len(judge.heads) == 10
    assert features(net.denoiser, judge.layers, x, t, {})[0].shape == (40, 16)


def test_the_judge_is_not_told_what_the_student_alone_knows():
    torch.manual_seed(0)
    net = ClassGenerator(Denoiser(MLP(2, 16, 2, classes=3).double(), FLOW, U()), DDIM(), Uniform(), 10, shape=(2,))
    pool = PairPool(guidance=TeacherGuidance(1.0, 3.0, told=True))
    model = KeyPointsGAN(net, 10, ADVERSARY, steps=5, pool=pool)
    model.double()
    drawn = model.drawn({"x0": normal(8, 2), "label": torch.arange(8) % 3})
    assert set(drawn.cond) == {"label", "w"}
    judge, fake, real = model.judged(model.reach(drawn, drawn.cond), drawn)
    assert set(judge.cond) == {"label"}
    assert judge(fake).shape == judge(real).shape


def test_states_are_not_judged_by_a_network_of_clean_samples():
    with pytest.raises(ValueError, match="not by a network of clean samples"):
        gan(network=nn.Linear(2, 2))
