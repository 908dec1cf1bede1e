"""Regression on trajectories and rectification: every loss on the world where its solution is known, limits, stored data, time samplers."""

import itertools
import math

import pytest
import torch
from torch import nn
from worlds import coeffs, interior, normal, uniform

from fewstep.artifacts import save
from fewstep.denoiser import Denoiser
from fewstep.distances import L1, ElementwiseHuber, PseudoHuber, SquaredL2
from fewstep.distill import TrajectoryRegression
from fewstep.distill.boot import BOOT, FixedStep, boot_loss, signal
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.key_points import KeyPoints, chord_loss
from fewstep.distill.line import secant, step
from fewstep.distill.pool import PairPool, passing, stored_pairs, stored_trajectories
from fewstep.distill.rectified_diffusion import (
    PhasedRectifiedDiffusion,
    RectifiedDiffusion,
    phased_loss,
)
from fewstep.distill.redress import Redress
from fewstep.distill.reflow import FlowDistillation, Reflow, data_loss, reflowed, velocity_loss
from fewstep.distill.rf_plus import HuberPerDimension, RFPlusPlus, rf_plus_loss
from fewstep.distill.slimflow import (
    AnnealingReflow,
    CosineAnnealing,
    ExponentialAnnealing,
    GuidedDistillation,
    LinearAnnealing,
    guided_loss,
)
from fewstep.distill.teacher_step import TeacherStep
from fewstep.distill.trajectory import StateRegression, regression_loss, state_loss
from fewstep.estimate import Estimate
from fewstep.generator import Generator, Prepared
from fewstep.grids import Explicit, Uniform
from fewstep.jump import JumpGenerator
from fewstep.nets import MLP
from fewstep.paths import EDM, OUVE, VP, PriorEDM, RectifiedFlow, Trig, expand
from fewstep.prediction import X0, U
from fewstep.sampling import sample
from fewstep.search.boss import step_costs
from fewstep.search.starts import Starts
from fewstep.search.trajectories import record
from fewstep.solvers import DDIM, GammaSampling, Heun
from fewstep.times import GridTimes, HalfLogNormalTimes, LogitNormalTimes, UniformTimes, UShapedTimes
from fewstep.toy import gaussian, ring
from fewstep.train.denoising import denoising_loss

FLOW = RectifiedFlow()
PATHS = {"rf": FLOW, "vp": VP(), "edm": EDM(), "trig": Trig(), "prior_edm": PriorEDM(), "ouve": OUVE()}
ANCHORED = {"prior_edm", "ouve"}


@pytest.fixture(params=list(PATHS))
def path(request):
    return PATHS[request.param]


def anchor(path, n):
    return normal(n, 2, seed=77) if path.anchored else None


def one(path, n, m=1.5, c=0.5):
    """One Gaussian on a path, with an anchor where it has one."""
    y = anchor(path, n)
    return gaussian(path, m, c, dim=2, y=y), y


class Straight:
    """The reflowed flow of one Gaussian: end points are A + B z, so x_t = a (A + B z) + b y + s z tells z."""

    def __init__(self, path, world, y, n):
        self.path, self.y = path, y
        end = lambda z: world.flow_map(path.start(z, y), path.t_max, path.t_min)
        self.A = end(torch.zeros(n, 2, dtype=torch.float64))
        self.B = end(torch.ones(n, 2, dtype=torch.float64)) - self.A

    def end(self, z):
        return self.A + self.B * z

    def __call__(self, x, t):
        a, b, s = (expand(v, x) for v in self.path.schedule(t.double()))
        x = x if self.y is None else x - b * self.y
        z = (x - a * self.A) / (a * self.B + s)
        return Estimate(self.A + self.B * z, z)


class Exact(nn.Module):
    """The x0 of anything called as (x, t) -> Estimate, as a network with one weight."""

    def __init__(self, world):
        super().__init__()
        self.world = world
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x, t, **cond):
        return self.weight * self.world(x, t.double()).x0


class Chords:
    """The line from each state of one Gaussian to its next of `times`, or to the last of them."""

    def __init__(self, path, world, times, y=None, to_end=False):
        self.path, self.world, self.times, self.y, self.to_end = path, world, times, y, to_end

    def __call__(self, x, t):
        k = (self.times - t[:, None]).abs().argmin(1)
        s = self.times[-1].expand(len(t)) if self.to_end else self.times[k + 1]
        return secant(self.path, x, self.times[k], self.world.flow_map(x, self.times[k], s), s, self.y)


class Conditional(nn.Module):
    """Depends on state, time and condition, so that mixed-up rows show."""

    def __init__(self, scale=0.4):
        super().__init__()
        self.scalars = {"w": 1.0}
        self.weight = nn.Parameter(torch.tensor(scale, dtype=torch.float64))

    def forward(self, x, t, c, w=None):
        return self.weight * torch.tanh(x + c) + 0.01 * t[:, None] + (0 if w is None else w[:, None].double())


class Guidable(Generator):
    def prepare(self, batch):
        return Prepared(batch["x0"], {"c": batch["c"]}, batch.get("y"))

    def unconditional(self, cond):
        return {"c": torch.zeros_like(cond["c"])}


def generator(net, path=FLOW, prediction=None, solver=None, steps=8, kind=Generator):
    return kind(Denoiser(net, path, prediction or X0()), solver or Heun(), Uniform(), steps)


def conditional(path, steps=6, scale=0.4):
    return generator(Conditional(scale), path, X0(), DDIM(), steps, Guidable)


def batch(path, n=5):
    y = {"y": normal(n, 2, seed=12)} if path.anchored else {}
    return {"x0": normal(n, 2, seed=10), "c": normal(n, 2, seed=11)} | y


def seeded(f, seed=3):
    torch.manual_seed(seed)
    return f()


def assert_zero_with_gradient(model, data, below=1e-20):
    terms = model.loss(data)
    assert all(v.item() < below for v in terms.values()), terms
    sum(terms.values()).backward()
    assert all(p.grad.abs().max() < math.sqrt(below) * 1e2 for p in model.student.parameters())


# --- lines -------------------------------------------------------------------------------------------------------


def test_a_secant_passes_through_both_states_and_a_step_walks_along_it(path):
    t, s = interior(path, 6), path.t_min + 0.7 * (interior(path, 6) - path.t_min)
    x_t, x_s, y = normal(6, 2), normal(6, 2, seed=1), anchor(path, 6)
    line = secant(path, x_t, t, x_s, s, y)
    torch.testing.assert_close(path.sample(line.x0, line.eps, t, y), x_t)
    torch.testing.assert_close(path.sample(line.x0, line.eps, s, y), x_s)
    torch.testing.assert_close(step(path, x_t, line.x0, t, s, y), x_s)


def test_on_a_rectified_flow_a_secant_is_the_chord():
    t, s, x_t, x_s = uniform(6, low=0.5, high=1.0), uniform(6, seed=1, high=0.4), normal(6, 2), normal(6, 2, seed=1)
    line = secant(FLOW, x_t, t, x_s, s)
    torch.testing.assert_close(line.eps - line.x0, (x_s - x_t) / (s - t)[:, None])


def test_a_step_is_the_solvers(path):
    t, s = interior(path, 6), path.t_min + 0.7 * (interior(path, 6) - path.t_min)
    x, x0, y = normal(6, 2), normal(6, 2, seed=1), anchor(path, 6)
    stepped = TeacherStep()(lambda x, t: Estimate(x0, x0), path, x, t, s, y)
    torch.testing.assert_close(step(path, x, x0, t, s, y), stepped)


# --- every loss at its exact solution ----------------------------------------------------------------------------


def test_the_reflowed_flow_has_zero_loss(path):
    n = 16
    world, y = one(path, n)
    straight, z, t = Straight(path, world, y, n), normal(n, 2), interior(path, n)
    x = straight.end(z)
    scale = path.velocity(x, z, t).square().mean()
    assert velocity_loss(straight, path, z, x, t, SquaredL2(), y).max() < 1e-20 * scale
    assert data_loss(straight, path, z, x, t, SquaredL2(), y).max() < 1e-20
    assert rf_plus_loss(straight, path, z, x, t, HuberPerDimension(), SquaredL2(), True, y).max() < 1e-9 * scale.sqrt()
    assert guided_loss(straight, straight, path, z, t, SquaredL2(), y).max() < 1e-20
    # The teacher's own flow is another one.
    assert velocity_loss(world, path, z, x, t, SquaredL2(), y).mean() > 1e-5 * scale


def test_for_one_gaussian_on_a_rectified_flow_reflow_is_a_shift_and_a_scale():
    world, _ = one(FLOW, 4)
    straight, z = Straight(FLOW, world, None, 4), normal(4, 2)
    torch.testing.assert_close(straight.end(z), 1.5 + 0.5 * z)


def test_chords_of_the_exact_trajectories_have_zero_loss(path):
    n, times = 16, Uniform()(path, 4)
    world, y = one(path, n)
    x, k = path.start(normal(n, 2), y), torch.arange(n) % 4
    x_t, x_s = (world.flow_map(x, path.t_max, v) for v in (times[k], times[k + 1]))
    chords = Chords(path, world, times, y)
    assert chord_loss(chords, path, x_t, times[k], x_s, times[k + 1], SquaredL2(), y).max() < 1e-18
    ends = Chords(path, world, times, y, to_end=True)
    end = times[-1].expand(n)
    target = world.flow_map(x, path.t_max, end)
    assert state_loss(ends, path, x_t, times[k], target, end, SquaredL2(), y).max() < 1e-18
    assert state_loss(world, path, x_t, times[k], target, end, SquaredL2(), y).mean() > 1e-4


def test_few_steps_along_exact_chords_end_where_the_teacher_does(path):
    n, times = 16, Uniform()(path, 4)
    world, y = one(path, n)
    x = path.start(normal(n, 2), y)
    chords = Chords(path, world, times, y)
    walked = sample(lambda x, t: chords(x, torch.full((n,), t)), x, path, DDIM(), times, y)
    torch.testing.assert_close(walked, world.flow_map(x, path.t_max, path.t_min))


def test_the_exact_line_of_a_segment_has_zero_phased_loss(path):
    n = 16
    world, y = one(path, n)
    s = interior(path, n)
    e, t = (path.t_min + k * (s - path.t_min) for k in (0.3, 0.6))
    x_s = path.sample(world.draw(n), normal(n, 2), s, y)
    x_e = world.flow_map(x_s, s, e)

    def line(x, t):
        """x_t is affine in x_s, per coordinate: its slope and offset from two starts."""
        lines = [secant(path, v, s, world.flow_map(v, s, e), e, y) for v in (torch.zeros_like(x), torch.ones_like(x))]
        zero, unit = (path.sample(v.x0, v.eps, t, y) for v in lines)
        start = (x - zero) / (unit - zero)
        return secant(path, start, s, world.flow_map(start, s, e), e, y)

    assert phased_loss(line, path, x_s, s, x_e, e, t, SquaredL2(), y).max() < 1e-18
    assert phased_loss(world, path, x_s, s, x_e, e, t, SquaredL2(), y).mean() > 1e-6


def test_phases_are_learnt_at_the_teachers_own_times():
    model = pairs_method(PATHS["vp"], PhasedRectifiedDiffusion, steps=3, step=TeacherStep(DDIM(), 4))
    seen = []
    model.student.denoiser.net.register_forward_pre_hook(lambda net, args: seen.append(args[1]))
    for seed in range(12):
        torch.manual_seed(seed)
        model.loss(batch(PATHS["vp"]))
    ends = model.student.grid(PATHS["vp"], 3)
    label = model.student.denoiser.prediction.label
    c = PATHS["vp"].coeffs(ends, ends)
    allowed = torch.cat(
        [s + (e - s) * torch.arange(4, dtype=torch.float64) / 4 for s, e in itertools.pairwise(label(ends, c))]
    )
    away = (torch.cat(seen).double()[:, None] - allowed).abs()
    assert away.amin(1).max() < 1e-12
    assert away.amin(0).max() < 1e-12  # each of them is drawn, a segment's start too


def test_the_exact_signal_has_zero_bootstrap_loss(path):
    n = 16
    world, y = one(path, n)
    x_T, (t, s) = path.start(normal(n, 2), y), FixedStep(25)(n, path)
    g = lambda t: signal(path, x_T, world.flow_map(x_T, path.t_max, t), t, y)
    exact = lambda teacher, path, x, t, s, y: world.flow_map(x, t, s)
    t = t.clamp_max(path.t_max - 1e-3)
    assert boot_loss(g, world, exact, path, x_T, t, s, SquaredL2(), y).max() < 1e-12


# --- knowledge distillation on pairs and states ------------------------------------------------------------------


def test_the_distance_is_that_of_samples():
    x, target = normal(4, 2, 3), normal(4, 2, 3, seed=1)
    for d in (SquaredL2(), L1(), PseudoHuber(0.1)):
        assert torch.equal(regression_loss(lambda n: 2 * n, x, target, d), d(2 * x, target))
    model = TrajectoryRegression(generator(MLP(2, 8, 1), steps=2), 1, distance=L1())
    other = TrajectoryRegression(generator(MLP(2, 8, 1), steps=2), 1)
    other.student.load_state_dict(model.student.state_dict())
    other._teacher[0].load_state_dict(model.teacher.state_dict())
    losses = [seeded(lambda: m.loss({"x0": torch.zeros(8, 2)})["distill"]) for m in (model, other)]
    assert losses[0] != losses[1]


def pairs_method(path, kind, **kwargs):
    """A method on conditional pairs, with a student that is not the teacher."""
    return kind(conditional(path), 10, student=conditional(path, scale=0.3), **kwargs)


METHODS = {
    "kd": (TrajectoryRegression, {}),
    "reflow": (Reflow, {}),
    "instaflow": (FlowDistillation, {"steps": 3}),
    "rf_plus": (RFPlusPlus, {"perceptual": SquaredL2()}),
    "rectified_diffusion": (RectifiedDiffusion, {}),
    "annealing_reflow": (AnnealingReflow, {}),
    "guided": (GuidedDistillation, {}),
    "states": (StateRegression, {"steps": 3}),
    "key_points": (KeyPoints, {"steps": 3}),
    "redress": (Redress, {"steps": 3, "candidates": 6}),
    "phased": (PhasedRectifiedDiffusion, {"steps": 3}),
}
ON_PAIRS = [k for k in METHODS if k != "phased"]


@pytest.mark.parametrize("which", METHODS)
@pytest.mark.parametrize("where", ["vp", "prior_edm"])
def test_methods_run_with_conditions_and_anchors_and_teach_the_student_alone(which, where):
    kind, kwargs = METHODS[which]
    path = PATHS[where]
    model = pairs_method(path, kind, **kwargs)
    terms = seeded(lambda: model.loss(batch(path)))
    sum(terms.values()).backward()
    assert all(v.isfinite() and v > 0 for v in terms.values())
    assert all(p.grad is not None and p.grad.abs() > 0 for p in model.student.parameters())
    assert all(p.grad is None for p in model.teacher.parameters())
    again = seeded(lambda: model.loss(batch(path)))
    assert all(torch.equal(terms[k], again[k]) for k in terms) or which == "redress"  # its first call searches


@pytest.mark.parametrize("which", ["reflow", "instaflow", "rectified_diffusion"])
def test_losses_are_those_of_the_pairs_their_conditions_and_anchors(which):
    path, (kind, kwargs) = PATHS["prior_edm"], METHODS[which]
    model = pairs_method(path, kind, **kwargs)
    ours = seeded(lambda: sum(model.loss(batch(path)).values()))
    torch.manual_seed(3)
    noise, target, _, cond, y = model.pairs(batch(path))
    times = {"instaflow": GridTimes(3)}.get(which, UniformTimes())
    t = times(len(noise), path)
    x_t = target + t[:, None] * (y + noise)
    out = model.student.denoiser.net(x_t, t, **cond)
    eps = (x_t - out) / t[:, None] - y
    expected = {
        "reflow": (eps - noise).square().mean(1),  # dx_t/dt = y + eps
        "instaflow": (out - target).square().mean(1),
        "rectified_diffusion": ElementwiseHuber()(out, target),
    }[which]
    torch.testing.assert_close(ours, expected.mean())


def on_disk(path, world, y, times, n=12):
    """A batch as it is read from disk: exact trajectories, states at the times between the ends."""
    noise = normal(n, 2, seed=4)
    x = path.start(noise, y)
    states = torch.stack([world.flow_map(x, path.t_max, t) for t in times[1:-1]], 1)
    data = {"noise": noise, "target": world.flow_map(x, path.t_max, times[-1]), "states": states}
    return data if y is None else data | {"y": y}


@pytest.mark.parametrize("kind", [KeyPoints, StateRegression])
def test_states_from_disk_teach_exact_few_step_students(path, kind):
    times = Uniform()(path, 3)
    world, y = one(path, 12)
    exact = Exact(Chords(path, world, times, y, to_end=kind is StateRegression))
    stored = tuple(times[1:-1].tolist())
    model = kind(generator(Exact(world), path), 1, student=generator(exact, path), steps=3, stored=stored)
    data = on_disk(path, world, y, times)
    below = 1e-18 if path.t_max == 1 else 1e-14
    assert_zero_with_gradient(model, data, below)
    if kind is KeyPoints:
        assert model.evaluate(model.student, data)["agreement"].min() > 100


def test_one_step_from_states_is_regression_on_pairs(path):
    model = pairs_method(path, StateRegression)
    plain = pairs_method(path, TrajectoryRegression)
    losses = [seeded(lambda: m.loss(batch(path))["distill"]) for m in (model, plain)]
    torch.testing.assert_close(*losses)


def test_few_step_students_are_sampled_with_fresh_noise_unless_told_otherwise():
    assert pairs_method(FLOW, StateRegression, steps=2).student.solver == GammaSampling(1.0)
    assert pairs_method(FLOW, StateRegression, steps=2, solver=DDIM()).student.solver == DDIM()
    assert pairs_method(FLOW, KeyPoints, steps=2).student.solver == DDIM()


@pytest.mark.parametrize("which", ON_PAIRS)
def test_pairs_from_disk_are_those_the_pool_would_make(which):
    """The same noise, end points, conditions and states give the same loss, whichever way they come."""
    path, (kind, kwargs) = PATHS["prior_edm"], METHODS[which]
    data, seed = batch(path), 5
    made, read = (pairs_method(path, kind, **kwargs) for _ in range(2))
    if which in ("states", "key_points", "redress"):
        if which == "redress":
            made.search(data)
            read.load_state_dict(made.state_dict())
        torch.manual_seed(seed)
        noise = torch.randn_like(data["x0"])
        states, cond, y = seeded(lambda: made.trajectories(data), seed)
        torch.testing.assert_close(states[:, 0], path.start(noise, y))
        disk = {"noise": noise, "target": states[:, -1], "states": states, "y": y, **cond}
        read.stored = tuple(made.times.tolist())
    else:
        noise, target, x0, cond, y = seeded(lambda: made.pairs(data), seed)
        disk = {"noise": noise, "target": target, "y": y, **cond}
    ours = seeded(lambda: made.loss(data), seed)
    torch.manual_seed(seed)
    torch.randn_like(noise)  # what making them draws
    theirs = read.loss(disk)
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name])


def test_what_a_batch_from_disk_holds():
    data = {k: normal(3, 2, seed=i) for i, k in enumerate(("noise", "target", "y", "c", "text"))}
    pairs = stored_pairs(data | {"states": normal(3, 4, 2)})
    assert set(pairs.cond) == {"c", "text"}
    assert pairs.x0 is pairs.target is data["target"]
    assert pairs.y is data["y"]
    assert stored_pairs({"x0": data["noise"], "c": data["c"]}) is None
    assert stored_pairs(data | {"x0": data["c"]}).x0 is data["c"]
    assert stored_trajectories({"x0": data["noise"]}, FLOW, Uniform()(FLOW, 2), ()) is None


def test_states_are_found_by_their_times_whether_or_not_the_ends_are_stored():
    times, kept = Uniform()(FLOW, 4), [1.0, 0.9, 0.75, 0.5, 0.4, 0.25]
    data = {"noise": normal(3, 2), "target": normal(3, 2, seed=1), "states": normal(3, 6, 2, seed=2)}
    states = stored_trajectories(data, FLOW, times, kept).states
    expected = [data["noise"], *(data["states"][:, i] for i in (2, 3, 5)), data["target"]]
    assert torch.equal(states, torch.stack(expected, 1))
    with pytest.raises(ValueError, match=r"0\.666667.*0\.9"):
        stored_trajectories(data, FLOW, Uniform()(FLOW, 3), kept)
    with pytest.raises(ValueError, match=r"6 states.*\[\]"):
        stored_trajectories(data, FLOW, times, [])


def test_stored_pairs_are_validated_against_their_targets():
    world, _ = one(FLOW, 12)
    data = on_disk(FLOW, world, None, Uniform()(FLOW, 1 + 1))
    model = TrajectoryRegression(generator(Exact(world)), 1)
    mse = (model.student.generate(data["noise"]) - data["target"]).square().mean(1)
    torch.testing.assert_close(model.evaluate(model.student, data)["agreement"], 10 * torch.log10(4 / mse))
    assert model.preview(model.student, data) == {}


# --- the pool ----------------------------------------------------------------------------------------------------


def test_trajectories_of_the_pool_are_the_teachers(path):
    n, times = 8, Uniform()(path, 3)
    world, y = one(path, n)
    teacher, data = generator(Exact(world), path, solver=Heun(), steps=12), Prepared(normal(n, 2), {}, y)
    states = seeded(lambda: PairPool().trajectories(teacher, data, times).states)
    noise = seeded(lambda: torch.randn_like(data.x0))
    assert torch.equal(states[:, 0], path.start(noise, y))
    torch.testing.assert_close(states[:, -1], teacher.generate(noise, {}, y), rtol=1e-10, atol=1e-10)
    for k in (1, 2):  # the teacher's own steps to there
        x = sample(teacher.denoiser.bind(None, y), states[:, 0], path, Heun(), Uniform()(path, 12)[: 4 * k + 1], y)
        torch.testing.assert_close(states[:, k], x, rtol=1e-10, atol=1e-10)


def test_a_finer_teachers_states_are_nearer_to_the_exact_ones():
    world, errors = one(FLOW, 8)[0], []
    for steps in (12, 24, 48):
        teacher, data = generator(Exact(world), solver=Heun(), steps=steps), Prepared(normal(8, 2), {}, None)
        states = seeded(lambda: PairPool().trajectories(teacher, data, Uniform()(FLOW, 3)).states)
        errors.append((states[:, 1] - world.flow_map(states[:, 0], 1.0, 2 / 3)).abs().max())
    assert errors[0] / errors[1] > 3
    assert errors[1] / errors[2] > 3


def test_key_times_are_put_into_the_teachers_grid_where_it_lacks_them():
    grid = Uniform()(FLOW, 4)
    keys = lambda *times: torch.tensor(times, dtype=torch.float64)
    assert passing(grid, keys(1.0, 0.6, 0.5 + 1e-12, 0.0)).tolist() == [
        1.0,
        0.75,
        0.6,
        0.5 + 1e-12,
        0.25,
        0.0,
    ]
    assert passing(grid, keys(1.0, 0.3)).tolist() == [1.0, 0.75, 0.5, 0.3]
    assert passing(grid, Uniform()(FLOW, 2)).tolist() == grid.tolist()


@pytest.mark.parametrize("iterations", [1, 5])
def test_a_restored_ring_of_trajectories_continues_with_the_same_draws(iterations):
    path = PATHS["prior_edm"]
    make = lambda: KeyPoints(conditional(path), 10, steps=3, pool=PairPool(12, fresh=2))
    ours, theirs = make(), make()
    for i in range(iterations):
        seeded(lambda: ours.loss(batch(path)), i)
    theirs.load_state_dict(ours.state_dict())
    for i in range(6):
        a, b = (seeded(lambda: m.trajectories(batch(path)), 50 + i) for m in (ours, theirs))
        assert torch.equal(a.states, b.states)
        assert torch.equal(a.cond["c"], b.cond["c"])
        assert torch.equal(a.y, b.y)
    for name in ("states", "cond_c", "y"):
        assert len(getattr(ours.pool, f"ring_{name}")) == 12


def test_pairs_of_a_guided_teacher(path):
    teacher, data = conditional(path), batch(path)
    pool = PairPool(guidance=TeacherGuidance(2.5, 2.5))
    pairs = seeded(lambda: pool.make(teacher, teacher.prepare(data)))
    y = data.get("y")
    branches = [teacher.denoiser.bind({"c": c}, y) for c in (data["c"], 0 * data["c"])]

    def cfg(x, t):
        c, u = (branch(x, t) for branch in branches)
        return Estimate(u.x0 + 2.5 * (c.x0 - u.x0), u.eps + 2.5 * (c.eps - u.eps))

    expected = sample(cfg, path.start(pairs.noise, y), path, teacher.solver, Uniform()(path, 6), y)
    torch.testing.assert_close(pairs.target, expected)
    assert set(pairs.cond) == {"c"}
    states = seeded(lambda: pool.trajectories(teacher, teacher.prepare(data), Uniform()(path, 3)).states)
    torch.testing.assert_close(states[:, -1], expected)


def test_a_student_that_is_told_the_scale_gets_it_with_each_pair():
    pool = PairPool(guidance=TeacherGuidance(1.0, 4.0, told=True))
    teacher, data = conditional(FLOW), batch(FLOW, 64)
    pairs = pool.make(teacher, teacher.prepare(data))
    w = pairs.cond["w"]
    assert w.shape == (64,)
    assert 1 <= w.min() < 2
    assert 3 < w.max() <= 4
    model = GuidedDistillation(teacher, 1, student=conditional(FLOW), pool=pool)
    assert model.loss(data)["guided"].isfinite()


# --- reflow and InstaFlow ----------------------------------------------------------------------------------------


def test_on_a_rectified_flow_the_velocity_is_the_networks_output():
    net, noise, x, t = MLP(2, 16, 2).double(), normal(6, 2), normal(6, 2, seed=1), uniform(6)
    f = Denoiser(net, FLOW, U()).bind()
    expected = (net((1 - t[:, None]) * x + t[:, None] * noise, t) - (noise - x)).square().mean(1)
    torch.testing.assert_close(velocity_loss(f, FLOW, noise, x, t, SquaredL2()), expected)


def test_one_step_of_instaflow_is_knowledge_distillation():
    model, plain = (pairs_method(FLOW, kind) for kind in (FlowDistillation, TrajectoryRegression))
    losses = [seeded(lambda: m.loss(batch(FLOW))["distill"]) for m in (model, plain)]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)


def test_k_steps_of_instaflow_are_asked_at_the_students_k_times():
    seen = []

    class Spy(Conditional):
        def forward(self, x, t, c):
            seen.extend(t.tolist())
            return super().forward(x, t, c)

    model = FlowDistillation(conditional(FLOW), 1, student=generator(Spy(), kind=Guidable), steps=4)
    for _ in range(20):
        model.loss(batch(FLOW))
    assert set(seen) == {1.0, 0.75, 0.5, 0.25}


def test_reflow_does_not_train_on_what_the_teacher_was():
    """The pairs' noise and end points, not fresh noise: the loss of the straight student is 0, that of the teacher is not."""
    world, _ = one(FLOW, 32)
    straight = Straight(FLOW, world, None, 32)
    teacher = generator(Exact(world), steps=40)
    reflowed = Reflow(teacher, 1, student=generator(Exact(straight)), times=UniformTimes(margin=0.1))
    curved = Reflow(teacher, 1, student=generator(Exact(world)), times=UniformTimes(margin=0.1))
    data = {"x0": torch.zeros(32, 2, dtype=torch.float64)}
    assert reflowed.loss(data)["reflow"] < 1e-5
    assert curved.loss(data)["reflow"] > 1e-2


def test_a_reflowed_student_is_the_next_teacher_in_many_steps(tmp_path):
    student = Reflow(generator(MLP(2, 8, 1), prediction=U()), 1).student
    save(student, tmp_path / "two")
    teacher, noise = reflowed(str(tmp_path / "two"), steps=7), torch.randn(4, 2)
    assert (student.steps, teacher.steps, teacher.solver) == (1, 7, DDIM())
    with torch.no_grad():
        torch.testing.assert_close(teacher.generate(noise), student.generate(noise, steps=7))


# --- RF++ --------------------------------------------------------------------------------------------------------


def test_the_loss_of_rf_plus_plus_term_by_term():
    net, z, x = MLP(2, 16, 2).double(), normal(6, 2), normal(6, 2, seed=1)
    t = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], dtype=torch.float64)
    f, c = Denoiser(net, FLOW, U()).bind(), 0.00054 * 2
    x_t = x + t[:, None] * (z - x)
    u = net(x_t, t)
    huber = (((u - (z - x)).square().sum(1) + c**2).sqrt() - c) / 2
    torch.testing.assert_close(rf_plus_loss(f, FLOW, z, x, t, HuberPerDimension()), (1 - t) * huber)
    seen = (x_t - t[:, None] * u - x).abs().mean(1)
    ours = rf_plus_loss(f, FLOW, z, x, t, HuberPerDimension(), L1())
    torch.testing.assert_close(ours, (1 - t) * huber + seen)
    ours = rf_plus_loss(f, FLOW, z, x, t, HuberPerDimension(), L1(), over_time=True)
    torch.testing.assert_close(ours[1:], ((1 - t) * huber + seen / t)[1:])


# --- Rectified Diffusion -----------------------------------------------------------------------------------------


def test_on_a_rectified_flow_rectified_diffusion_is_reflow_times_t_squared():
    net, z, x, t = MLP(2, 16, 2).double(), normal(6, 2), normal(6, 2, seed=1), uniform(6)
    f = Denoiser(net, FLOW, U()).bind()
    reflow = velocity_loss(f, FLOW, z, x, t, SquaredL2())
    torch.testing.assert_close(data_loss(f, FLOW, z, x, t, SquaredL2()), t**2 * reflow, rtol=1e-10, atol=1e-14)


def test_the_noise_that_is_predicted_is_constant_along_each_line():
    """The property the method is named for, at its solution, in the teacher's own eps-prediction."""
    path = VP()
    world, _ = one(path, 16)
    straight, z = Straight(path, world, None, 16), normal(16, 2)
    x, times = straight.end(z), torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    eps = lambda f: torch.stack([f(path.sample(x, z, t.expand(16)), t.expand(16)).eps for t in times])
    assert eps(straight).var(0).max() < 1e-20
    assert eps(world).var(0).mean() > 1e-3


def test_drop_is_a_probability():
    with pytest.raises(ValueError, match=r"1\.5"):
        RectifiedDiffusion(conditional(FLOW), 1, drop=1.5)


def test_without_conditions_left_the_student_learns_its_unconditional_branch():
    model = pairs_method(FLOW, RectifiedDiffusion, drop=1.0)
    ours = seeded(lambda: model.loss(batch(FLOW))["distill"])
    torch.manual_seed(3)
    noise, target, *_ = model.pairs(batch(FLOW))
    t = UniformTimes()(len(noise), FLOW)
    f = model.student.denoiser.bind({"c": torch.zeros_like(noise)})
    torch.testing.assert_close(ours, data_loss(f, FLOW, noise, target, t, ElementwiseHuber()).mean())


def test_one_phase_from_pure_noise_is_the_plain_method():
    """With a_T = 0 the one segment's line runs from the noise to the teacher's end point."""
    net, z, x, t = MLP(2, 16, 2).double(), normal(6, 2), normal(6, 2, seed=1), uniform(6, low=0.01)
    f, one_, zero = Denoiser(net, FLOW, U()).bind(), torch.ones_like(t), torch.zeros_like(t)
    phased = phased_loss(f, FLOW, z, one_, x, zero, t, ElementwiseHuber())
    torch.testing.assert_close(phased, data_loss(f, FLOW, z, x, t, ElementwiseHuber()))


def test_phases_lie_between_the_students_own_times():
    moves, asked = [], []

    class Spy(Conditional):
        def forward(self, x, t, c):
            asked.extend(t.tolist())
            return super().forward(x, t, c)

    class Watched(TeacherStep):
        def __call__(self, teacher, path, x, t, s, y=None):
            moves.extend(zip(t.tolist(), s.tolist(), strict=True))
            return super().__call__(teacher, path, x, t, s, y)

    student = generator(Spy(), kind=Guidable)
    model = PhasedRectifiedDiffusion(conditional(FLOW), 1, student=student, steps=4, step=Watched(DDIM(), 2))
    for _ in range(20):
        model.loss(batch(FLOW))
    assert set(moves) == {(1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)}
    assert all(e < t <= s for t, (s, e) in zip(asked, moves, strict=True))


# --- SlimFlow ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [LinearAnnealing, CosineAnnealing, ExponentialAnnealing])
def test_annealing_runs_from_independent_noise_towards_the_pairs(kind):
    beta = kind(0.5)
    values = [beta(k / 20) for k in range(21)]
    assert values[0] == 1.0
    assert all(a >= b >= 0 for a, b in itertools.pairwise(values))
    at_share = {LinearAnnealing: 0.0, CosineAnnealing: 0.0, ExponentialAnnealing: math.exp(-1)}[kind]
    assert beta(0.5) == pytest.approx(at_share, abs=1e-15)
    half = {LinearAnnealing: 0.5, CosineAnnealing: 0.5, ExponentialAnnealing: math.exp(-0.5)}[kind]
    assert beta(0.25) == pytest.approx(half)
    with pytest.raises(ValueError, match="share"):
        kind(0.0)


def annealed(done, share=0.5):
    model = AnnealingReflow(conditional(FLOW), 100, student=conditional(FLOW, scale=0.3), beta=LinearAnnealing(share))
    model.done = done
    return model


def test_at_its_end_annealing_is_reflow_bit_for_bit():
    plain = pairs_method(FLOW, Reflow)
    a, b = (seeded(lambda: m.loss(batch(FLOW))["reflow"]) for m in (annealed(60), plain))
    assert torch.equal(a, b)


def test_at_its_start_annealing_is_flow_matching_on_the_teachers_samples():
    model = annealed(0)
    ours = seeded(lambda: model.loss(batch(FLOW))["reflow"])
    torch.manual_seed(3)
    _, target, _, cond, _ = model.pairs(batch(FLOW))
    t = UniformTimes()(len(target), FLOW)
    net = model.student.denoiser.net
    as_flow = lambda x, t, c: (x - net(x, t, c)) / t[:, None]  # the same student as a network of velocities

    class Flow(nn.Module):
        def forward(self, x, t, c):
            return as_flow(x, t, c)

    expected = denoising_loss(Denoiser(Flow(), FLOW, U()), target, torch.randn_like(target), t, cond)
    torch.testing.assert_close(ours, expected.mean())


@pytest.mark.parametrize("done", [0, 10, 25, 40, 50])
def test_the_annealed_noise_keeps_its_variance(done):
    """The student's input at t = 1 is the noise itself."""
    seen = []

    class Spy(Conditional):
        def forward(self, x, t, c):
            seen.append(x)
            return super().forward(x, t, c)

    student = generator(Spy(), kind=Guidable)
    model = AnnealingReflow(conditional(FLOW), 100, student=student, times=GridTimes(1))
    model.done = done
    data = {"x0": normal(40000, 2), "c": normal(40000, 2, seed=1)}
    noise = seeded(lambda: model.pairs(data).noise)
    seeded(lambda: model.loss(data))
    beta = 1 - done / 50
    assert seen[0].var() == pytest.approx(1.0, abs=0.02)
    assert (seen[0] * noise).mean() == pytest.approx(math.sqrt(1 - beta**2), abs=0.02)


def test_the_guided_term_needs_a_straight_teacher():
    """The one-step map of a curved teacher is not its fixed point; that of a reflowed one is, with zero gradient."""
    world, _ = one(FLOW, 16)
    straight, z, t = Straight(FLOW, world, None, 16), normal(16, 2), uniform(16, low=0.2, high=0.8)
    exact = Exact(straight)
    f = Denoiser(exact, FLOW, X0()).bind()
    loss = guided_loss(f, straight, FLOW, z, t, SquaredL2()).mean()
    loss.backward()
    assert loss < 1e-20
    assert exact.weight.grad.abs() < 1e-9
    assert guided_loss(straight, world, FLOW, z, t, SquaredL2()).mean() > 1e-3


def test_the_guided_term_does_not_differentiate_its_target():
    student, teacher = MLP(2, 16, 2).double(), MLP(2, 16, 2).double()
    z, t = normal(8, 2), uniform(8, low=0.2, high=0.8)
    f, v = (Denoiser(n, FLOW, U()).bind() for n in (student, teacher))
    guided_loss(f, v, FLOW, z, t, SquaredL2()).mean().backward()
    ours = [p.grad.clone() for p in student.parameters()]
    student.zero_grad()
    u0 = student(z, torch.ones_like(t))
    x_t = (z - (1 - t)[:, None] * u0).detach()
    x = (x_t - t[:, None] * teacher(x_t, t)).detach()  # one step of the teacher to the data
    (u0 - (z - x)).square().mean().backward()
    for g, p in zip(ours, student.parameters(), strict=True):
        torch.testing.assert_close(g, p.grad)


def test_a_smaller_student_from_random_weights_can_be_given():
    teacher, student = generator(MLP(2, 32, 3), prediction=U()), generator(MLP(2, 8, 2), prediction=U())
    for kind in (AnnealingReflow, GuidedDistillation):
        model = kind(teacher, 10, student=student)
        assert model.student is student
        assert sum(model.loss({"x0": torch.zeros(4, 2)}).values()).isfinite()


# --- key points and redress --------------------------------------------------------------------------------------


def test_on_a_rectified_flow_the_chord_loss_is_that_of_velocities():
    net, x_t, x_s = MLP(2, 16, 2).double(), normal(6, 2), normal(6, 2, seed=1)
    t, s = uniform(6, low=0.5), uniform(6, seed=1, high=0.4)
    expected = (net(x_t, t) - (x_s - x_t) / (s - t)[:, None]).square().mean(1)
    f = Denoiser(net, FLOW, U()).bind()
    torch.testing.assert_close(chord_loss(f, FLOW, x_t, t, x_s, s, SquaredL2()), expected)


def test_key_points_never_see_a_noised_datum():
    """Every input is one of the states that were stored."""
    seen, times = [], Uniform()(FLOW, 3)
    world, _ = one(FLOW, 12)

    class Spy(Exact):
        def forward(self, x, t, **cond):
            seen.append(x)
            return super().forward(x, t)

    data = on_disk(FLOW, world, None, times)
    stored = tuple(times[1:-1].tolist())
    model = KeyPoints(generator(Exact(world)), 1, student=generator(Spy(world)), steps=3, stored=stored)
    for _ in range(5):
        model.loss(data)
    allowed = torch.cat([data["noise"], *data["states"].unbind(1)])
    for x in torch.cat(seen):
        assert (x == allowed).all(1).any()


def redressed(steps=4, candidates=9, kind=Exact):
    world = ring(FLOW)
    teacher = generator(Exact(world), solver=DDIM(), steps=candidates)
    return Redress(teacher, 10, candidates, student=generator(kind(world)), steps=steps)


def test_the_times_of_redress_cost_the_least_of_all_subsets():
    model = redressed()
    cost = seeded(lambda: model.search({"x0": normal(32, 2)}))
    x = seeded(lambda: torch.randn(32, 2, dtype=torch.float64))
    world, grid = ring(FLOW), Uniform()(FLOW, 9)
    c = step_costs(FLOW, [record(Starts(world, x, x), FLOW, DDIM(), grid)])
    subsets = [(0, *inner, 9) for inner in itertools.combinations(range(1, 9), 3)]
    best = min(subsets, key=lambda nodes: sum(c[i, j] for i, j in itertools.pairwise(nodes)))
    assert model.chosen.tolist() == list(best)
    assert cost == pytest.approx(sum(c[i, j].item() for i, j in itertools.pairwise(best)))
    assert torch.equal(model.times, grid[list(best)])
    assert model.student.grid == Explicit(tuple(grid[list(best)].tolist()))


def test_the_search_happens_once_and_its_times_travel_with_the_checkpoint():
    ours, theirs = redressed(), redressed()
    data = {"x0": normal(16, 2)}
    assert not ours.chosen.any()
    seeded(lambda: ours.loss(data), 0)
    chosen = ours.chosen.clone()
    object.__setattr__(theirs, "averaged", generator(Exact(ring(FLOW))))
    theirs.load_state_dict(ours.state_dict())
    assert theirs.student.grid == theirs.averaged.grid == ours.student.grid
    a, b = (seeded(lambda: m.loss(data), 7)["chord"] for m in (ours, theirs))
    assert torch.equal(a, b)
    assert torch.equal(ours.chosen, chosen)


def test_redress_reproduces_the_end_of_the_long_trajectory():
    """A student that has learnt its chords walks the K chosen states of the K_max-step path."""

    class Memory(nn.Module):
        """At each chosen time, the chord of the teacher's DDIM steps to the next."""

        def __init__(self, world):
            super().__init__()
            self.world, self.weight = world, nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, x, t):
            out, fine = torch.zeros_like(x), Uniform()(FLOW, 9)
            for t_k, s in itertools.pairwise(self.times):
                rows, between = t == t_k, fine[(fine <= t_k) & (fine >= s)]
                if rows.any():
                    x_s = sample(self.world, x[rows], FLOW, DDIM(), between)
                    times = (v.expand(len(x_s)) for v in (t_k, s))
                    t_, s_ = times
                    out[rows] = secant(FLOW, x[rows], t_, x_s, s_).x0
            return self.weight * out

    model = redressed(kind=Memory)
    model.search({"x0": normal(32, 2)})
    model.student.denoiser.net.times = model.times
    assert_zero_with_gradient(model, {"x0": normal(16, 2)})
    noise = normal(64, 2, seed=9)
    torch.testing.assert_close(model.student.generate(noise), model.teacher.generate(noise))


def test_more_steps_than_candidates_are_refused():
    with pytest.raises(ValueError, match=r"10 steps over 9"):
        redressed(steps=10).loss({"x0": normal(8, 2)})


def test_redress_chooses_among_stored_times():
    world, _ = one(FLOW, 12)
    times = torch.tensor([1.0, 0.9, 0.55, 0.3, 0.1, 0.0], dtype=torch.float64)
    model = Redress(generator(Exact(world)), 1, steps=3, stored=tuple(times.tolist()[1:-1]))
    model.loss(on_disk(FLOW, world, None, times))
    assert set(model.times.tolist()) < set(times.tolist())
    assert len(model.times) == 4


# --- BOOT --------------------------------------------------------------------------------------------------------


def test_the_signal_obeys_its_equation():
    """dy/dt = -lambda'_t (D(x_t, t) - y_t) with lambda = -log(a/s), on paths that begin as pure noise."""
    for path in (FLOW, Trig()):
        world, _ = one(path, 8)
        eps, t, h = normal(8, 2), uniform(8, low=0.1 * path.t_max, high=0.9 * path.t_max), 1e-5
        x = lambda t: world.flow_map(path.start(eps), path.t_max, t)
        y = lambda t: signal(path, path.start(eps), x(t), t)
        c = coeffs(path, t)
        torch.testing.assert_close(y(t), (x(t) - c.s * eps) / c.a)
        rate = (y(t + h) - y(t - h)) / (2 * h)
        lam_rate = c.ds / c.s - c.da / c.a
        torch.testing.assert_close(rate, -lam_rate * (world(x(t), t).x0 - y(t)), rtol=1e-6, atol=1e-6)


def test_the_step_of_the_signal_is_ddims():
    """y_s = y + (1 - s_s a_t/(a_s s_t)) (D - y)."""
    world, _ = one(FLOW, 8)
    eps, y = normal(8, 2), normal(8, 2, seed=1)
    t, s = uniform(8, low=0.3, high=0.9), uniform(8, seed=1, low=0.05, high=0.25)
    target = []
    distance = lambda a, b: target.append(b) or SquaredL2()(a, b)
    boot_loss(lambda t: y, world, TeacherStep(), FLOW, eps, t, s, distance)
    ct, cs = coeffs(FLOW, t), coeffs(FLOW, s)
    d = world(ct.a * y + ct.s * eps, t).x0
    torch.testing.assert_close(target[0], y + (1 - cs.s * ct.a / (cs.a * ct.s)) * (d - y))


def test_the_bootstrap_loss_of_the_exact_signal_falls_with_the_step():
    """Euler's local error is of second order in delta, so the loss / delta^2 falls with delta^2."""
    world, _ = one(FLOW, 64)
    eps, u = normal(64, 2), uniform(64, low=0.3, high=0.9)
    g = lambda t: signal(FLOW, eps, world.flow_map(eps, 1.0, t), t)
    loss = lambda d: boot_loss(g, world, TeacherStep(), FLOW, eps, u, u - d, SquaredL2()).mean().item() / d**2
    assert math.log2(loss(0.02) / loss(0.01)) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("where", [k for k in PATHS if k not in ANCHORED])
def test_a_copy_of_the_teacher_begins_on_the_boundary(where):
    model = BOOT(generator(MLP(2, 16, 2).double(), PATHS[where], X0()), 1)
    terms = model.loss({"x0": normal(8, 2)})
    assert terms["boundary"] < 1e-20 < terms["bootstrap"]
    assert (model.student.steps, model.student.gamma) == (1, 0.0)


class Jumper(JumpGenerator, Guidable):
    """Jumps with a condition and an anchor."""


class Jumping(nn.Module):
    """Takes a condition, and the end of a jump where it is told."""

    def __init__(self):
        super().__init__()
        self.net = MLP(2, 16, 2).double()

    def forward(self, x, t, c, s=None):
        return self.net(x + 0.1 * c, t if s is None else t + s)


@pytest.mark.parametrize("where", sorted(ANCHORED))
def test_boot_hands_on_conditions_and_anchors(where):
    """The terms are those of the pure loss with the same draws."""
    path, net = PATHS[where], Jumping()
    student = Jumper(Denoiser(net, path, X0()), DDIM(), Uniform())
    model, data = BOOT(conditional(path), 1, student=student, boundary=2.0), batch(path)
    terms = seeded(lambda: model.loss(data))
    torch.manual_seed(3)
    (t, s), y, c = FixedStep()(5, path), data["y"], data["c"]
    x_T, end = path.start(torch.randn_like(data["x0"]), y), torch.full((5,), path.t_max, dtype=torch.float64)
    g, teacher = lambda t: net(x_T, end, c, t), model.teacher.denoiser.bind({"c": c}, y)
    expected = boot_loss(g, teacher, TeacherStep(), path, x_T, t, s, SquaredL2(), y).mean() * 25**2
    torch.testing.assert_close(terms["bootstrap"], expected)
    torch.testing.assert_close(terms["boundary"], 2 * SquaredL2()(g(end), teacher(x_T, end).x0).mean())


def test_one_jump_of_the_exact_student_is_the_teachers_end_point(path):
    world, y = one(path, 16)

    class Signals(nn.Module):
        def forward(self, x, t, s):
            return signal(path, x, world.flow_map(x, t, s), s, y)

    student = JumpGenerator(Denoiser(Signals(), path, X0()), DDIM(), Uniform())
    noise = normal(16, 2)
    exact = world.flow_map(path.start(noise, y), path.t_max, path.t_min)
    torch.testing.assert_close(student.generate(noise, y=y), exact)


def test_bootstrap_targets_carry_no_gradient():
    model = BOOT(generator(MLP(2, 16, 2).double(), prediction=U()), 1)
    calls = []
    distance = lambda a, b: calls.append((a.requires_grad, b.requires_grad)) or SquaredL2()(a, b)
    model.distance = distance
    sum(model.loss({"x0": normal(8, 2)}).values()).backward()
    assert calls == [(True, False), (True, False)]
    assert all(p.grad is None for p in model.teacher.parameters())


def test_steps_of_boot_cover_the_range():
    for path in (FLOW, EDM()):
        t, s = FixedStep(25)(20000, path)
        torch.testing.assert_close(t - s, torch.full_like(t, path.t_max / 25))
        assert s.min() >= 0
        assert s.min() < 0.001 * path.t_max
        assert 0.999 * path.t_max < t.max() <= path.t_max


# --- time samplers -----------------------------------------------------------------------------------------------


def test_u_shaped_times_have_their_moments():
    t = seeded(lambda: UShapedTimes()(400000, FLOW))
    assert t.mean() == pytest.approx(0.5, abs=2e-3)
    assert t.var() == pytest.approx(0.1154, rel=0.01)
    assert (t < 0.1).double().mean() == pytest.approx(0.1725, rel=0.01)
    assert t.min() >= 1e-5
    assert t.max() <= 1 - 1e-5
    wide = seeded(lambda: UShapedTimes()(1000, EDM()))
    torch.testing.assert_close(wide, 80 * seeded(lambda: UShapedTimes()(1000, FLOW)))


def test_logit_normal_times_are_normal_in_the_logit():
    for path in (FLOW, EDM()):
        u = seeded(lambda: LogitNormalTimes(-0.4, 0.7)(200000, path)) / path.t_max
        logit = u.logit()
        assert logit.mean() == pytest.approx(-0.4, abs=0.01)
        assert logit.std() == pytest.approx(0.7, abs=0.01)


def test_half_log_normal_times_have_the_moments_of_both_halves():
    t = seeded(lambda: HalfLogNormalTimes()(200001, EDM()))
    normal_, noisy = t[:100000].log(), t[100000:] ** (1 / 7)
    assert len(noisy) == 100001
    assert normal_.mean() == pytest.approx(-1.2, abs=0.02)
    assert normal_.std() == pytest.approx(1.2, abs=0.02)
    top, low = 80 ** (1 / 7), 80 ** (1 / 7) + 0.7 * (0.002 ** (1 / 7) - 80 ** (1 / 7))
    assert noisy.mean() == pytest.approx((top + low) / 2, abs=5e-3)
    assert noisy.std() == pytest.approx((top - low) / math.sqrt(12), abs=5e-3)
    assert noisy.min() >= low - 1e-12
    assert noisy.max() <= top + 1e-12
    on_flow = seeded(lambda: HalfLogNormalTimes()(1000, FLOW))
    torch.testing.assert_close(on_flow / (1 - on_flow), seeded(lambda: HalfLogNormalTimes()(1000, EDM())))


def test_grid_times_are_the_students_times_each_as_likely():
    t = seeded(lambda: GridTimes(4)(40000, FLOW))
    values, counts = t.unique(return_counts=True)
    assert values.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert (counts / 10000 - 1).abs().max() < 0.05
