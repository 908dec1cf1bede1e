"""Trajectory regression and its pool of teacher pairs, on worlds whose flow map is known."""

import pytest
import torch
from torch import nn
from worlds import normal

from fewstep.denoiser import Denoiser
from fewstep.distill import TrajectoryRegression
from fewstep.distill.pool import PairPool
from fewstep.distill.trajectory import regression_loss
from fewstep.generator import Generator, Prepared
from fewstep.grids import Uniform
from fewstep.nets import MLP
from fewstep.paths import RectifiedFlow, ResidualShift
from fewstep.prediction import X0
from fewstep.solvers import DDIM, Heun
from fewstep.toy import Mixture, gaussian, ring

FLOW = RectifiedFlow()


class Exact(nn.Module):
    """The exact x0 of a world, as a network."""

    def __init__(self, world):
        super().__init__()
        self.world = world
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x, t, **cond):
        return self.weight * self.world(x, t.double()).x0.to(x.dtype)


class FlowMap(nn.Module):
    """x at the noisy end -> the end of its exact trajectory."""

    def __init__(self, world):
        super().__init__()
        self.world = world
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x, t, **cond):
        return self.weight * self.world.flow_map(x, t, torch.zeros_like(t))


class Corners(nn.Module):
    """E[x0 | x_t] of four Gaussians at (+-1, +-1) with deviation d = 0.2, on x_t = (1 - t) x0 + t eps; each coordinate is alone:

    v = a^2 d^2 + s^2,   E = k x + (1 - k a) tanh(a x / v),   k = a d^2 / v
    """

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x, t):
        a, s = 1 - t[:, None], t[:, None]
        v = 0.04 * a**2 + s**2
        k = 0.04 * a / v
        return k * x + (1 - k * a) * torch.tanh(a * x / v)


class Conditional(nn.Module):
    """Depends on state, time, condition and (through the state) anchor, so that mixed-up rows show."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))

    def forward(self, x, t, c):
        return self.weight * torch.tanh(x + c) + 0.01 * t[:, None]


def correlated(dim=3):
    root = normal(dim, dim, seed=1) * 0.5
    cov = root @ root.mT + 0.05 * torch.eye(dim, dtype=torch.float64)
    return Mixture(FLOW, normal(1, dim, seed=2), cov[None])


def generator(net, path=FLOW, prediction=None, solver=None, steps=8):
    return Generator(Denoiser(net, path, prediction or X0()), solver or Heun(), Uniform(), steps)


# --- trajectory regression ---------------------------------------------------------------------------------------


def test_the_regression_loss_is_the_mean_square_of_each_sample():
    x, target = normal(4, 2, 3), normal(4, 2, 3, seed=1)
    loss = regression_loss(lambda n: 2 * n, x, target)
    assert loss.shape == (4,)
    torch.testing.assert_close(loss[2], (2 * x[2] - target[2]).square().mean())


@pytest.mark.parametrize("world", [gaussian(FLOW, 1.5, 0.5, dim=2), correlated()], ids=["isotropic", "correlated"])
def test_the_exact_flow_map_has_zero_loss_against_a_fine_teacher(world):
    dim, losses = world.means.shape[1], []
    for steps in (32, 64, 128):
        model = TrajectoryRegression(generator(Exact(world), steps=steps), 1, student=generator(FlowMap(world)))
        torch.manual_seed(0)
        losses.append(model.loss({"x0": torch.zeros(16, dim, dtype=torch.float64)})["distill"].item())
    assert losses[2] < 1e-5
    assert losses[0] / losses[1] > 3  # the error falls with the steps of the teacher, its square at least as h^2
    assert losses[1] / losses[2] > 3


def test_a_student_that_repeats_the_teachers_steps_has_zero_loss():
    world = ring(FLOW)
    model = TrajectoryRegression(generator(Exact(world), steps=5), 1, steps=5, student=generator(Exact(world)))
    assert model.loss({"x0": normal(32, 2)})["distill"].item() == 0.0


def test_without_a_student_it_is_a_copy_of_the_teacher_that_learns_alone():
    teacher = generator(MLP(2, 16, 2), steps=4)
    model = TrajectoryRegression(teacher, 1)
    before = [p.clone() for p in teacher.parameters()]
    assert (model.student.steps, teacher.steps) == (1, 4)
    assert all(p.requires_grad for p in model.student.parameters())
    model.loss({"x0": torch.zeros(8, 2)})["distill"].backward()
    assert all(p.grad is not None for p in model.student.parameters())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(p, q) for p, q in zip(before, teacher.parameters(), strict=True))
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in model.parameters()}
    assert not any("teacher" in name for name in model.state_dict())


def test_agreement_is_the_psnr_against_the_teacher():
    model = TrajectoryRegression(generator(Exact(gaussian(FLOW, 1.5, 0.5, dim=2)), steps=1), 1)
    with torch.no_grad():
        model.student.denoiser.net.weight.fill_(0.5)  # in one step it gives half of what the teacher gives
    batch = {"x0": normal(16, 2)}
    torch.manual_seed(3)
    agreement = model.evaluate(model.student, batch)["agreement"]
    torch.manual_seed(3)
    target = model.teacher.generate(torch.randn_like(batch["x0"]))
    torch.testing.assert_close(agreement, 10 * torch.log10(4 / (target / 2).square().mean(1)))


def test_a_short_training_brings_the_student_five_times_nearer():
    torch.manual_seed(0)
    teacher = generator(Corners(), steps=8)
    student = generator(MLP(2, 64, 3))
    model = TrajectoryRegression(teacher, 300, student=student)
    held_out, fit = torch.randn(1024, 2), {"x0": torch.zeros(256, 2)}

    def distance():
        with torch.no_grad():
            return regression_loss(model.student.generate, held_out, model.teacher.generate(held_out)).mean().item()

    before = distance()
    optimizer = torch.optim.Adam(model.student.parameters(), lr=3e-3)
    for _ in range(300):
        optimizer.zero_grad()
        model.loss(fit)["distill"].backward()
        optimizer.step()
    assert distance() < before / 5


# --- the pool ----------------------------------------------------------------------------------------------------

ANCHORED = ResidualShift(steps=5, kappa=0.5)


def anchored():
    return generator(Conditional(), ANCHORED, X0(), DDIM(), 5)


def prepared(n, seed):
    return Prepared(normal(n, 2, seed=seed), {"c": normal(n, 2, seed=seed + 100)}, normal(n, 2, seed=seed + 200))


def assert_consistent(teacher, pairs):
    expected = teacher.generate(pairs.noise, pairs.cond, pairs.y)
    torch.testing.assert_close(pairs.target, expected, rtol=1e-12, atol=1e-12)
    assert not pairs.target.requires_grad


def test_without_a_ring_every_batch_is_fresh():
    teacher, pool, data = anchored(), PairPool(), prepared(6, 0)
    first, second = (pool.draw(teacher, data) for i in range(2))
    for pairs in (first, second):
        assert_consistent(teacher, pairs)
        assert torch.equal(pairs.x0, data.x0)
        assert torch.equal(pairs.y, data.y)
    assert not (first.noise == second.noise).any()


def test_each_pair_belongs_together():
    teacher, pool = anchored(), PairPool(20, fresh=3)
    sources = {}
    for i in range(30):
        data = prepared(8, 10 * i)
        sources |= {tuple(x.tolist()): (c, y) for x, c, y in zip(data.x0, data.cond["c"], data.y, strict=True)}
        pairs = pool.draw(teacher, data)
        assert [len(v) for v in (pairs.noise, pairs.target, pairs.x0, pairs.y, pairs.cond["c"])] == [8] * 5
        assert_consistent(teacher, pairs)
        for x, c, y in zip(pairs.x0, pairs.cond["c"], pairs.y, strict=True):
            assert torch.equal(c, sources[tuple(x.tolist())][0])
            assert torch.equal(y, sources[tuple(x.tolist())][1])


def test_the_ring_keeps_the_latest_pairs_and_no_more():
    calls = []

    class Counting(Conditional):
        def forward(self, x, t, c):
            calls.append(len(x))
            return super().forward(x, t, c)

    teacher, pool = generator(Counting(), ANCHORED, X0(), DDIM(), 5), PairPool(20, fresh=3)
    made = []
    for i in range(12):
        calls.clear()
        data = prepared(8, 10 * i)
        pairs = pool.draw(teacher, data)
        new = 8 if i < 3 else 3  # whole batches until the ring is full: 8, 16, 24 >= 20
        assert calls == [new] * 5
        made += [tuple(x.tolist()) for x in data.x0[:new]]
        held = {tuple(x.tolist()) for x in pool.ring_x0 if x.any()}
        assert held == set(made[-20:])
        drawn = [tuple(x.tolist()) for x in pairs.x0]
        assert len(set(drawn)) == 8  # without repetition
        assert set(drawn) <= held
    assert {name: len(v) for name, v in pool.named_buffers() if name.startswith("ring_")} == {
        f"ring_{k}": 20 for k in ("noise", "target", "x0", "y", "cond_c")
    }


def test_all_pairs_of_the_ring_are_drawn_about_equally_often():
    teacher, pool, data = anchored(), PairPool(16, fresh=1), prepared(4, 0)
    torch.manual_seed(0)
    for i in range(4):
        pool.draw(teacher, prepared(4, 10 * i))
    ages = torch.zeros(16)
    rounds = 400
    for _ in range(rounds):
        pairs, newest = pool.draw(teacher, data), int(pool.filled) - 1
        slots = (pairs.noise[:, None] == pool.ring_noise).all(-1).int().argmax(1)
        ages.index_add_(0, (newest - slots) % 16, torch.ones(4))
    expected = rounds * 4 / 16
    assert (ages - expected).abs().max() < 5 * expected**0.5


@pytest.mark.parametrize("iterations", [1, 2, 7])
def test_a_restored_pool_continues_with_the_same_draws(iterations):
    teacher = anchored()
    ours = PairPool(12, fresh=2)
    for i in range(iterations):
        ours.draw(teacher, prepared(5, i))
    theirs = PairPool(12, fresh=2)
    theirs.load_state_dict(ours.state_dict())
    for i in range(iterations, iterations + 6):
        draws = []
        for pool in (ours, theirs):
            torch.manual_seed(i)
            draws.append(pool.draw(teacher, prepared(5, i)))
        a, b = draws
        assert torch.equal(a.noise, b.noise)
        assert torch.equal(a.target, b.target)
        assert torch.equal(a.cond["c"], b.cond["c"])
        assert torch.equal(a.y, b.y)


def test_the_pool_travels_in_the_state_of_the_method():
    def method():
        return TrajectoryRegression(generator(Exact(ring(FLOW))), 5, pool=PairPool(16, fresh=2))

    ours, theirs = method(), method()
    for _ in range(3):
        ours.loss({"x0": normal(8, 2)})
    theirs.load_state_dict(ours.state_dict())
    losses = []
    for model in (ours, theirs):
        torch.manual_seed(9)
        losses.append(model.loss({"x0": normal(8, 2)})["distill"])
    assert torch.equal(*losses)


def test_a_restored_pool_does_not_share_memory_with_the_checkpoint():
    teacher, ours, theirs = anchored(), PairPool(8, fresh=2), PairPool(8, fresh=2)
    ours.draw(teacher, prepared(4, 0))
    state = ours.state_dict()
    theirs.load_state_dict(state)
    kept = {k: v.clone() for k, v in state.items()}
    theirs.draw(teacher, prepared(4, 1))
    assert all(torch.equal(kept[k], v) for k, v in state.items())


def test_rings_smaller_than_a_batch_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"7.*8"):
        PairPool(7).draw(anchored(), prepared(8, 0))


def test_without_fresh_pairs_the_first_ones_stay():
    teacher, pool = anchored(), PairPool(8, fresh=0)
    for i in range(2):
        pool.draw(teacher, prepared(4, i))
    before = {k: v.clone() for k, v in pool.state_dict().items()}
    assert int(pool.filled) == 8
    drawn = pool.draw(teacher, prepared(4, 9))
    assert all(torch.equal(v, before[k]) for k, v in pool.state_dict().items())
    assert all(any(torch.equal(row, kept) for kept in before["ring_noise"]) for row in drawn.noise)


@pytest.mark.parametrize(("size", "fresh"), [(-1, 4), (8, -2)])
def test_impossible_pools_are_refused(size, fresh):
    with pytest.raises(ValueError, match=f"{size}.*{fresh}"):
        PairPool(size, fresh)


def test_a_ring_of_exactly_one_batch_works():
    teacher, pool = anchored(), PairPool(4, fresh=9)
    for i in range(5):
        assert_consistent(teacher, pool.draw(teacher, prepared(4, i)))
