"""Guidance rules on exact worlds: identities, limits, counts of evaluations, and what each rule promises."""

import itertools
import json
import math

import pytest
import torch
from torch import nn
from worlds import correlated, name, normal, over

from fewstep.artifacts import build, describe
from fewstep.denoiser import Denoiser
from fewstep.grids import Karras, Uniform
from fewstep.guidance.adaptive import AdaptiveGuidance
from fewstep.guidance.apg import APG
from fewstep.guidance.autoguidance import Autoguidance
from fewstep.guidance.cfg import CFG, CFGRule, Guided
from fewstep.guidance.chain import Chain
from fewstep.guidance.flowchef import flowchef
from fewstep.guidance.guide import Guide
from fewstep.guidance.inner import cosine, dot
from fewstep.guidance.interval import Interval
from fewstep.guidance.linear_ag import LinearAG, Recorded, fit_linear_ag
from fewstep.guidance.perp_neg import PerpNeg, severity_weights
from fewstep.guidance.rescale import Rescale
from fewstep.guidance.residual import Recalled, ResidualCFG
from fewstep.guidance.rule import Mixed
from fewstep.guidance.schedules import BetaShape, Cosine, Linear, Piecewise, PowerCosine
from fewstep.guidance.similarity import SimilarityFilter
from fewstep.metrics import energy_distance
from fewstep.paths import EDM, VP, RectifiedFlow, ResidualShift
from fewstep.prediction import X0, Eps, U, V
from fewstep.sampling import sample
from fewstep.solvers import DDIM
from fewstep.toy import Mixture, gaussian, ring

PATH, DIM = VP(), 3
T = torch.linspace(0.2, 0.9, 6, dtype=torch.float64)
TIMES = pytest.mark.parametrize("t", [pytest.param(0.6, id="float"), pytest.param(T, id="per-sample")])
LINEAR_RULES = {  # each over (conditional, unconditional)
    "cfg": CFGRule(3.0),
    "schedule": CFGRule(Linear(4.0)),
    "chain": Chain((3.0,)),
    "interval": Interval(CFGRule(3.0), 0.3, 0.7),
    "adaptive": AdaptiveGuidance(3.0, threshold=0.9),
}
RULES = LINEAR_RULES | {
    "rescale": Rescale(CFGRule(5.0)),
    "rescale_v": Rescale(CFGRule(5.0), phi=0.3, space=V()),
    "apg": APG(4.0, threshold=0.5),
    "apg_u": APG(4.0, eta=0.3, space=U()),
    "nested": Interval(Rescale(APG(4.0, threshold=2.0)), 0.3, 0.7),
}


def close(ours, theirs, tol=1e-10):
    torch.testing.assert_close(ours, theirs, rtol=tol, atol=tol)


def worlds(path=PATH, y=None):
    """(conditional, unconditional) mixtures in three dimensions."""
    covs = 0.3 * torch.eye(DIM, dtype=torch.float64).expand(2, DIM, DIM)
    return Mixture(path, normal(2, DIM, seed=5), covs, y=y), correlated(path, y)


def mixed(rule, path=PATH):
    return Mixed(worlds(path), rule, path)


def linear(c, u, w):
    return u + w * (c - u)


class Spy:
    """A bound denoiser that counts its calls and remembers what it was prepared for."""

    def __init__(self, inner):
        self.inner, self.calls, self.rows, self.prepared = inner, 0, 0, None

    def prepare(self, times, x):
        self.prepared = times

    def __call__(self, x, t):
        self.calls += 1
        self.rows += len(x)
        return self.inner(x, t)


class Net(nn.Module):
    """Reads a label beside the state."""

    def __init__(self):
        super().__init__()
        self.count = self.rows = 0

    def forward(self, x, t, label):
        self.count += 1
        self.rows += len(x)
        return torch.tanh(1.1 * x + label * (1 + 0.1 * t[:, None].to(x.dtype)))


def network(path=PATH):
    cond, uncond = {"label": normal(6, DIM, seed=2)}, {"label": torch.zeros(1, DIM, dtype=torch.float64)}
    return Denoiser(Net(), path, V()), normal(6, DIM), cond, uncond


# Every rule


@TIMES
@pytest.mark.parametrize("path", [VP(), RectifiedFlow()], ids=name)
@pytest.mark.parametrize("rule", over(RULES))
def test_the_guided_pair_explains_the_state(rule, path, t):
    guide, x = mixed(rule, path), normal(6, DIM)
    guide(x, 0.65)  # rules with a memory have one
    e = guide(x, t)
    close(path.sample(e.x0, e.eps, t if isinstance(t, torch.Tensor) else torch.full((6,), t, dtype=torch.float64)), x)


@pytest.mark.parametrize("rule", over(RULES))
def test_per_sample_times_are_a_loop_over_samples(rule):
    x = normal(6, DIM)
    together = mixed(rule)(x, T)
    for i, t in enumerate(T.tolist()):
        alone = mixed(rule)(x[i : i + 1], t)
        close(together.x0[i : i + 1], alone.x0)
        close(together.eps[i : i + 1], alone.eps)


@pytest.mark.parametrize("rule", over(RULES))
def test_equal_branches_are_left_alone(rule):
    world, x = worlds()[0], normal(6, DIM)
    close(Mixed((world, world), rule, PATH)(x, 0.6).x0, world(x, 0.6).x0)


@pytest.mark.parametrize("rule", over(RULES))
def test_memory_does_not_leak_between_trajectories(rule):
    guide, x, grid = mixed(rule), normal(6, DIM), Uniform(0.01)(PATH, 5)
    first = sample(guide, x, PATH, DDIM(), grid)
    assert torch.equal(sample(guide, x, PATH, DDIM(), grid), first)
    assert torch.equal(sample(mixed(rule), x, PATH, DDIM(), grid), first)


@pytest.mark.parametrize("rule", over(RULES))
def test_the_grid_is_passed_on_to_every_branch(rule):
    spies = [Spy(world) for world in worlds()]
    sample(Mixed(spies, rule, PATH), normal(6, DIM), PATH, DDIM(), Uniform(0.01)(PATH, 3))
    assert [len(spy.prepared) for spy in spies] == [3, 3]


@pytest.mark.parametrize("rule", over(RULES))
def test_evaluations_are_counted(rule):
    spies = [Spy(world) for world in worlds()]
    guide = Mixed(spies, rule, PATH)
    sample(guide, normal(6, DIM), PATH, DDIM(), Uniform(0.01)(PATH, 7))
    assert guide.calls == 7
    assert guide.nfe == pytest.approx(sum(spy.rows for spy in spies) / 6)
    assert guide.saved == pytest.approx(14 - guide.nfe)


def test_guided_models_can_be_branches():
    denoiser, x, cond, uncond = network()
    negative = {"label": normal(1, DIM, seed=9)}
    outer = Guide(CFG(denoiser, 2.0, uncond), CFGRule(3.0), [negative]).bind(cond)
    for _ in range(2):
        c, n = (CFG(denoiser, 2.0, uncond).bind({"label": v["label"].expand(6, DIM)})(x, 0.6) for v in (cond, negative))
        close(outer(x, 0.6).x0, linear(c.x0, n.x0, 3.0))
    assert outer.nfe == 4  # of its own branches


@pytest.mark.parametrize("rule", over(RULES))
def test_a_rule_is_its_configuration(rule):
    assert build(json.loads(json.dumps(describe(rule)))) == rule


@pytest.mark.parametrize("rule", over(RULES | {"cfg1": CFGRule(1.0)}))
@pytest.mark.parametrize(
    ("path", "t"), [(VP(), 0.6), (VP(), T), (ResidualShift(), 7.0)], ids=["float", "per-sample", "anchored"]
)
def test_one_call_on_stacked_branches_is_the_same(rule, path, t):
    if isinstance(rule, AdaptiveGuidance):
        rule = AdaptiveGuidance(3.0, threshold=2.0)  # which rows agree is a matter of rounding
    denoiser, x, cond, uncond = network(path)
    y = normal(6, DIM, seed=1) if path.anchored else None
    apart = Guide(denoiser, rule, [uncond]).bind(cond, y)(x, t)
    calls, rows, denoiser.net.count, denoiser.net.rows = denoiser.net.count, denoiser.net.rows, 0, 0
    together = Guide(denoiser, rule, [uncond], together=True).bind(cond, y)(x, t)
    close(together.x0, apart.x0)
    close(together.eps, apart.eps)
    assert denoiser.net.count == 1
    assert (denoiser.net.rows, calls) == (rows, rows // 6)


def test_complex_states():
    # Real and imaginary parts of a complex world of independent parts are the two halves of a real one.
    c, u = (gaussian(PATH, m, s, dim=4) for m, s in ((0.5, 0.3), (0.0, 1.0)))

    class Complex:
        def __init__(self, world):
            self.world = world

        def __call__(self, x, t):
            e = self.world(torch.cat([x.real, x.imag], 1), t)
            return type(e)(*(torch.complex(v[:, :2], v[:, 2:]) for v in (e.x0, e.eps)))

    x = torch.complex(normal(5, 2), normal(5, 2, seed=1))
    flat = torch.cat([x.real, x.imag], 1)
    for rule in (CFGRule(Linear(3.0)), APG(3.0, threshold=0.2), AdaptiveGuidance(2.0)):
        ours = Mixed((Complex(c), Complex(u)), rule, PATH)(x, 0.5).x0
        real = Mixed((c, u), rule, PATH)(flat, 0.5).x0
        close(torch.cat([ours.real, ours.imag], 1), real)


@pytest.mark.parametrize("rule", over(RULES))
def test_rules_are_differentiable(rule):
    x = normal(2, DIM).requires_grad_()
    for half in ("x0", "eps"):
        assert torch.autograd.gradcheck(lambda x: getattr(mixed(rule)(x, 0.6), half), (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", over(RULES))
def test_low_precision_stays_low(rule, dtype):
    denoiser, x, cond, uncond = network()
    exact = Guide(denoiser, rule, [uncond]).bind(cond)(x, 0.6)
    cond, uncond = ({k: v.to(dtype) for k, v in c.items()} for c in (cond, uncond))
    for t in (0.6, torch.full((6,), 0.6)):
        e = Guide(denoiser, rule, [uncond]).bind(cond)(x.to(dtype), t)
        assert e.x0.dtype == e.eps.dtype == dtype
        torch.testing.assert_close(e.eps.double(), exact.eps, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.2)


def test_rules_that_read_outputs_ask_for_the_path():
    with pytest.raises(ValueError, match="give Mixed the path"):
        Mixed(worlds(), APG(3.0))(normal(2, DIM), 0.5)


# CFG, schedules, chains


@TIMES
def test_guided_is_the_formula(t):
    (c, u), x = worlds(), normal(6, DIM)
    for w in (-1.0, 0.0, 0.5, 3.0):
        e = Guided(c, u, w)(x, t)
        close(e.x0, linear(c(x, t).x0, u(x, t).x0, w))
        close(e.eps, linear(c(x, t).eps, u(x, t).eps, w))


def test_a_scale_of_one_costs_one_evaluation():
    c, u = (Spy(world) for world in worlds())
    x = normal(6, DIM)
    assert torch.equal(Guided(c, u, 1.0)(x, 0.6).x0, c.inner(x, 0.6).x0)
    assert (c.calls, u.calls) == (1, 0)
    late = Guided(c, u, Piecewise((0.5,), (1.0, 4.0)))
    assert torch.equal(late(x, 0.5).x0, c.inner(x, 0.5).x0)
    assert u.calls == 0
    close(late(x, 0.51).x0, linear(c.inner(x, 0.51).x0, u.inner(x, 0.51).x0, 4.0))


@pytest.mark.parametrize("schedule", [Linear, Cosine, BetaShape], ids=name)
def test_schedules_of_mean_one_keep_the_average_guidance(schedule):
    t = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    assert schedule(cfg=5.0)(t).mean().item() == pytest.approx(5.0, abs=1e-6)
    assert schedule(cfg=5.0, t_max=80.0)(80 * t).mean().item() == pytest.approx(5.0, abs=1e-6)


def test_ends_of_schedules():
    assert [Linear(5.0)(t) for t in (0.0, 0.5, 1.0)] == pytest.approx([9.0, 5.0, 1.0])
    assert [Cosine(5.0)(t) for t in (0.0, 0.5, 1.0)] == pytest.approx([9.0, 5.0, 1.0])
    assert [PowerCosine(5.0)(t) for t in (0.0, 1.0)] == pytest.approx([5.0, 1.0])
    assert PowerCosine(5.0, power=1.0)(0.5) == pytest.approx(3.0)
    assert [BetaShape(5.0)(t) for t in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 7.0, 1.0])  # 6 tau (1 - tau)
    assert [Linear(5.0, floor=3.0)(t) for t in (0.5, 0.75, 1.0)] == pytest.approx([5.0, 3.0, 3.0])
    assert Linear(5.0, t_min=-1.0, t_max=3.0)(1.0) == pytest.approx(5.0)


@pytest.mark.parametrize("schedule", [Linear(4.0), PowerCosine(3.0), Piecewise((0.3, 0.6), (1.0, 2.0, 5.0))], ids=name)
def test_schedules_are_elementwise(schedule):
    assert schedule(T).tolist() == [schedule(t) for t in T.tolist()]


def test_piecewise_needs_a_value_more_than_edges():
    assert [Piecewise((0.3, 0.6), (1.0, 2.0, 5.0))(t) for t in (0.0, 0.3, 0.31, 0.6, 1.0)] == [1, 1, 2, 2, 5]
    with pytest.raises(ValueError, match=r"n increasing edges need n \+ 1 values"):
        Piecewise((0.3, 0.6), (1.0, 2.0))
    with pytest.raises(ValueError, match="increasing"):
        Piecewise((0.6, 0.3), (1.0, 2.0, 3.0))


def test_a_chain_weighs_each_condition_by_its_own_schedule():
    both, text = worlds()
    none, x = gaussian(PATH, 0.0, 1.0, dim=DIM), normal(6, DIM)
    audio = Piecewise((0.5,), (5.0, 2.0))
    chain = Mixed((both, text, none), Chain((audio, 3.0)))
    for t, w in ((0.7, 2.0), (0.4, 5.0)):
        e = [world(x, t).x0 for world in (both, text, none)]
        close(chain(x, t).x0, e[2] + 3.0 * (e[1] - e[2]) + w * (e[0] - e[1]))
    close(Mixed((both, none), Chain((2.5,)))(x, 0.6).x0, Guided(both, none, 2.5)(x, 0.6).x0)


def test_a_chain_does_not_evaluate_what_cancels():
    spies = [Spy(gaussian(PATH, m, 1.0, dim=DIM)) for m in (0.0, 1.0, 2.0)]
    chain = Mixed(spies, Chain((3.0, 3.0)))
    chain(normal(6, DIM), 0.5)
    assert [spy.calls for spy in spies] == [1, 0, 1]
    assert chain.saved == 1


# Interval


def test_interval_switches_exactly():
    (c, u), x = worlds(), normal(6, DIM)
    spy = Spy(u)
    guide = Mixed((c, spy), Interval(CFGRule(3.0), 0.3, 0.7))
    for t, inside in ((0.1, False), (0.3, False), (0.3001, True), (0.7, True), (0.7001, False)):
        before = spy.calls
        e = guide(x, t)
        assert spy.calls - before == inside
        close(e.x0, linear(c(x, t).x0, u(x, t).x0, 3.0 if inside else 1.0), tol=1e-14)
    guide(x, torch.full((6,), 0.9, dtype=torch.float64))
    assert spy.calls == 2


@pytest.mark.parametrize("path", [EDM(), VP()], ids=name)
def test_an_interval_of_noise_levels(path):
    interval = Interval.of_sigma(path, CFGRule(3.0), 0.28, 2.9)
    rho = (-path.log_snr(torch.tensor([interval.lo, interval.hi], dtype=torch.float64))).exp()
    close(rho, torch.tensor([0.28, 2.9], dtype=torch.float64), tol=1e-9)
    assert (Interval.of_sigma(path, CFGRule(3.0), 0.0, math.inf).lo, interval.of_sigma(path, interval, 0, 1).lo) == (
        -math.inf,
        -math.inf,
    )


def test_an_empty_interval_is_refused():
    with pytest.raises(ValueError, match="lo < hi"):
        Interval(CFGRule(2.0), 0.5, 0.5)


def test_what_each_rule_does_to_a_blurred_model():
    """Two of eight Gaussians as data, a model that is blurred and leaks: the table of docs/guidance.md in small."""
    path, n = EDM(), 600

    def circle(std, two):
        rest = (1 - two) / 6
        weights = torch.tensor([two / 2] * 2 + [rest] * 6, dtype=torch.float64)
        return Mixture(path, ring(path).means, std**2 * torch.eye(2, dtype=torch.float64).expand(8, 2, 2), weights)

    model, uncond, weak = circle(0.25, 0.9), circle(0.25, 0.25), circle(0.6, 0.9)
    x, data = 80 * normal(n, 2), circle(0.1, 1 - 1e-12).draw(n, torch.Generator().manual_seed(0))

    def score(rule, other=uncond):
        guide = Mixed((model, other), rule, path)
        return energy_distance(sample(guide, x, path, DDIM(), Karras()(path, 32)), data).item(), guide.nfe

    (none, _), (cfg, all_steps) = score(CFGRule(1.0)), score(CFGRule(2.0))
    inside, some_steps = score(Interval.of_sigma(path, CFGRule(2.0), 0.28, 2.9))
    assert cfg > none > inside
    assert (all_steps, some_steps) == (64, 39)
    assert score(CFGRule(2.0), weak)[0] < none / 2
    assert score(APG(2.0))[0] < cfg
    assert score(Rescale(CFGRule(2.0)))[0] < cfg
    # At high noise both eps are the state itself: only x0 tells the branches apart.
    assert score(AdaptiveGuidance(2.0))[1] < 36
    assert 44 < score(AdaptiveGuidance(2.0, half="x0"))[1] < 60


# Rescale


@pytest.mark.parametrize("space", [X0(), Eps(), V(), U()], ids=name)
def test_full_rescale_gives_the_deviation_of_the_conditional_output(space):
    (c, u), x, t = worlds(), normal(6, DIM), torch.full((6,), 0.6, dtype=torch.float64)
    k = PATH.coeffs(t, x)
    out = {}
    for phi in (0.0, 0.25, 1.0):
        e = Mixed((c, u), Rescale(CFGRule(5.0), phi, space), PATH)(x, 0.6)
        out[phi] = space.target(e.x0, e.eps, k)
    close(out[1.0].std(1), space.target(c(x, 0.6).x0, c(x, 0.6).eps, k).std(1))
    close(out[0.25], 0.25 * out[1.0] + 0.75 * out[0.0])
    close(Mixed((c, u), Rescale(CFGRule(5.0), 0.0), PATH)(x, 0.6).x0, Guided(c, u, 5.0)(x, 0.6).x0)


# APG


@TIMES
@pytest.mark.parametrize("space", [X0(), Eps(), U()], ids=name)
def test_apg_without_its_three_changes_is_cfg(space, t):
    rule, x = APG(4.0, eta=1.0, threshold=math.inf, momentum=0.0, space=space), normal(6, DIM)
    guide = mixed(rule)
    for _ in range(2):
        e, cfg = guide(x, t), mixed(CFGRule(4.0))(x, t)
        close(e.x0, cfg.x0)
        close(e.eps, cfg.eps)


def test_apg_projects_and_bounds_the_update():
    c, x = worlds()[0](normal(6, DIM), 0.6).x0, normal(6, DIM)
    update = mixed(APG(3.0, eta=0.0))(x, 0.6).x0 - c
    assert dot(update, c).abs().max() < 1e-12
    assert update.norm(dim=1).min() > 0.01
    update = mixed(APG(3.0, eta=1.0, threshold=0.05))(x, 0.6).x0 - c
    close(update.norm(dim=1), torch.full((6,), 2 * 0.05, dtype=torch.float64))
    # A part of the parallel component, none of the rest, is scaled by eta.
    full, none, half = (mixed(APG(3.0, eta=eta))(x, 0.6).x0 for eta in (1.0, 0.0, 0.5))
    close(half, (full + none) / 2)


def test_apg_momentum_sums_past_differences():
    (c, u), x = worlds(), [normal(6, DIM, seed=k) for k in range(3)]
    guide = Mixed((c, u), APG(3.0, eta=1.0, momentum=-0.5), PATH)
    d = [c(v, t).x0 - u(v, t).x0 for v, t in zip(x, (0.8, 0.5, 0.2), strict=True)]
    for k, t in enumerate((0.8, 0.5, 0.2)):
        expected = sum((-0.5) ** (k - j) * d[j] for j in range(k + 1))
        close(guide(x[k], t).x0, c(x[k], t).x0 + 2 * expected)
    guide.prepare((0.2,), x[0])
    close(guide(x[2], 0.2).x0, c(x[2], 0.2).x0 + 2 * d[2])


def test_apg_over_given_dimensions_treats_each_channel_alone():
    class Images:
        def __init__(self, seed):
            self.world = gaussian(PATH, normal(12, seed=seed), 0.5, dim=12)

        def __call__(self, x, t):
            e = self.world(x.flatten(1), t)
            return type(e)(e.x0.reshape(x.shape), e.eps.reshape(x.shape))

    x, branches = normal(5, 2, 2, 3), (Images(1), Images(2))
    update = Mixed(branches, APG(3.0, dims=(-2, -1)), PATH)(x, 0.5).x0 - branches[0](x, 0.5).x0
    assert (update * branches[0](x, 0.5).x0).sum((-2, -1)).abs().max() < 1e-12
    with pytest.raises(ValueError, match="norm > 0"):
        APG(3.0, threshold=0.0)


# Other branches: weak models, negatives


def test_autoguidance_extrapolates_from_the_weak_model():
    good, x, cond, _ = network()
    weak = Denoiser(nn.Sequential(), PATH, Eps())
    weak.net.forward = lambda x, t, label: 0.3 * x + 0.1 * label
    e = Autoguidance(good, weak, CFGRule(2.0)).bind(cond)(x, 0.6)
    close(e.x0, linear(good.bind(cond)(x, 0.6).x0, weak.bind(cond)(x, 0.6).x0, 2.0))
    close(Autoguidance(good, good, CFGRule(7.0)).bind(cond)(x, 0.6).x0, good.bind(cond)(x, 0.6).x0)
    with pytest.raises(ValueError, match="one path"):
        Autoguidance(good, Denoiser(Net(), EDM(), V()), CFGRule(2.0))


def test_a_negative_prompt_is_an_unconditional_branch():
    denoiser, x, cond, _ = network()
    negative = {"label": normal(1, DIM, seed=9)}
    every = {"label": negative["label"].expand(6, DIM)}
    e = CFG(denoiser, 3.0, negative).bind(cond)(x, 0.6)
    close(e.eps, linear(denoiser.bind(cond)(x, 0.6).eps, denoiser.bind(every)(x, 0.6).eps, 3.0))


def shifted(base, change):
    """A Denoise whose eps is base's plus change(eps of base), on the same path."""

    def denoise(x, t):
        e = base(x, t)
        d = change(e.eps)
        a, _, s = (v.item() for v in PATH.schedule(torch.tensor(t, dtype=torch.float64)))
        return type(e)(e.x0 - s / a * d, e.eps + d)

    return denoise


def test_perp_neg_ignores_the_parallel_part_of_a_negative():
    u, x = correlated(PATH), normal(6, DIM)
    d = normal(6, DIM, seed=3)
    across = torch.linalg.cross(d, normal(6, DIM, seed=4))  # <across, d> = 0
    c = shifted(u, lambda eps: d)
    cfg = Guided(c, u, 3.0)(x, 0.5)
    parallel = Mixed((c, u, shifted(u, lambda eps: -2.0 * d)), PerpNeg(3.0, (-1.5,)))(x, 0.5)
    close(parallel.x0, cfg.x0)
    mixed_negative = Mixed((c, u, shifted(u, lambda eps: 0.7 * d + across)), PerpNeg(3.0, (-1.5,)))(x, 0.5)
    close(mixed_negative.eps, cfg.eps - 3.0 * 1.5 * across)
    close(PATH.sample(mixed_negative.x0, mixed_negative.eps, torch.full((6,), 0.5, dtype=torch.float64)), x)


def test_perp_neg_without_weights_is_cfg_at_two_evaluations():
    spies = [Spy(world) for world in (*worlds(), gaussian(PATH, 1.0, 1.0, dim=DIM), gaussian(PATH, 2.0, 1.0, dim=DIM))]
    x = normal(6, DIM)
    e = Mixed(spies, PerpNeg(3.0, (0.0, 0.0)))(x, 0.5)
    close(e.x0, Guided(spies[0].inner, spies[1].inner, 3.0)(x, 0.5).x0)
    assert [spy.calls for spy in spies] == [1, 1, 0, 0]
    some = Mixed(spies, PerpNeg(3.0, (0.0, -1.0)))(x, 0.5)
    assert [spy.calls for spy in spies] == [2, 2, 0, 1]
    only = Mixed([s.inner for s in (spies[0], spies[1], spies[3])], PerpNeg(3.0, (-1.0,)))(x, 0.5)
    close(some.x0, only.x0)
    with pytest.raises(ValueError, match="<= 0"):
        PerpNeg(3.0, (1.0,))


def test_perp_neg_runs_over_the_conditions_of_a_network():
    denoiser, x, cond, uncond = network()
    negative = {"label": normal(1, DIM, seed=9)}
    e = Guide(denoiser, PerpNeg(3.0, (-1.0,)), [uncond, negative]).bind(cond)(x, 0.6)
    c, u, n = (denoiser.bind({"label": v["label"].expand(6, DIM)})(x, 0.6).eps for v in (cond, uncond, negative))
    perp = (n - u) - (c - u) * dot(n - u, c - u) / dot(c - u, c - u)
    close(e.eps, u + 3 * (c - u - perp))


def test_severity_scales_the_wrong_views():
    weights = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64)
    errors, wanted = torch.tensor([[1.0, 1.0, 1.0], [9.0, 0.0, 99.0]], dtype=torch.float64), torch.tensor([0, 0])
    close(severity_weights(errors, wanted, weights, k=0.0), torch.zeros(2, 3, dtype=torch.float64))
    w = severity_weights(errors, wanted, weights, k=1.0, temperature=0.1)
    close(w[0], torch.tensor([0.0, -2 / 3, -0.5 / 3], dtype=torch.float64))
    close(w[1], torch.tensor([0.0, -2.0, 0.0], dtype=torch.float64))  # p = 1: plain Perp-Neg
    assert severity_weights(errors, wanted, weights, k=9.0, temperature=0.1).min() == -8.0  # at most 4 times
    x = normal(2, DIM)
    branches = (*worlds(), *(gaussian(PATH, m, 1.0, dim=DIM) for m in (1.0, -2.0)))
    ours = Mixed(branches, PerpNeg(3.0, w[:, 1:].unbind(1)))(x, 0.5)
    for i in range(2):
        close(ours.x0[i], Mixed(branches, PerpNeg(3.0, tuple(w[i, 1:].tolist())))(x, 0.5).x0[i])
    with pytest.raises(ValueError, match="<= 0"):
        PerpNeg(3.0, (-w[:, 1],))


# Adaptive Guidance


def test_adaptive_guidance_with_an_unreachable_threshold_is_cfg():
    grid, x = Uniform(0.01)(PATH, 6), normal(6, DIM)
    guide = mixed(AdaptiveGuidance(3.0, threshold=2.0))
    close(sample(guide, x, PATH, DDIM(), grid), sample(mixed(CFGRule(3.0)), x, PATH, DDIM(), grid), tol=1e-14)
    assert guide.saved == 0


def test_adaptive_guidance_with_a_trivial_threshold_is_conditional_after_one_step():
    (c, u), x = worlds(), normal(6, DIM)
    guide = Mixed((c, u), AdaptiveGuidance(3.0, threshold=-1.1))
    close(guide(x, 0.9).x0, linear(c(x, 0.9).x0, u(x, 0.9).x0, 3.0))
    for t in (0.6, 0.3):
        assert torch.equal(guide(x, t).x0, c(x, t).x0)
    assert (guide.nfe, guide.saved) == (4, 2)


@pytest.mark.parametrize("bound", [False, True], ids=["callables", "network"])
def test_adaptive_guidance_stops_sample_by_sample(bound):
    grid = Uniform(0.01)(PATH, 12)
    if bound:
        denoiser, x, cond, uncond = network()
        rule = AdaptiveGuidance(2.0, threshold=0.8, half="x0")
        guide = Guide(denoiser, rule, [uncond]).bind(cond)

        def alone(i):
            return Guide(denoiser, rule, [uncond]).bind({"label": cond["label"][i : i + 1]})

    else:
        x, rule = normal(6, DIM), AdaptiveGuidance(3.0, threshold=0.97, half="x0")
        guide = mixed(rule)

        def alone(i):
            return mixed(rule)

    out, saved = sample(guide, x, PATH, DDIM(), grid), []
    for i in range(6):
        one = alone(i)
        close(sample(one, x[i : i + 1], PATH, DDIM(), grid), out[i : i + 1])
        saved.append(one.saved)
    assert len(set(saved)) > 1  # they stop at different steps
    assert guide.saved == pytest.approx(sum(saved) / 6)


# LinearAG


def recorded(c, u, x, grid, cfg=3.0):
    guide = Mixed((c, u), Recorded(CFGRule(cfg)), PATH)
    end = sample(guide, x, PATH, DDIM(), grid)
    return guide.mix.cond, guide.mix.uncond, end


def test_linear_ag_is_exact_for_a_linear_unconditional_model():
    """eps_u = k(t) x there, so x_T is a multiple of the first eps_u and later states are combinations of the past."""
    c, u, grid = worlds()[0], gaussian(PATH, 0.0, 1.3, dim=DIM), Uniform(0.01)(PATH, 8)
    cs, us, _ = recorded(c, u, normal(20, DIM, seed=1), grid)
    coefficients = fit_linear_ag(cs, us, replaced=(2, 4, 5, 6, 7), rcond=1e-13)
    assert [len(row) for row in coefficients] == [0, 0, 5, 0, 9, 11, 13, 15]
    spy, x = Spy(u), normal(7, DIM, seed=2)  # other noise than fitted on
    guide = Mixed((c, spy), LinearAG(3.0, coefficients), PATH)
    close(sample(guide, x, PATH, DDIM(), grid), recorded(c, u, x, grid)[2], tol=1e-8)
    assert (spy.calls, guide.saved) == (3, 5)
    assert build(json.loads(json.dumps(describe(guide.rule)))) == guide.rule


def test_linear_ag_beats_dropping_guidance_on_a_mixture():
    (c, u), grid = worlds(), Uniform(0.01)(PATH, 16)
    cs, us, _ = recorded(c, u, normal(200, DIM, seed=1), grid)
    x = normal(200, DIM, seed=2)
    full, replaced = recorded(c, u, x, grid)[2], (1, 3, 5, 7)
    ours = sample(Mixed((c, u), LinearAG(3.0, fit_linear_ag(cs, us, replaced)), PATH), x, PATH, DDIM(), grid)
    skipping = Piecewise(
        tuple(sorted(grid[1:-1].tolist())), tuple(1.0 if k in replaced else 3.0 for k in range(15, -1, -1))
    )
    dropped = sample(Guided(c, u, skipping), x, PATH, DDIM(), grid)
    assert (ours - full).norm() < 0.02 * (dropped - full).norm()


def test_linear_ag_says_what_it_was_fitted_for():
    guide, x = mixed(LinearAG(3.0, ((),))), normal(2, DIM)
    guide(x, 0.5)
    with pytest.raises(ValueError, match="coefficients of 1 evaluations"):
        guide(x, 0.4)
    with pytest.raises(ValueError, match="cannot replace \\[0, 3\\]"):
        fit_linear_ag([x, x], [x, x], replaced=(0, 1, 3))


# Residual CFG and the similarity filter


@TIMES
@pytest.mark.parametrize("delta", [1.0, 0.8])
def test_the_residual_branch_is_a_world_of_one_point(delta, t):
    """Where all data is x_ref, the unconditional estimate is exactly the residual noise."""
    x, ref = normal(6, DIM), normal(1, DIM, seed=1)
    point = Mixture(PATH, ref, torch.zeros(1, DIM, DIM, dtype=torch.float64))
    e = Recalled(PATH, ref.expand(6, DIM), delta=delta)(x, t)
    close(e.eps, delta * point(x, t).eps)
    close(PATH.sample(e.x0, e.eps, t if isinstance(t, torch.Tensor) else torch.full((6,), t, dtype=torch.float64)), x)


def test_residual_cfg_costs_n_or_n_plus_one_evaluations():
    denoiser, x, cond, uncond = network()
    grid = Uniform(0.01)(PATH, 5)
    for other, nfe in ((None, 5), (uncond, 6)):
        denoiser.net.count = 0
        guide = ResidualCFG(denoiser, 1.4, other).bind(cond)
        first = sample(guide, x, PATH, DDIM(), grid)
        assert (denoiser.net.count, guide.nfe) == (nfe, nfe)
        assert torch.equal(sample(guide, x, PATH, DDIM(), grid), first)  # asked anew in each trajectory
        assert denoiser.net.count == 2 * nfe
    step = ResidualCFG(denoiser, 1.4, uncond).bind(cond)(x, 0.9)
    close(step.eps, CFG(denoiser, 1.4, uncond).bind(cond)(x, 0.9).eps)
    with pytest.raises(ValueError, match="not both"):
        Recalled(PATH, x, denoiser.bind(cond))


def test_residual_cfg_is_the_stream_recursion():
    """StreamDiffusion: s <- n + (a'/s') f(s_t s; e), f(x; e) = (x - s_t e)/a for boundary coefficients 0 and 1."""
    c, ref, delta, w = worlds()[0], normal(6, DIM, seed=7), 0.9, 1.3
    guide = Mixed((c, Recalled(PATH, ref, delta=delta)), CFGRule(w))
    times, noises = [0.8, 0.5, 0.3], [normal(6, DIM, seed=k) for k in range(3)]
    a, _, s = (v.tolist() for v in PATH.schedule(torch.tensor(times, dtype=torch.float64)))
    x, stock = a[0] * ref + s[0] * noises[0], noises[0]
    for k in range(3):
        e = delta * stock + w * (c(x, times[k]).eps - delta * stock)
        close(guide(x, times[k]).eps, e)
        if k < 2:
            x0 = (x - s[k] * e) / a[k]
            x = a[k + 1] * x0 + s[k + 1] * noises[k + 1]
            stock = noises[k + 1] + a[k + 1] / s[k + 1] * (s[k] * stock - s[k] * e) / a[k]


def test_residual_cfg_on_an_anchored_path():
    path = ResidualShift()
    y, ref = normal(6, DIM, seed=1), normal(6, DIM, seed=2)
    noise, t = normal(6, DIM), torch.full((6,), 7.0, dtype=torch.float64)
    close(Recalled(path, ref, y=y)(path.sample(ref, noise, t, y), 7.0).eps, noise)


def test_similarity_filter_skips_what_does_not_move():
    still, frame = SimilarityFilter(generator=torch.Generator().manual_seed(0)), normal(4, 4)
    shown = [still.skip(frame) for _ in range(110)]
    assert not shown[0]
    assert max(len(list(run)) for skipped, run in itertools.groupby(shown) if skipped) == 10
    assert sum(shown) == 100  # ten of eleven
    assert not still.skip(normal(4, 4, seed=1))
    assert still.skip(normal(4, 4, seed=1))
    never = SimilarityFilter(threshold=1.0)
    assert not any(never.skip(frame) for _ in range(5))


def test_similarity_filter_has_the_published_probability():
    a = torch.tensor([1.0, 0.0])
    coin = SimilarityFilter(threshold=0.9, most=10**9, generator=torch.Generator().manual_seed(0))
    coin.skip(a)
    for cos, p in ((1.0, 1.0), (0.95, 0.5), (0.9, 0.0), (0.5, 0.0)):
        b = torch.tensor([cos, math.sqrt(1 - cos**2)])
        assert coin.probability(b) == pytest.approx(p, abs=1e-5)
    # A skipped frame does not move the reference: cos is to the last processed one.
    b, skips = torch.tensor([0.95, math.sqrt(1 - 0.95**2)]), 0
    for _ in range(2000):
        coin.last, coin.row = a, 0
        skips += coin.skip(b)
    assert skips / 2000 == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / 2000))


# FlowChef


def test_flowchef_without_a_rate_is_euler():
    path, x = RectifiedFlow(), normal(6, DIM)
    world, grid = correlated(path), Uniform()(path, 8)
    close(
        flowchef(world, x, path, grid, lambda x0: x0.square().mean(1), rate=0.0), sample(world, x, path, DDIM(), grid)
    )


def test_flowchef_is_the_published_step():
    path, x, goal = RectifiedFlow(), normal(6, DIM), normal(6, DIM, seed=3)
    world, times = correlated(path), [1.0, 0.7, 0.4, 0.0]
    ours = flowchef(
        world, x, path, torch.tensor(times, dtype=torch.float64), lambda x0: (x0 - goal).square().mean(1), rate=0.3
    )
    for t, s in itertools.pairwise(times):
        e = world(x, t)
        u = e.eps - e.x0
        if s > 0:
            x = x - 0.3 * 2 / DIM * (x - t * u - goal)
        x = x + (s - t) * u
    close(ours, x)


def test_flowchef_meets_a_linear_measurement_without_a_graph():
    path, n = RectifiedFlow(), 100
    prior = gaussian(path, 0.0, 1.0, dim=2)
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)

    def denoise(x, t):
        assert not torch.is_grad_enabled()
        e = prior(x, t)
        return type(e)(e.x0 * weight, e.eps * weight)

    measured = normal(50, 1, seed=1)
    free = sample(prior, normal(50, 2), path, DDIM(), Uniform()(path, n))
    x = flowchef(
        denoise, normal(50, 2), path, Uniform()(path, n), lambda x0: (x0[:, :1] - measured).square().sum(1), rate=0.25
    )
    assert not x.requires_grad
    assert (x[:, :1] - measured).abs().max() < 0.05
    close(x[:, 1], free[:, 1])  # what is not measured is not steered


def test_cosine_is_per_sample():
    a, b = normal(4, 2, 3), normal(4, 2, 3, seed=1)
    close(cosine(a, b), torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)))
