"""The consistency family on worlds whose flow maps are known: distillation, training, truncated, latent, segmented, sub-path."""

import dataclasses
import inspect
import math

import jsonargparse
import lightning as L
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader
from worlds import normal, uniform

from fewstep.artifacts import load, save
from fewstep.class_generator import ClassGenerator
from fewstep.denoiser import Denoiser
from fewstep.distances import ElementwiseHuber, PseudoHuber, SquaredL2
from fewstep.distill.consistency import ConsistencyDistillation, consistency_loss
from fewstep.distill.consistency_training import ConsistencyTraining
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.intervals import Adjacent, ContinuousIntervals, Doubling, Intervals, LogNormalBins, SquareRoot
from fewstep.distill.segmented import SegmentedConsistency
from fewstep.distill.segments import Segments, SegmentStages
from fewstep.distill.slam import SLAM, between
from fewstep.distill.tcm import TCM
from fewstep.distill.teacher_step import TeacherStep
from fewstep.distill.weighting import (
    Even,
    InverseInterval,
    InverseNoise,
    InverseOutputScale,
    MaxSNR,
    MinSNR,
    SignalSNR,
    SNRPlusOne,
)
from fewstep.estimate import Estimate
from fewstep.generator import Generator
from fewstep.grids import Explicit, Karras, Uniform
from fewstep.nets import MLP
from fewstep.paths import EDM, VP, RectifiedFlow, ResidualShift, Trig, expand
from fewstep.prediction import X0, Eps, U, V
from fewstep.solvers import DDIM, Ancestral, Heun
from fewstep.times import LogNormalTimes, LogStudentTimes, UniformTimes
from fewstep.toy import gaussian
from fewstep.toy_data import RingData
from fewstep.train.checkpoints import Checkpoints
from fewstep.train.loader import StatefulLoader

FLOW = RectifiedFlow()
PATHS = [FLOW, Trig(), EDM()]


class Net(nn.Module):
    """weight * f(x, t, **cond), in float64; weight = 1."""

    def __init__(self, f):
        super().__init__()
        self.f, self.weight = f, nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x, t, **cond):
        return self.weight * self.f(x, t, **cond)


class ExactStep:
    """The flow map of a world in place of a teacher's step."""

    def __init__(self, world):
        self.world, self.seen = world, []

    def __call__(self, teacher, path, x, t, s, y=None):
        self.seen.append((t, s))
        return self.world.flow_map(x, t, s)


class Given(Intervals):
    """One interval for all."""

    def __init__(self, t, s):
        object.__setattr__(self, "ends", (t, s))

    def __call__(self, n, path, progress=0.0):
        return tuple(torch.full((n,), v, dtype=torch.float64) for v in self.ends)


def world_on(path):
    return gaussian(path, 1.5, 0.5, dim=2)


def end_of(world):
    """The consistency function."""
    return lambda x, t: world.flow_map(x, t, torch.full_like(t, world.path.t_min))


def generator(net, path=FLOW, prediction=None, steps=4):
    return Generator(Denoiser(net, path, prediction or X0()), Heun(), Uniform(), steps)


def mlp(prediction=None, path=FLOW, seed=0, **kwargs):
    torch.manual_seed(seed)
    return generator(MLP(2, 16, 2, **kwargs).double(), path, prediction or U())


def data(n=64, dim=2, seed=5):
    return {"x0": normal(n, dim, seed=seed)}


def run(model, batch=None, seed=0):
    """The loss terms of one batch, and all gradients by name."""
    torch.manual_seed(seed)
    model.zero_grad()
    terms = model.loss(batch or data())
    sum(terms.values()).backward()
    grads = {k: p.grad for k, p in model.student.named_parameters() if p.grad is not None}
    return {k: v.detach() for k, v in terms.items()}, grads


def loss_of(model, batch=None, seed=0):
    terms, _ = run(model, batch, seed)
    return sum(terms.values()).item()


def assert_same(ours, theirs):
    """Bitwise, for what both have."""
    (terms, grads), (other, others) = ours, theirs
    assert terms.keys() == other.keys()
    assert all(torch.equal(terms[k], other[k]) for k in terms)
    assert others and others.keys() <= grads.keys()
    assert all(torch.equal(grads[k], others[k]) for k in others)


def distillation(path=FLOW, net=None, cls=ConsistencyDistillation, **kwargs):
    """A student that is exact on a Gaussian world, with exact teacher steps."""
    world = world_on(path)
    kwargs = {"step": ExactStep(world), "intervals": Adjacent(8), "distance": SquaredL2()} | kwargs
    return cls(generator(net or Net(end_of(world)), path), 10, **kwargs)


# --- the loss ----------------------------------------------------------------------------------------------------


def test_gradient_flows_through_the_noisier_state_alone():
    theta = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    x_t, x_s, t, s = normal(8, 3), normal(8, 3, seed=1), uniform(8, low=0.5), uniform(8, high=0.4, low=0.1)

    def f(x, t):
        return theta * x * (1 + t[:, None])

    loss = consistency_loss(f, f, x_t, t, x_s, s, torch.zeros(8), SquaredL2())
    (ours,) = torch.autograd.grad(loss.sum(), theta)
    d = (f(x_t, t) - f(x_s, s)).detach()
    torch.testing.assert_close(loss, d.square().mean(1))
    torch.testing.assert_close(ours, (2 * d * x_t * (1 + t[:, None])).mean(1).sum())


def test_at_the_end_the_target_is_the_state_itself():
    x, t = normal(4, 2), torch.full((4,), 0.5, dtype=torch.float64)
    s = torch.tensor([0.0, 0.1, 0.2, 0.3], dtype=torch.float64)
    end = torch.tensor([0.0, 0.0, 0.2, 0.0], dtype=torch.float64)

    def lies(x, t):
        return torch.full_like(x, math.nan) if (t == 0.5).all() else torch.full_like(x, 7.0)

    targets = []
    consistency_loss(lies, lies, x, t, x, s, end, lambda a, b: targets.append(b) or a.sum(1))
    torch.testing.assert_close(targets[0][[0, 2]], x[[0, 2]], rtol=0, atol=0)
    assert (targets[0][[1, 3]] == 7.0).all()


def test_dropout_is_the_same_in_both_networks_and_new_each_time():
    drop, x, t = nn.Dropout(0.5), normal(64, 4), torch.ones(64)

    def f(x, t):
        return drop(x)

    def loss():
        return consistency_loss(f, f, x, t, x, t, 0 * t, SquaredL2())

    assert loss().max() == 0
    torch.manual_seed(0)
    assert not torch.equal(f(x, t), f(x, t))
    torch.manual_seed(0)
    loss()
    after = torch.rand(4)
    torch.manual_seed(0)
    f(x, t)
    assert torch.equal(after, torch.rand(4))  # as if there were one network


# --- distillation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("mu", [0.0, 0.9])
def test_the_exact_consistency_function_is_a_fixed_point(path, mu):
    world, model = world_on(path), distillation(path, mu=mu, distance=PseudoHuber())
    batch = {"x0": world.draw(64, torch.Generator().manual_seed(0))}
    terms, grads = run(model, batch)
    assert terms["consistency"] < 1e-20
    assert all(g.abs().max() < 1e-9 for g in grads.values())
    with torch.no_grad():
        model.student.denoiser.net.weight.mul_(1.01)
    assert loss_of(model, batch) > 1e-5


@pytest.mark.parametrize(("solver", "ratio"), [(DDIM(), 4), (Heun(), 8)])
def test_the_error_of_a_teacher_step_has_its_order(solver, ratio):
    world, errors = world_on(FLOW), []
    for dt in (0.1, 0.05, 0.025):
        model = ConsistencyDistillation(
            generator(Net(lambda x, t: world(x, t).x0)),
            1,
            student=generator(Net(end_of(world))),
            step=TeacherStep(solver),
            intervals=Given(0.6, 0.6 - dt),
            distance=SquaredL2(),
        )
        errors.append(loss_of(model) ** 0.5)
    assert errors[0] / errors[1] == pytest.approx(ratio, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(ratio, rel=0.1)


def test_targets_follow_the_student_slowly_and_are_part_of_checkpoints():
    model, model0 = (ConsistencyDistillation(mlp(), 10, mu=mu) for mu in (0.9, 0.0))
    old = [p.clone() for p in model.target.net.parameters()]
    with torch.no_grad():
        for p in (*model.student.parameters(), *model0.student.parameters()):
            p.add_(1.0)
    model.after_step()
    model0.after_step()
    for before, now in zip(old, model.target.net.parameters(), strict=True):
        torch.testing.assert_close(now, before + 0.1)
        assert not now.requires_grad
    assert model0.target.net is model0.student.denoiser
    assert any(k.startswith("target.average.") for k in model.state_dict())
    assert not any(k.startswith("target.") for k in model0.state_dict())
    assert all(p.grad is None for p in model.teacher.parameters())


def test_a_curriculum_slows_the_average_as_consistency_models_say():
    """mu(k) = exp(s_0 log(mu_0)/N(k))."""
    model = ConsistencyTraining(mlp(), 100, intervals=Adjacent(SquareRoot(2, 150)), mu=0.9)
    for done in (0, 37, 99):
        model.done = done
        model.after_step()
        points = math.ceil(math.sqrt(done / 100 * (151**2 - 4) + 4) - 1) + 1
        assert model.target.mu == pytest.approx(math.exp(2 * math.log(0.9) / points), rel=1e-12)


def test_the_weight_multiplies_the_distance():
    class Eight(Even):
        def __call__(self, t, s, path):
            assert (s < t).all()
            return 8 * super().__call__(t, s, path)

    plain, weighed = (distillation(net=mlp().denoiser.net, weighting=w) for w in (Even(), Eight()))
    torch.testing.assert_close(loss_of(weighed), 8 * loss_of(plain))


def test_anchors_reach_teacher_and_student():
    """On an anchored path the exact end point, with the anchor, is a fixed point too."""
    path, y = ResidualShift(steps=6, kappa=0.5), normal(16, 2, seed=9)
    world = gaussian(path, 1.5, 0.5, dim=2, y=y)

    class Anchored(Generator):
        def prepare(self, batch):
            return super().prepare(batch)._replace(y=y)

    net = Denoiser(Net(end_of(world)), path, X0())
    teacher = Anchored(net, DDIM(), Uniform(), 4)
    for k in (1, 2):
        exact = Net(lambda x, t, k=k: segment_estimate(world, Segments(k), x, t, y))
        student = Anchored(Denoiser(exact, path, X0()), DDIM(), Uniform(), 4)
        model = SegmentedConsistency(
            teacher, 1, Segments(k), student=student, step=ExactStep(world), intervals=Adjacent(6), distance=SquaredL2()
        )
        assert loss_of(model, data(16)) < 1e-20


# --- told guidance: LCM ------------------------------------------------------------------------------------------

MODES = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.5, 0.5]], dtype=torch.float64)


def classes(f, **kwargs):
    """A generator of three classes whose network computes f(x, t, label, ...)."""
    net = Net(f)
    net.classes = 3
    return ClassGenerator(Denoiser(net, FLOW, X0()), Heun(), Uniform(), 60, **kwargs)


def class_teacher():
    """Classes N(m, 0.5^2), and N(0, 0.5^2) in place of their mixture: guidance w then gives N(w m, 0.5^2)."""
    centred, means = gaussian(FLOW, 0.0, 0.5, dim=2), torch.cat([MODES, torch.zeros(1, 2, dtype=torch.float64)])

    def f(x, t, label):
        m = means[label]
        return m + centred(x - expand(1 - t, x) * m, t).x0

    return classes(f)


def guided_end(x, t, label, w):
    """The end of the guided trajectory: w m + c (x - a w m)/sqrt(V)."""
    m, a = w.double()[:, None] * MODES[label], 1 - t[:, None]
    return m + 0.5 * (x - a * m) / (a**2 * 0.25 + t[:, None] ** 2).sqrt()


def labelled(n=48, seed=3):
    g = torch.Generator().manual_seed(seed)
    return {"x0": normal(n, 2, seed=seed), "label": torch.randint(3, (n,), generator=g)}


def told_student():
    student = classes(guided_end)
    student.denoiser.net.scalars = {"w": 1.0}
    return student


GUIDED = TeacherGuidance(1.0, 5.0, told=True)


def test_a_told_student_follows_the_guided_field_at_every_scale():
    losses = []
    for substeps in (16, 32):
        step = TeacherStep(Heun(), substeps)
        model = ConsistencyDistillation(
            class_teacher(), 1, student=told_student(), step=step, guidance=GUIDED, intervals=Given(0.6, 0.4)
        )
        model.distance = SquaredL2()
        losses.append(loss_of(model, labelled()))
    assert losses[1] < 1e-8
    assert losses[0] / losses[1] == pytest.approx(16, rel=0.3)  # second order in the substeps, squared
    model.student.denoiser.net.f = lambda x, t, label, w: guided_end(x, t, label, 0 * w + 3)
    model.intervals = Given(0.6, 0.05)  # one w for all is no end point
    assert loss_of(model, labelled()) > 1e-3


def test_agreement_is_with_the_guided_teacher_at_the_told_scale():
    model = ConsistencyDistillation(class_teacher(), 1, student=told_student(), guidance=GUIDED)
    assert model.evaluate(model.student, labelled())["agreement"].min() > 60
    blind = ConsistencyDistillation(class_teacher(), 1, student=told_student())
    blind.student.denoiser.told = {"w": 1.0}
    assert blind.evaluate(blind.student, labelled())["agreement"].min() > 60
    blind.student.denoiser.told = {"w": 3.0}
    assert blind.evaluate(blind.student, labelled())["agreement"].max() < 20


def test_a_student_is_told_without_a_change_until_it_is_trained():
    teacher = mlp(seed=1)
    model = ConsistencyDistillation(teacher, 1, mu=0.9)
    model.guide(TeacherGuidance(1.0, 1.0, told=True))
    x, t = normal(8, 2), uniform(8)
    told = [model.student.denoiser(x, t, {"w": torch.full((8,), w)}).x0 for w in (1.0, 7.0)]
    assert torch.equal(told[0], told[1])
    assert torch.equal(told[0], teacher.denoiser(x, t).x0)
    assert not teacher.denoiser.told
    assert model.target.net.net.scalars == {"w": 10.0}  # the average knows the condition too
    _, grads = run(model)
    assert any("further.w" in k and g.abs().max() > 0 for k, g in grads.items())
    names = [k for k, _ in model.named_parameters()]
    assert len({k for k in names if k.startswith("student")}) == len(list(model.student.parameters()))


def test_what_a_network_is_told_by_default(tmp_path):
    torch.manual_seed(0)
    teacher = generator(MLP(2, 16, 2), FLOW, U())
    student = ConsistencyDistillation(teacher, 1, guidance=TeacherGuidance(1.0, 1.0, told=True)).student.eval()
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.1)  # so that w matters
    x, t, given = torch.randn(5, 2), torch.rand(5), {"w": torch.ones(5)}
    assert student.denoiser.told == {"w": 1.0}
    assert torch.equal(student.generate(x), student.generate(x, given))  # float times
    assert torch.equal(student.denoiser(x, t).x0, student.denoiser(x, t, given).x0)  # times per sample
    assert not torch.equal(student.generate(x), student.generate(x, {"w": 2 * torch.ones(5)}))
    again = load(save(student, tmp_path / "student"))
    assert torch.equal(again.generate(x), student.generate(x))


def test_a_network_without_scalar_conditions_cannot_be_told():
    with pytest.raises(ValueError, match="Net takes no scalar conditions"):
        ConsistencyDistillation(class_teacher(), 1, guidance=GUIDED)


def test_an_sde_step_in_several_substeps_has_the_posterior_it_should():
    """SCott's teacher: with the exact denoiser of a Gaussian, noise keeps the marginal of the path at s."""
    world, t, s = gaussian(FLOW, 1.5, 0.5), torch.tensor(0.8), torch.tensor(0.4)
    torch.manual_seed(0)
    n = 20_000
    for eta in (0.0, 1.0):
        x_t = FLOW.sample(world.draw(n), torch.randn(n, 1).double(), t.expand(n))
        x_s = TeacherStep(Ancestral(eta), 25)(world, FLOW, x_t, t.expand(n), s.expand(n))
        assert x_s.mean().item() == pytest.approx(0.6 * 1.5, abs=0.015)
        assert x_s.std().item() == pytest.approx((0.6**2 * 0.25 + 0.4**2) ** 0.5, rel=0.03)


# --- segments ----------------------------------------------------------------------------------------------------


def segment_estimate(world, segments, x, t, y=None):
    """The x0 whose DDIM step to the end of the segment lands on the flow map."""
    e = segments.end(t, world.path)
    (a_t, b_t, s_t), (a_e, b_e, s_e) = ([expand(v, x) for v in world.path.schedule(u)] for u in (t, e))
    z_t, z_e = x, world.flow_map(x, t, e)
    if y is not None:
        z_t, z_e = z_t - b_t * y, z_e - b_e * y
    return (z_e - s_e / s_t * z_t) / (a_e - a_t * s_e / s_t)


@pytest.mark.parametrize("prediction", [(FLOW, U()), (FLOW, X0()), (VP(), V()), (EDM(), Eps())], ids=repr)
@pytest.mark.parametrize("mu", [0.0, 0.95])
def test_one_segment_is_consistency_distillation_bit_for_bit(prediction, mu):
    path, prediction = prediction
    common = {"intervals": Adjacent(7, stride=2), "distance": ElementwiseHuber(), "mu": mu}
    ours = SegmentedConsistency(mlp(prediction, path), 1, Segments(1), **common)
    theirs = ConsistencyDistillation(mlp(prediction, path), 1, **common)
    assert_same(run(ours), run(theirs))
    assert_same(run(theirs), run(ours))


# Of 15 and 30 steps times meet boundaries of 3 and 6 segments but for rounding.
@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize(("k", "steps", "stride"), [(1, 8, 3), (2, 8, 3), (4, 8, 3), (8, 8, 3), (3, 15, 1), (6, 30, 1)])
def test_the_exact_jumps_to_the_ends_are_a_fixed_point(path, k, steps, stride):
    world = world_on(path)
    exact = Net(lambda x, t: segment_estimate(world, Segments(k), x, t))
    model = distillation(
        path, exact, SegmentedConsistency, segments=Segments(k), intervals=Adjacent(steps, stride=stride)
    )
    batch = {"x0": world.draw(64, torch.Generator().manual_seed(0))}
    terms, grads = run(model, batch)
    assert terms["consistency"] < 1e-18
    assert all(g.abs().max() < 1e-8 for g in grads.values())
    if k > 1:  # the same network is no fixed point of other segments
        model.segments = Segments(1)
        assert loss_of(model, batch) > 1e-4


def test_as_many_segments_as_steps_are_regression_on_the_teachers_steps():
    teacher, student = mlp(seed=1), mlp(seed=2)
    model = SegmentedConsistency(
        teacher, 1, Segments(8), student=student, intervals=Adjacent(8), step=TeacherStep(), distance=SquaredL2()
    )
    batch = data()
    ours = loss_of(model, batch, seed=4)
    torch.manual_seed(4)
    t, s = Adjacent(8)(64, FLOW)
    x_t = FLOW.sample(batch["x0"], torch.randn_like(batch["x0"]), t)
    steps = [DDIM().step(FLOW, x_t, g.denoiser(x_t, t), t, s) for g in (student, teacher)]
    assert ours == pytest.approx((steps[0] - steps[1]).square().mean().item(), rel=1e-9)
    assert ours > 1e-4


def test_teachers_steps_stop_at_the_ends_of_segments():
    step = ExactStep(world_on(FLOW))
    model = distillation(cls=SegmentedConsistency, step=step, segments=Segments(4), intervals=Adjacent(52, stride=9))
    for seed in range(4):
        loss_of(model, seed=seed)
    t, s = (torch.cat(v) for v in zip(*step.seen, strict=True))
    assert (s >= Segments(4).end(t, FLOW)).all()
    assert (s < t).all()
    assert (s == Segments(4).end(t, FLOW)).any()


@pytest.mark.parametrize("path", [FLOW, Trig(), EDM()], ids=repr)
def test_a_boundary_but_for_rounding_belongs_to_the_segment_below(path):
    for k in range(1, 13):
        ends = Segments(k).boundaries(path)
        for n in range(k, 61, k):
            met = Uniform()(path, n)[:: n // k]
            torch.testing.assert_close(Segments(k).end(met[:-1], path), ends[1:], rtol=0, atol=0)
            torch.testing.assert_close(Segments(k).end((met[:-1] + met[1:]) / 2, path), ends[1:], rtol=0, atol=0)


def test_students_are_trained_where_their_segments_begin():
    with pytest.raises(ValueError, match=r"0\.75 is none of .* of 50 steps.*multiple of 4"):
        SegmentedConsistency(mlp(), 1, Segments(4), intervals=Adjacent(50))
    with pytest.raises(ValueError, match="multiple of 2"):
        SegmentedConsistency(mlp(), 1, SegmentStages((8, 2)), intervals=Adjacent(25))
    with pytest.raises(ValueError, match="segments and steps of the student"):  # samples from times of its own
        SegmentedConsistency(mlp(), 1, Segments(4), intervals=Adjacent(48), grid=Karras(sigma_max=80.0), steps=3)
    for segments in (Segments(4), SegmentStages((8, 4))):
        step = ExactStep(world_on(FLOW))
        model = distillation(cls=SegmentedConsistency, step=step, segments=segments, intervals=Adjacent(12))
        for seed in range(4):
            loss_of(model, seed=seed)
        assert set(Segments(4).boundaries(FLOW)[:-1].tolist()) <= set(torch.cat([t for t, _ in step.seen]).tolist())


def test_defaults_hold_their_fields_alone():
    """jsonargparse reads all that a default holds, and fails at keys that are no strings."""
    given = inspect.signature(SegmentedConsistency).parameters["intervals"].default
    loss_of(SegmentedConsistency(mlp(), 1, Segments(4)))
    assert vars(given).keys() == {f.name for f in dataclasses.fields(given)}
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(SegmentedConsistency, "model", skip={"teacher", "student"})
    assert parser.parse_args(["--model.iterations=1", "--model.segments=Segments"]).model.iterations == 1


def test_segments_merge_in_stages():
    stages = SegmentStages((8, 4, 2, 1))
    assert [stages.at(p).k for p in (0.0, 0.24, 0.25, 0.5, 0.74, 0.75, 0.99, 1.0)] == [8, 8, 4, 2, 2, 1, 1, 1]
    model = SegmentedConsistency(mlp(), 8, stages)
    t = torch.tensor([1.0, 0.3], dtype=torch.float64)
    ends = []
    for model.done in (0, 2, 4, 6, 8):
        ends.append(model.end(t).tolist())
    assert ends == [[0.875, 0.25], [0.75, 0.25], [0.5, 0.0], [0.0, 0.0], [0.0, 0.0]]


def test_a_walk_needs_no_data_and_starts_on_the_teachers_trajectories():
    world = world_on(FLOW)
    walk, step = ExactStep(world), ExactStep(world)
    model = distillation(cls=SegmentedConsistency, segments=Segments(1), walk=walk, step=step)
    assert loss_of(model, {"x0": torch.full((64, 2), 100.0, dtype=torch.float64)}) < 1e-20
    (begin, t), (t_step, _) = walk.seen[0], step.seen[0]
    assert (begin == 1).all()
    assert torch.equal(t, t_step)
    coarse = distillation(net=mlp().denoiser.net, cls=SegmentedConsistency, walk=TeacherStep(substeps=3))
    one, other = (loss_of(coarse, data(seed=s)) for s in (1, 2))
    assert one == other > 0


def test_segmented_students_step_through_their_segments():
    student = SegmentedConsistency(
        mlp(), 1, Segments(3, Uniform(end=0.1)), intervals=Adjacent(18, Uniform(end=0.1)), steps=3
    ).student
    assert (student.steps, student.solver, student.grid) == (3, DDIM(), Uniform(end=0.1))
    assert SegmentedConsistency(mlp(), 1, grid=Explicit((1.0, 0.0))).student.grid == Explicit((1.0, 0.0))


# --- sub-paths: SLAM ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [TeacherGuidance(), TeacherGuidance(told=True)])
def test_without_sub_paths_slam_is_lcm_bit_for_bit(guidance):
    common = {"intervals": Adjacent(10), "step": TeacherStep(), "distance": ElementwiseHuber(), "guidance": guidance}
    ours, theirs = SLAM(mlp(), 1, low=1.0, **common), ConsistencyDistillation(mlp(), 1, **common)
    assert_same(run(ours), run(theirs))
    assert loss_of(SLAM(mlp(), 1, **common)) != loss_of(theirs)


def test_sub_paths_run_from_the_rescaled_target_to_the_state():
    path, y = ResidualShift(steps=6, kappa=0.5), normal(4, 2, seed=3)
    x_t, x_s = normal(4, 2), normal(4, 2, seed=1)
    t, s = torch.full((4,), 4.0).double(), torch.full((4,), 2.0).double()
    (a_t, b_t, _), (a_s, b_s, _) = (path.schedule(v) for v in (t[0], s[0]))
    ends = [between(path, x_t, t, x_s, s, torch.full((4,), g), y) for g in (1.0, 0.0, 0.25)]
    torch.testing.assert_close(ends[0], x_t)
    torch.testing.assert_close(ends[1], a_t / a_s * (x_s - b_s * y) + b_t * y)
    torch.testing.assert_close(ends[2], 0.25 * ends[0] + 0.75 * ends[1])


def test_the_exact_end_points_of_sub_paths_are_a_fixed_point():
    """One centred Gaussian: x_t = r x_s on a trajectory, so x_g = ((1 - g) a_t/a_s + g r) x_s."""
    c, n = 0.5, 8
    world = gaussian(FLOW, 0.0, c, dim=2)
    seen = []

    def f(x, t, g):
        seen.append(g)
        s = (t - 1 / n).clamp(min=0)
        v_t, v_s = ((1 - u) ** 2 * c**2 + u**2 for u in (t, s))
        k = (1 - g) * (1 - t) / (1 - s) + g * (v_t / v_s).sqrt()
        return x * (c / (k * v_s.sqrt()))[:, None]

    net = Net(f)
    net.scalars = {"g": 1.0}
    student = generator(net)
    model = SLAM(
        generator(Net(end_of(world))),
        1,
        student=student,
        step=ExactStep(world),
        intervals=Adjacent(n),
        distance=SquaredL2(),
    )
    assert loss_of(model) < 1e-18
    target, own = seen
    assert (target == 1).all()
    assert 0 < own.min() < 0.2
    assert 0.8 < own.max() <= 1
    assert student.denoiser.told == {"g": 1.0}
    with pytest.raises(ValueError, match=r"1\.5"):
        SLAM(mlp(), 1, low=1.5)


# --- training from data ------------------------------------------------------------------------------------------


def quadrature(n=24):
    """Points (x0, eps) and weights that integrate polynomials of two normal variables exactly."""
    x, w = (torch.tensor(v) for v in hermegauss(n))
    w = w / w.sum()
    return x.repeat_interleave(n)[:, None], x.repeat(n)[:, None], (w[:, None] * w).reshape(-1)


@pytest.mark.parametrize("path", [FLOW, Trig(), EDM(), VP()], ids=repr)
def test_training_pairs_are_the_teachers_step_with_the_data_for_its_estimate(path):
    x0, eps, t = normal(16, 2), normal(16, 2, seed=1), uniform(16, low=0.4, high=0.9)
    s = t - uniform(16, low=0.01, high=0.3)
    x_s = TeacherStep()(lambda x, t: Estimate(x0, eps), path, path.sample(x0, eps, t), t, s)
    torch.testing.assert_close(x_s, path.sample(x0, eps, s), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", [FLOW, Trig()], ids=repr)
def test_training_costs_the_exact_function_its_closed_form(path):
    """f*(x_t) and f*(x_s) of N(0, c^2) data have variance c^2 and correlation (a_t a_s c^2 + s_t s_s)/sqrt(V_t V_s)."""
    c, (x0, eps, w) = 0.7, quadrature()
    world = gaussian(path, 0.0, c)
    t, s = (torch.full((len(x0),), v, dtype=torch.float64) for v in (0.6, 0.45))
    x_t, x_s = (path.sample(c * x0, eps, v) for v in (t, s))
    f = end_of(world)
    ours = (w * consistency_loss(f, f, x_t, t, x_s, s, 0 * t, SquaredL2())).sum()
    (a_t, _, s_t), (a_s, _, s_s) = path.schedule(t[0]), path.schedule(s[0])
    v_t, v_s = a_t**2 * c**2 + s_t**2, a_s**2 * c**2 + s_s**2
    torch.testing.assert_close(ours, 2 * c**2 * (1 - (a_t * a_s * c**2 + s_t * s_s) / (v_t * v_s).sqrt()))


def test_training_has_the_gradient_of_distillation_as_intervals_shrink():
    """arXiv:2303.01469, theorem 2, with the exact score of N(0, c^2)."""
    c, (x0, eps, w) = 0.7, quadrature()
    world = gaussian(FLOW, 0.0, c)
    theta = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)

    def f(x, t):
        return (1 - t[:, None]) * x + theta * t[:, None] * (x + 0.3 * x**3)

    gaps, gradients = [], []
    for dt in (0.08, 0.04, 0.02, 0.01):
        t, s = (torch.full((len(x0),), v, dtype=torch.float64) for v in (0.5, 0.5 - dt))
        x_t = FLOW.sample(c * x0, eps, t)
        pair = FLOW.sample(c * x0, eps, s), TeacherStep()(world, FLOW, x_t, t, s)
        ct, cd = (
            torch.autograd.grad((w * consistency_loss(f, f, x_t, t, x_s, s, 0 * t, SquaredL2())).sum(), theta)[0]
            for x_s in pair
        )
        gaps.append(abs(ct - cd).item() / dt)
        gradients.append(abs(cd).item() / dt)
    assert gradients[-1] > 0.01
    assert gaps[-1] < gaps[0] / 6  # first order: 8
    assert gaps[-1] < 0.1 * gradients[-1]


def test_training_draws_both_levels_from_one_noise():
    seen = []
    net = Net(lambda x, t: seen.append((x, t)) or x)
    model = ConsistencyTraining(generator(net), 1, intervals=Adjacent(8), distance=SquaredL2())
    batch = data()
    run(model, batch)
    noises = [(x.detach() - (1 - t[:, None]) * batch["x0"]) / t[:, None] for x, t in seen]
    inside = (seen[0][1] > 0) & (seen[1][1] > 0)
    torch.testing.assert_close(noises[0][inside], noises[1][inside])
    assert ((seen[0][1] - seen[1][1]).abs() - 1 / 8).abs().max() < 1e-12


def test_a_single_point_of_data_is_learnt_without_error():
    m = torch.tensor([1.0, -2.0], dtype=torch.float64)
    for cls in (ConsistencyTraining, TCM):
        model = cls(generator(Net(lambda x, t: m.expand_as(x)), EDM()), 1)
        terms, grads = run(model, {"x0": m.expand(64, 2)})
        assert all(v == 0 for v in terms.values())
        assert all(g.abs().max() == 0 for g in grads.values())


# --- TCM ---------------------------------------------------------------------------------------------------------


def truncated(student, teacher, **kwargs):
    return TCM(generator(teacher, EDM()), 1, student=generator(student, EDM()), distance=SquaredL2(), **kwargs)


def test_only_the_teacher_is_seen_below_the_boundary():
    exact = end_of(world_on(EDM()))
    calls = []

    def watched(x, t):
        calls.append(t)
        return exact(x, t)

    def broken_below(x, t):
        return torch.where(t[:, None] < 1, math.pi, exact(x, t))

    def broken_above(x, t):
        return torch.where(t[:, None] >= 1, math.pi, exact(x, t))

    plain = run(truncated(Net(exact), Net(watched)))
    assert_same(run(truncated(Net(broken_below), Net(exact))), plain)
    assert_same(run(truncated(Net(exact), Net(broken_above))), plain)
    assert any((t < 1).any() for t in calls)
    twice = run(truncated(Net(exact), Net(lambda x, t: 2 * exact(x, t))))
    assert twice[0]["boundary"] > 2 * plain[0]["boundary"]


def test_the_boundary_term_sees_a_collapse():
    exact = end_of(world_on(EDM()))
    intervals = ContinuousIntervals(LogNormalTimes(3.0, 0.1), q=10.0, stages=1)
    model = truncated(Net(lambda x, t: 0 * x), Net(exact), intervals=intervals)
    terms, _ = run(model)
    assert terms["consistency"] == 0  # a constant agrees with itself
    assert terms["boundary"] > 0.1


def test_a_quarter_of_the_batch_is_at_the_boundary_and_none_below():
    for path, expected in ((EDM(), 1.0), (FLOW, 0.5), (Trig(), math.pi / 4)):
        model = TCM(mlp(path=path), 1)
        t, s = model.times(torch.zeros(64, 2))
        assert model.at_boundary(64) == 16
        torch.testing.assert_close(t[:16], torch.full((16,), expected, dtype=torch.float64))
        assert (t[16:] >= expected - 1e-12).all()
        assert t[16:].std() > 0
        assert (s < t).all()
        assert (s[:16] < expected).all()
    assert TCM(mlp(), 1).at_boundary(2) == 1
    with pytest.raises(ValueError, match="batch of 1"):
        TCM(mlp(), 1).loss(data(1))
    with pytest.raises(ValueError, match="share"):
        TCM(mlp(), 1, share=1.0)


def test_terms_are_the_means_of_training_weighed():
    model, kwargs = TCM(mlp(path=EDM()), 1, weight=0.3), {"seed": 2}
    terms, _ = run(model, **kwargs)
    torch.manual_seed(2)
    each = model.each(data()).detach()
    torch.testing.assert_close(terms["boundary"], 0.3 * each[:16].mean())
    torch.testing.assert_close(terms["consistency"], each[16:].mean())


# --- intervals ---------------------------------------------------------------------------------------------------


def test_the_curriculum_of_ict():
    """N(k) = min(s_0 2^(floor(k/K')), s_1) + 1 points, K' = floor(K/(log2(s_1/s_0) + 1))."""
    steps = Doubling(10, 1280)
    total = 400_000
    stage = total // (int(math.log2(128)) + 1)
    for k in (0, stage - 1, stage, 3 * stage, 7 * stage, total - 1, total):
        assert steps(k / total) == min(10 * 2 ** (k // stage), 1280)
    assert [Doubling(3, 3)(p) for p in (0.0, 0.5, 1.0)] == [3, 3, 3]
    assert Doubling(10, 100)(0.99) == 80
    assert LogNormalBins().pace(1.0) == pytest.approx(11 / 1281)
    with pytest.raises(ValueError, match=r"20.*10"):
        Doubling(20, 10)


def test_the_curriculum_of_consistency_training():
    """N(k) = ceil(sqrt(k/K ((s_1 + 1)^2 - s_0^2) + s_0^2) - 1) + 1 points."""
    steps = SquareRoot(2, 150)
    assert [steps(0.0), steps(1.0)] == [1, 150]
    assert steps(0.25) == math.ceil(math.sqrt(0.25 * (151**2 - 4) + 4) - 1)
    t, s = Adjacent(steps)(100, FLOW, 0.0)
    assert (t == 1).all()
    assert (s == 0).all()


@pytest.mark.parametrize("path", [EDM(), FLOW, VP()], ids=repr)
def test_bins_have_the_probability_of_a_log_normal_level(path):
    bins = LogNormalBins(steps=Doubling(5, 20))
    torch.manual_seed(0)
    n = 40_000
    t, s = bins(n, path, 0.4)
    times = Karras(sigma_max=80.0, clean=False)(path, 10)
    where = (t[:, None] - times).abs().argmin(1)
    assert torch.equal(times[where], t)
    assert torch.equal(times[where + 1], s)
    z = (-path.log_snr(times).numpy() + 1.1) / 2
    mass = stats.norm.cdf(z[:-1]) - stats.norm.cdf(z[1:])
    counts = torch.bincount(where, minlength=10).numpy()
    assert len(counts) == 10
    assert stats.chisquare(counts, n * mass / mass.sum()).pvalue > 1e-3


def test_the_mapping_of_ect():
    """r = t (1 - (1 - ratio)(1 + 8 sigmoid(-t))), ratio = 1 - 1/q^(i + 1) in eight stages, at most 0.999."""
    intervals = ContinuousIntervals()
    t = torch.tensor([1e-3, 0.1, 1.0, 5.0, 60.0], dtype=torch.float64)
    assert [intervals.ratio(p) for p in (0.0, 0.124, 0.125, 0.999, 1.0)] == [0.5, 0.5, 0.75, 1 - 2**-8, 1 - 2**-8]
    assert ContinuousIntervals(q=1000.0, stages=1).ratio(0.0) == 0.999
    assert ContinuousIntervals(stages=12).ratio(1.0) == 0.999
    for progress in (0.0, 0.3, 1.0):
        delta = t * (1 - intervals.ratio(progress)) * (1 + 8 / (1 + t.exp()))
        torch.testing.assert_close(intervals.end(t, EDM(), progress), (t - delta).clamp(min=0), rtol=1e-12, atol=0)
    # The same noise levels on a path of other times.
    flow = t / (1 + t)
    expected = intervals.end(t, EDM(), 0.7)
    torch.testing.assert_close(intervals.end(flow, FLOW, 0.7), expected / (1 + expected))
    assert (intervals.end(t[:2], EDM(), 0.0) == 0).all()  # nearly denoising at first


@pytest.mark.parametrize(
    "intervals",
    [
        Adjacent(),
        Adjacent(SquareRoot(), stride=4),
        LogNormalBins(),
        ContinuousIntervals(),
        ContinuousIntervals(UniformTimes(), q=4.0),
        ContinuousIntervals(LogStudentTimes(), q=1000.0, stages=1),
    ],
    ids=repr,
)
@pytest.mark.parametrize("path", [EDM(), FLOW, Trig(), VP()], ids=repr)
def test_intervals_lie_on_the_path_and_run_towards_the_data(intervals, path):
    torch.manual_seed(0)
    for progress in (0.0, 0.5, 1.0):
        t, s = intervals(256, path, progress)
        assert t.dtype == s.dtype == torch.float64
        assert (s < t).all()
        assert (s >= path.t_min).all()
        assert (t <= path.t_max).all()
        assert InverseInterval()(t, s, path).isfinite().all()


@pytest.mark.parametrize("path", [EDM(), FLOW], ids=repr)
def test_truncated_heavy_tails(path):
    torch.manual_seed(0)
    times = LogStudentTimes()
    log_rho = -path.log_snr(times(20_000, path)).numpy()
    law = stats.t(0.01, 0.0, 0.2)
    lo, hi = law.cdf(0.0), law.cdf(math.log(80))
    assert stats.kstest(log_rho, lambda x: (law.cdf(x) - lo) / (hi - lo)).pvalue > 1e-3
    with pytest.raises(ValueError, match="inf"):
        LogStudentTimes(high=math.inf)


# --- weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "a", "s"), [(EDM(), 1.0, 0.4), (FLOW, 0.6, 0.4), (Trig(), None, None)], ids=repr)
def test_weights_are_what_their_names_say(path, a, s):
    t, end = torch.tensor([0.4], dtype=torch.float64), torch.tensor([0.15], dtype=torch.float64)
    a, s = (math.cos(0.4), math.sin(0.4)) if a is None else (a, s)
    rho = s / a
    gap = rho - {EDM: 0.15, RectifiedFlow: 0.15 / 0.85, Trig: math.tan(0.15)}[type(path)]
    for weighting, expected in [
        (Even(), 1.0),
        (InverseInterval(), 1 / gap),
        (InverseInterval(0.5), gap**-0.5),
        (MaxSNR(), max(1 / rho**2, 1.0)),
        (MaxSNR(50.0), 50.0),
        (MinSNR(), min(1 / rho**2, 5.0)),
        (SNRPlusOne(), 1 / rho**2 + 1),
        (SignalSNR(), (a / rho) ** 2),
        (InverseNoise(), 1 / s**2),
        (InverseOutputScale(), (rho**2 + 0.25) ** 0.5 / (0.5 * rho)),
        (InverseOutputScale(2.0, 1.0), (rho**2 + 1) / rho**2),
    ]:
        value = weighting(t, end, path)
        assert value.dtype == torch.float64
        assert value.tolist() == pytest.approx([expected], rel=1e-9), weighting


def test_weights_where_there_is_no_signal():
    one, s = torch.ones(1, dtype=torch.float64), torch.full((1,), 0.5, dtype=torch.float64)
    for weighting, expected in [(MaxSNR(), 1.0), (SNRPlusOne(), 1.0), (MinSNR(), 0.0), (InverseOutputScale(), 2.0)]:
        assert weighting(one, s, FLOW).item() == expected
    assert InverseInterval()(s, s, FLOW).item() == InverseInterval()(one, s, FLOW).item() == 0.0


# --- runs that are killed ----------------------------------------------------------------------------------------


class Points(L.LightningDataModule):
    def batch(self, n, generator):
        return {"x0": torch.randn(n, 2, generator=generator)}

    def train_dataloader(self):
        return StatefulLoader(self, 8)

    def val_dataloader(self):
        return DataLoader([{"x0": x} for x in normal(8, 2).float()], batch_size=8)


class Stop(L.Callback):
    def __init__(self, after):
        self.after = after

    def on_train_batch_end(self, trainer, pl_module, *args):
        trainer.should_stop = trainer.should_stop or pl_module.done >= self.after


def fit(module, folder, stop=10**6, ckpt_path=None):
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        check_val_every_n_epoch=None,
        val_check_interval=10**6,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        default_root_dir=folder,
        callbacks=[Checkpoints(str(folder), every=3), Stop(stop)],
    )
    trainer.fit(module, datamodule=Points(), ckpt_path=ckpt_path, weights_only=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("cls", "kwargs"),
    [
        (ConsistencyTraining, {"intervals": Adjacent(SquareRoot(2, 20)), "mu": 0.9}),
        (SegmentedConsistency, {"segments": SegmentStages((4, 2, 1)), "walk": TeacherStep(substeps=2)}),
        (TCM, {}),
        (SLAM, {"guidance": TeacherGuidance(told=True), "step": TeacherStep(Ancestral(), 2)}),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_a_killed_run_resumes_bit_for_bit(tmp_path, cls, kwargs):
    def method():
        torch.manual_seed(0)
        net = MLP(2, 8, 2)
        return cls(generator(net, FLOW, U(), 2), 6, **kwargs)

    whole, part, rest = method(), method(), method()
    fit(whole, tmp_path / "whole")
    fit(part, tmp_path / "part", stop=3)
    assert part.done == 3
    fit(rest, tmp_path / "rest", ckpt_path=tmp_path / "part/last.ckpt")
    assert whole.done == rest.done == 6
    ours, theirs = rest.state_dict(), whole.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert not all(torch.equal(ours[k], v) for k, v in part.state_dict().items())


# --- the labelled toy world --------------------------------------------------------------------------------------


def test_labels_are_the_modes():
    world = RingData(std=0.2, batch_size=4000)
    loader = world.train_dataloader()
    batch = next(iter(loader))
    angle = torch.atan2(batch["x0"][:, 1], batch["x0"][:, 0]) / (math.pi / 4)
    assert ((angle.round() % 8).long() == batch["label"]).float().mean() > 0.99
    radius = batch["x0"].norm(dim=1)
    assert radius.mean().item() == pytest.approx(2.0, abs=0.03)
    held_out = next(iter(world.val_dataloader()))
    assert held_out["x0"].shape == (1024, 2)
    assert held_out["label"].max() == 7


def test_the_unconditional_branch_is_the_null_label(tmp_path):
    torch.manual_seed(0)
    model = ClassGenerator(Denoiser(MLP(2, 8, 2, classes=3), FLOW, U()), Heun(), Uniform(), 4)
    x0, cond, y = model.prepare({"x0": torch.zeros(4, 2), "label": torch.tensor([0, 1, 2, 0])})
    assert y is None
    assert model.unconditional({**cond, "w": torch.ones(4)})["label"].tolist() == [3] * 4
    x = torch.randn(4, 2)
    apart = model.generate(x, cond), model.generate(x, model.unconditional(cond))
    assert not torch.equal(*apart)
    torch.testing.assert_close(load(save(model, tmp_path / "m")).generate(x, cond), apart[0])
    with pytest.raises(ValueError, match="no label"):
        model.generate(x)
    guided = TeacherGuidance(3.0, 3.0)
    direct = guided.generate(model, x, cond, None, guided.draw(x))
    assert not torch.equal(direct, apart[0])
    torch.testing.assert_close(
        TeacherGuidance(0.0, 0.0).generate(model, x, cond, None, torch.zeros(4)), apart[1], rtol=1e-5, atol=1e-5
    )
