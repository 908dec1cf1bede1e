"""PCM's adversary: what it is shown, whose gradient is whose, and that a consistent student stays where it is."""

import copy

import pytest
import torch
from worlds import normal

from fewstep.denoiser import Denoiser
from fewstep.discriminators import R1, Adversary, BoundedHinge, GlobalHead
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.intervals import Adjacent
from fewstep.distill.line import secant
from fewstep.distill.segmented import SegmentedConsistency
from fewstep.distill.segmented_gan import SegmentedGAN, diffused_state
from fewstep.distill.segments import Segments, SegmentStages
from fewstep.generator import Generator
from fewstep.grids import Uniform
from fewstep.nets import MLP
from fewstep.paths import EDM, VP, RectifiedFlow, ResidualShift, Trig, expand
from fewstep.prediction import X0, U
from fewstep.solvers import DDIM
from fewstep.toy import gaussian

FOUR = Segments(4)
ADVERSARY = Adversary(["rest.0"], GlobalHead(width=8), BoundedHinge(), weight=0.1)


def teacher(seed=0):
    torch.manual_seed(seed)
    return Generator(Denoiser(MLP(2, 16, 2).double(), RectifiedFlow(), U()), DDIM(), Uniform(), 4)


def gan(adversary=ADVERSARY, segments=FOUR, **kwargs):
    model = SegmentedGAN(
        teacher(), 10, adversary, segments=segments, intervals=Adjacent(16), student=teacher(1), **kwargs
    )
    model.critics.double()
    return model


def drawn(model, n=64):
    return model.drawn({"x0": normal(n, 2)})


@pytest.mark.parametrize("path", [RectifiedFlow(), VP(), EDM(), Trig(), ResidualShift()], ids=repr)
def test_states_noised_on_have_the_law_of_the_path(path):
    n, t_end = 200, path.t_max
    e = path.t_min + (t_end - path.t_min) * torch.linspace(0, 0.6, n, dtype=torch.float64)
    t = e + (t_end - e) * torch.linspace(1, 0.1, n, dtype=torch.float64)
    x0, y = normal(n, 2), normal(n, 2, seed=1)
    zero = torch.zeros_like(x0)
    (_, _, s_e), (a_t, _, s_t) = path.schedule(e), path.schedule(t)

    def mean_of(x0, t):
        a, b, _ = (expand(v, x0) for v in path.schedule(t))
        return a * x0 + b * y

    # The mean of the path stays its mean; the variances of what x_e has and of what is new add up to the path's.
    mean = diffused_state(path, mean_of(x0, e), e, t, zero, y)
    torch.testing.assert_close(mean, mean_of(x0, t))
    new = diffused_state(path, zero, e, t, torch.ones_like(x0)) - diffused_state(path, zero, e, t, zero)
    old = diffused_state(path, expand(s_e, x0).expand_as(x0), e, t, zero)
    torch.testing.assert_close(new.square() + old.square(), expand(s_t, x0).square().expand_as(x0))
    assert (a_t >= 0).all()
    torch.testing.assert_close(diffused_state(path, x0, e, e, normal(n, 2, seed=2), y), x0)
    # In two stages as in one.
    m = (e + t) / 2
    twice = diffused_state(path, diffused_state(path, x0, e, m, zero, y), m, t, zero, y)
    torch.testing.assert_close(twice, diffused_state(path, x0, e, t, zero, y))


def test_the_distance_is_segmented_consistencys_bit_for_bit():
    model = gan()
    x0, cond, y, w, _ = batch = drawn(model)
    torch.manual_seed(3)
    wanted = model.compare(*model.states(x0, cond, y, w), cond, y).mean()
    torch.manual_seed(3)
    reached = model.reach(batch, cond)
    assert torch.equal(model.student_terms(reached, batch, {})["consistency"], wanted)
    plain = SegmentedConsistency(teacher(), 10, segments=Segments(4), intervals=Adjacent(16), student=teacher(1))
    torch.manual_seed(3)
    assert torch.equal(plain.compare(*plain.states(x0, cond, y, w), cond, y).mean(), wanted)


@pytest.mark.parametrize("segments", [Segments(4), Segments(1), SegmentStages((4, 2, 1))], ids=repr)
def test_the_adversary_looks_within_the_segment_at_ends_noised_from_there(segments):
    model = gan(segments=segments)
    batch = drawn(model, 512)
    for done in (0, 4, 9):
        model.done = done
        now = segments.at(model.progress)
        reached = model.reach(batch, batch.cond)
        judge, fake, real = model.judged(reached, batch)
        t = judge.t
        e, path = model.end(reached.t), model.student.denoiser.path
        begin = now.begin(reached.t, path)
        assert ((e <= t) & (t <= begin) & (reached.t <= begin + 1e-9)).all()
        torch.testing.assert_close(begin - e, torch.full_like(e, 1 / now.k))
        share = (t - e) / (begin - e)
        assert abs(share.mean() - 0.5) < 5 * (1 / 12 / 512) ** 0.5
        # Without their noise, which is of its own for both, they are the two ends.
        for x, end in ((fake, model.own(reached, None)), (real, reached.target)):
            a_e, a_t = (path.schedule(v)[0] for v in (e, t))
            s_e, s_t = (path.schedule(v)[2] for v in (e, t))
            noise = (x - expand(a_t / a_e, x) * end) / expand((s_t**2 - (a_t / a_e * s_e) ** 2).sqrt(), x)
            assert abs(noise.mean()) < 5 / 1024**0.5
            assert abs(noise.std() - 1) < 5 / 2048**0.5


@pytest.mark.parametrize("k", [1, 4, 16])
def test_both_sides_have_one_law_where_the_student_is_consistent(k):
    """The exact flow map of a Gaussian: own end and target are the same states, noised by independent draws alone."""
    world = gaussian(RectifiedFlow(), 1.5, 0.5, dim=2)
    segments = Segments(k)
    exact = ExactEnds(world, segments)
    given = Generator(Denoiser(exact, world.path, X0()), DDIM(), Uniform(), 4)
    judge = Adversary(["inside"], GlobalHead(width=8), BoundedHinge())
    model = SegmentedGAN(
        given,
        10,
        judge,
        segments=segments,
        intervals=Adjacent(16),
        step=lambda d, p, x, t, s, y: world.flow_map(x, t, s),
    )
    batch = model.drawn({"x0": world.draw(4000, torch.Generator().manual_seed(0))})
    reached = model.reach(batch, {})
    torch.testing.assert_close(model.own(reached, None), reached.target)
    judge, fake, real = model.judged(reached, batch)
    t = judge.t
    # And that law is the path's at t'.
    for x in (fake, real):
        a, _, s = (expand(v, x) for v in world.path.schedule(t))
        z = (x - 1.5 * a) / (0.25 * a * a + s * s).sqrt()
        assert abs(z.mean()) < 5 / 8000**0.5
        assert abs(z.std() - 1) < 5 / 16000**0.5


class ExactEnds(torch.nn.Module):
    """The x0 whose step to the end of the segment lands on the flow map."""

    def __init__(self, world, segments):
        super().__init__()
        self.world, self.segments, self.dim = world, segments, 2
        self.inside = torch.nn.Linear(2, 2).double()

    def forward(self, x, t):
        e, path = self.segments.end(t, self.world.path), self.world.path
        return secant(path, x, t, self.world.flow_map(x, t, e), e).x0 + 0 * self.inside(x).sum()


def test_student_and_critic_learn_by_their_own_terms_alone():
    model = gan(Adversary(["rest.0"], GlobalHead(width=8), BoundedHinge(), R1(weight=0.1), weight=0.1))
    batch = drawn(model)
    reached = model.reach(batch, batch.cond)
    frozen = copy.deepcopy(model.teacher.denoiser.net.state_dict())
    terms = model.loss({"x0": batch.x0})
    assert set(terms) == {"consistency", "adversarial", "critic", "penalty"}
    sum(terms.values()).backward()
    assert all(p.grad is None for p in model.teacher.denoiser.net.parameters())
    assert all(torch.equal(v, frozen[k]) for k, v in model.teacher.denoiser.net.state_dict().items())
    assert all(p.grad is None for p in model.target.net.parameters())
    assert not reached.target.requires_grad
    student, critic = ([p for p in m.parameters() if p.requires_grad] for m in (model.student, model.critics))
    terms = model.loss({"x0": batch.x0})
    for name in ("consistency", "adversarial"):
        found = torch.autograd.grad(terms[name], [*student, *critic], allow_unused=True, retain_graph=True)
        assert all(g is None for g in found[len(student) :])
        assert any(g is not None and g.abs().max() > 0 for g in found[: len(student)])
    for name in ("critic", "penalty"):
        found = torch.autograd.grad(terms[name], [*student, *critic], allow_unused=True, retain_graph=True)
        assert all(g is None for g in found[: len(student)])
        assert any(g is not None and g.abs().max() > 0 for g in found[len(student) :])


def test_the_student_waits_for_its_turn():
    model = gan(ratio=2, guidance=TeacherGuidance())
    names = []
    for done in range(4):
        model.done = done
        names.append(set(model.loss({"x0": normal(8, 2)})))
    assert names == [{"consistency", "adversarial", "critic"}, {"critic"}] * 2


def test_networks_of_clean_samples_are_refused():
    with pytest.raises(ValueError, match="not by a network of clean samples"):
        gan(network=torch.nn.Linear(2, 2))
