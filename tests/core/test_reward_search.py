"""Searches by a reward: against slow loops sample by sample, counted evaluations, limits in which they are plain sampling."""

import pytest
import torch
from worlds import correlated, name, normal

from fewstep.grids import Uniform
from fewstep.paths import OUVE, VP, MeanReverting, RectifiedFlow
from fewstep.reward_search import beam_search, best_of_n, rollover, search_trajectories, zero_order
from fewstep.sampling import sample
from fewstep.solvers import DDIM, Ancestral
from fewstep.stepping import look_ahead, noised, step
from fewstep.toy import ring

PATH = VP()
GRID = Uniform(end=1e-3)(PATH, 8)
GOAL = torch.tensor([2.0, 0.0], dtype=torch.float64)  # one of the eight modes


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def close(a, b, tol=1e-10):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


def reward(x0):
    return -(x0 - GOAL).square().sum(1)


class Counted:
    """The ring, counting its evaluations."""

    def __init__(self, path=PATH):
        self.world, self.calls = ring(path), 0

    def __call__(self, x, t):
        self.calls += 1
        return self.world(x, t)


# Steps


@pytest.mark.parametrize("solver", [DDIM(), Ancestral()], ids=name)
def test_a_step_is_that_of_the_loop(solver):
    path, x, y, noise = OUVE(), normal(5, 3), normal(5, 3, seed=1), normal(5, 3, seed=2)
    world, grid = correlated(path, y), torch.tensor([0.8, 0.5], dtype=torch.float64)
    whole = sample(world, x, path, solver, grid, y, generator=lambda row: noise)
    close(step(path, solver, x, world(x, 0.8), 0.8, 0.5, y, noise), whole)
    times = torch.full((5,), 0.8, dtype=torch.float64)
    close(step(path, solver, x, world(x, times), times, times - 0.3, y, noise), whole)


@pytest.mark.parametrize(
    ("path", "t", "u"), [(VP(), 0.2, 0.6), (OUVE(), 0.2, 0.6), (MeanReverting(), 20.0, 60.0)], ids=name
)
def test_noising_keeps_the_path(path, t, u):
    x0, eps, y, noise = (normal(4, 3, seed=i) for i in range(4))
    y = y if path.anchored else None
    (a, _, s), (a_u, b_u, s_u) = path.levels(t), path.levels(u)
    x = noised(path, path.sample(x0, eps, torch.full((4,), t, dtype=torch.float64), y), t, u, noise, y)
    kept = a_u * s / a
    expected = a_u * x0 + kept * eps + (s_u**2 - kept**2) ** 0.5 * noise
    close(x, expected if y is None else expected + b_u * y)


def test_looking_ahead_is_ddim_on_equal_times():
    world, x = Counted(), normal(5, 2)
    x0, first = look_ahead(world, x, PATH, 0.7, 4)
    assert world.calls == 4
    close(x0, sample(world.world, x, PATH, DDIM(), torch.linspace(0.7, 0.0, 5, dtype=torch.float64)))
    close(first.eps, world.world(x, 0.7).eps)
    close(look_ahead(world, x, PATH, 0.7, 1)[0], world.world(x, 0.7).x0)


# Starts


def test_the_best_of_n_is_the_best_of_n():
    def sampler(noise):
        return sample(ring(PATH), noise, PATH, DDIM(), GRID)

    found = best_of_n(sampler, torch.zeros(6, 2, dtype=torch.float64), reward, 5, seeded(), nfe=8)
    g = seeded()
    every = torch.stack([reward(sampler(torch.randn(6, 2, generator=g, dtype=torch.float64))) for _ in range(5)])
    close(found.reward, every.amax(0))
    close(reward(found.x0), found.reward)
    assert found.nfe == 40
    with pytest.raises(ValueError, match="n >= 1"):
        best_of_n(sampler, normal(6, 2), reward, 0)


def test_neighbours_are_on_the_sphere_of_the_law_and_the_pivot_moves_to_the_best():
    tried = []

    def sampler(noise):
        tried.append(noise)
        return noise

    start = normal(7, 2)
    found = zero_order(sampler, start, reward, iterations=3, neighbours=2, radius=0.6, generator=seeded())
    g, pivot = seeded(), start
    for k in range(3):
        xi = [torch.randn(7, 2, generator=g, dtype=torch.float64) for _ in range(2)]
        near = [0.8 * pivot + 0.6 * v for v in xi]
        for a, b in zip(tried[1 + 2 * k : 3 + 2 * k], near, strict=True):
            close(a, b)
        every = torch.stack([pivot, *near])
        index = torch.stack([reward(v) for v in every]).argmax(0)
        pivot = every[index, torch.arange(7)]
    close(found.x0, pivot)
    assert found.nfe == len(tried) == 7
    with pytest.raises(ValueError, match="radius"):
        zero_order(sampler, start, reward, 1, radius=0.0)


# Trajectories


def test_searched_trajectories_by_hand():
    """N = 2, M = 2 over 4 steps: back one node, ahead two, from node 2."""
    world, x = Counted(), normal(2, 3, 2)
    grid = Uniform(end=1e-3)(PATH, 4)
    t = grid.tolist()
    found = search_trajectories(world, x, PATH, DDIM(), grid, reward, start=2, back=1, ahead=2, generator=seeded())
    assert found.nfe == world.calls

    def leg(state, i, j):
        return sample(world.world, state, PATH, DDIM(), grid[i : j + 1])

    g, states = seeded(), [leg(state, 0, 2) for state in x]
    for i in (2, 3):
        noise = [torch.randn(3, 2, generator=g, dtype=torch.float64) for _ in range(4)]
        made = [leg(noised(PATH, states[k // 2], t[i], t[i - 1], noise[k]), i - 1, i + 1) for k in range(4)]
        judged = [reward(v if i == 3 else world.world(v, t[i + 1]).x0) for v in made]
        order = torch.stack(judged).argsort(0, descending=True)
        states = [torch.stack([made[int(order[n, b])][b] for b in range(3)]) for n in range(2)]
    close(found.x0, states[0])
    close(found.reward, reward(states[0]))
    with pytest.raises(ValueError, match="back < ahead"):
        search_trajectories(world, x, PATH, DDIM(), grid, reward, start=2, back=2, ahead=2)


def one_rollover(world, starts, noises, grid, nfe):
    """The rules in words, for one sample: starts (K, 1, D), noises (nfe - K, 1, D)."""
    t, n = grid.tolist(), len(grid) - 1
    at = [world(x, t[0]) for x in starts]
    k = max(range(len(starts)), key=lambda k: reward(at[k].x0).item())
    x, here, best, found = starts[k], at[k], reward(at[k].x0).item(), at[k].x0
    quota = (nfe - len(starts)) // (n - 1)
    level, left, children = 0, quota, []
    for noise in noises:
        child = step(PATH, Ancestral(), x, here, t[level], t[level + 1], noise=noise)
        estimate = world(child, t[level + 1])
        value, left = reward(estimate.x0).item(), left - 1
        children.append((value, child, estimate))
        better = value > best
        if better:
            best, found = value, estimate.x0
        if (better or left == 0) and level < n - 2:
            _, x, here = max(children, key=lambda c: c[0])
            level, left, children = level + 1, left + quota, []
    return best, found


def test_rollover_is_each_samples_own_search():
    starts, world, nfe = normal(3, 5, 2, seed=1), Counted(), 3 + 7 * 3
    found = rollover(world, starts, PATH, GRID, reward, nfe, generator=seeded())
    g = seeded()
    noises = torch.stack([torch.randn(5, 2, generator=g, dtype=torch.float64) for _ in range(nfe - 3)])
    for b in range(5):
        best, x0 = one_rollover(world.world, starts[:, b : b + 1], noises[:, b : b + 1], GRID, nfe)
        close(found.x0[b : b + 1], x0)
        assert found.reward[b].item() == pytest.approx(best, rel=1e-9)
    assert found.nfe == nfe
    assert world.calls == nfe
    first = torch.stack([reward(world.world(x, 1.0).x0) for x in starts]).amax(0)
    assert (found.reward >= first).all()
    with pytest.raises(ValueError, match="too few"):
        rollover(world, starts, PATH, GRID, reward, 3 + 6)


# Beams


def test_one_beam_of_one_child_is_plain_sampling():
    world, x = Counted(), normal(1, 4, 2)
    found = beam_search(world, x, PATH, GRID, reward, children=1, generator=seeded())
    assert found.nfe == world.calls == 8
    *head, last = GRID.tolist()
    noisy = sample(world.world, x[0], PATH, Ancestral(), torch.tensor(head, dtype=torch.float64), generator=seeded())
    close(found.x0, step(PATH, DDIM(), noisy, world.world(noisy, head[-1]), head[-1], last))


@pytest.mark.parametrize(("beams", "children", "ahead"), [(1, 3, 1), (2, 2, 3), (3, 1, 2)])
def test_evaluations_of_a_beam(beams, children, ahead):
    world = Counted()
    found = beam_search(world, normal(beams, 4, 2), PATH, GRID, reward, children, ahead, generator=seeded())
    searched = beams * children * ahead * 7  # the last step is not searched
    assert found.nfe == world.calls == (beams + searched if children > 1 else 8 * beams)
    close(reward(found.x0), found.reward)


def test_a_beam_by_hand():
    """K = 2, M = 2, one step ahead, two steps: the first is searched, the last is not."""
    world, x, grid = ring(PATH), normal(2, 3, 2), torch.tensor([0.9, 0.5, 0.01], dtype=torch.float64)
    found = beam_search(world, x, PATH, grid, reward, children=2, ahead=1, generator=seeded())
    g = seeded()
    noise = [torch.randn(3, 2, generator=g, dtype=torch.float64) for _ in range(4)]
    made = [step(PATH, Ancestral(), x[k // 2], world(x[k // 2], 0.9), 0.9, 0.5, noise=noise[k]) for k in range(4)]
    values = torch.stack([reward(world(v, 0.5).x0) for v in made])
    kept = values.argsort(0, descending=True)[:2]
    ends = []
    for row in kept:
        state = torch.stack([made[int(k)][b] for b, k in enumerate(row)])
        ends.append(step(PATH, DDIM(), state, world(state, 0.5), 0.5, 0.01))
    rewards = torch.stack([reward(e) for e in ends])
    close(found.reward, rewards.amax(0))


def test_steps_outside_the_span_are_not_searched():
    world = Counted()
    found = beam_search(world, normal(2, 4, 2), PATH, GRID, reward, 2, 1, span=(0.4, 0.7), generator=seeded())
    inside = sum(0.4 < t <= 0.7 for t in GRID.tolist()[:-1])
    # A searched step leaves the estimates of the next one behind.
    assert found.nfe == world.calls == 2 * (8 - inside) + 4 * inside


def test_rewards_grow_with_the_search():
    x = normal(4, 200, 2, seed=3)
    plain = reward(sample(ring(PATH), x[0], PATH, DDIM(), GRID)).mean()
    searches = [
        zero_order(lambda n: sample(ring(PATH), n, PATH, DDIM(), GRID), x[0], reward, 3, 4, 0.5, seeded()),
        search_trajectories(ring(PATH), x[:2], PATH, DDIM(), GRID, reward, 4, 2, 3, generator=seeded()),
        rollover(ring(PATH), x, PATH, GRID, reward, 4 + 7 * 4, generator=seeded()),
        *(beam_search(ring(PATH), x[:k], PATH, GRID, reward, 2, 1, generator=seeded()) for k in (1, 2, 4)),
    ]
    means = [found.reward.mean() for found in searches]
    assert all(a > 0.5 * plain for a in means)
    assert means[3] < means[4] < means[5]


def test_a_flow_is_searched_on_its_own_path():
    """The generator alone decides the result."""
    path = RectifiedFlow()
    grid, x = Uniform()(path, 6), normal(2, 5, 2)
    a, b = (rollover(ring(path), x, path, grid, reward, 2 + 5 * 2, generator=seeded(4)).x0 for _ in range(2))
    assert torch.equal(a, b)
    assert a.isfinite().all()
