import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn
from worlds import DETERMINISTIC, PREDICTIONS, SOLVERS, correlated, name, normal, over

from fewstep.denoiser import Denoiser
from fewstep.estimate import Estimate
from fewstep.grids import Uniform
from fewstep.nets import MLP
from fewstep.paths import EDM, RectifiedFlow, ResidualShift
from fewstep.precondition import AnchoredPrecondition, EDMPrecondition
from fewstep.prediction import X0, U, V
from fewstep.sampling import Callback, sample
from fewstep.solvers import DDIM, Heun

ALL = pytest.mark.parametrize("prediction", over(PREDICTIONS))


class Net(nn.Module):
    """A non-linear network without parameters that uses state, label and condition, and remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, t, shift=0.0):
        self.calls.append((x.dtype, tuple(x.shape), t.dtype, tuple(t.shape)))
        return torch.tanh(x * 1.3 + 0.1 * t[:, None] + shift) + 0.2 * x


# --- one meaning at float and at per-sample times --------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "times"),
    [
        pytest.param(RectifiedFlow(), (0.9, 0.37, 1e-3), id="rf"),
        pytest.param(ResidualShift(), (13.0, 7.5, 3.3), id="resshift"),
    ],
)
@ALL
def test_float_times_and_per_sample_times_agree(prediction, path, times):
    denoiser = Denoiser(Net(), path, prediction)
    x, cond = normal(4, 3), {"shift": normal(4, 3, seed=1)}
    y = normal(4, 3, seed=2) if path.anchored else None
    bound = denoiser.bind(cond, y)
    for t in times:
        one, many = bound(x, t), denoiser(x, torch.full((4,), t, dtype=torch.float64), cond, y)
        also = bound(x, torch.full((4,), t, dtype=torch.float64))
        for half in ("x0", "eps"):
            torch.testing.assert_close(getattr(one, half), getattr(many, half), rtol=1e-12, atol=1e-12)
            assert torch.equal(getattr(also, half), getattr(many, half))


@ALL
def test_per_sample_times_equal_a_loop_over_samples(prediction):
    path = ResidualShift()
    denoiser = Denoiser(Net(), path, prediction)
    x, y, cond = normal(5, 3), normal(5, 3, seed=1), normal(5, 3, seed=2)
    t = torch.tensor([13.9, 9.1, 5.5, 2.2, 0.4], dtype=torch.float64)
    whole = denoiser(x, t, {"shift": cond}, y)
    for i in range(5):
        alone = denoiser.bind({"shift": cond[i : i + 1]}, y[i : i + 1])(x[i : i + 1], t[i].item())
        torch.testing.assert_close(alone.x0[0], whole.x0[i], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(alone.eps[0], whole.eps[i], rtol=1e-12, atol=1e-12)


@ALL
def test_the_two_halves_of_an_estimate_explain_the_state(prediction):
    """a x0 + b y + s eps = x_t whatever the network says."""
    path = ResidualShift()
    x, y = normal(4, 3), normal(4, 3, seed=1)
    t = torch.tensor([13.0, 8.0, 3.5, 0.5], dtype=torch.float64)
    estimate = Denoiser(Net(), path, prediction)(x, t, None, y)
    torch.testing.assert_close(path.sample(estimate.x0, estimate.eps, t, y), x, rtol=1e-10, atol=1e-10)


@ALL
def test_raw_output_is_what_targets_are_compared_with(prediction):
    """affine(raw) is the estimate; the target of that estimate is raw again."""
    path = ResidualShift()
    denoiser = Denoiser(Net(), path, prediction)
    x, y = normal(4, 3), normal(4, 3, seed=1)
    t = torch.tensor([13.0, 8.0, 3.5, 0.5], dtype=torch.float64)
    estimate = denoiser(x, t, None, y)
    target = prediction.target(estimate.x0, estimate.eps, path.coeffs(t, x), y)
    torch.testing.assert_close(denoiser.raw(x, t, None, y), target, rtol=1e-9, atol=1e-9)


# --- the table of a grid ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counted(RectifiedFlow):
    calls: ClassVar[list] = []

    def coeffs(self, t, x):
        self.calls.append(len(t))
        return super().coeffs(t, x)


@pytest.mark.parametrize("solver", DETERMINISTIC, ids=name)
def test_sampling_computes_all_scalars_before_the_first_step(solver):
    path, during = Counted(), []

    class Watching(Net):
        def forward(self, x, t):
            during.append(len(Counted.calls))
            return super().forward(x, t)

    Counted.calls.clear()
    sample(Denoiser(Watching(), path, V()).bind(), normal(4, 3), path, solver, Uniform()(path, 5))
    # At the first network call everything is there, and nothing is added until the last.
    assert len(during) >= 5
    assert set(during) == {len(Counted.calls)}
    assert len(Counted.calls) <= 1


def test_a_bound_denoiser_serves_batches_and_precisions_in_any_order():
    net = Net()
    denoiser = Denoiser(net, RectifiedFlow(), EDMPrecondition())
    bound, x = denoiser.bind(), normal(6, 3)
    bound.prepare((0.8, 0.4), x)
    for batch in (x, x[:2], x.float(), x[:5], x.float()[:3], x):
        for t in (0.8, 0.4, 0.2):
            ours = bound(batch, t).x0
            fresh = denoiser(batch.double(), torch.full((len(batch),), t, dtype=torch.float64)).x0
            assert ours.dtype == batch.dtype
            torch.testing.assert_close(
                ours.double(), fresh, rtol=0, atol=1e-6 if batch.dtype == torch.float32 else 1e-12
            )
            dtype, shape, label_dtype, label_shape = net.calls[-2]
            assert label_dtype == dtype == batch.dtype
            assert label_shape == (len(batch),) == shape[:1]


def test_preparing_a_new_batch_after_an_old_one():
    denoiser = Denoiser(Net(), RectifiedFlow(), V())
    bound, grid = denoiser.bind(), Uniform()(RectifiedFlow(), 3)
    for x in (normal(6, 3), normal(2, 3, seed=1), normal(6, 3)):
        ours = sample(bound, x, RectifiedFlow(), DDIM(), grid)
        assert torch.equal(ours, sample(denoiser.bind(), x, RectifiedFlow(), DDIM(), grid))


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
@ALL
def test_callbacks_change_nothing_by_looking(prediction, solver):
    """A loop that hands estimates to callbacks and one that may fold conversions into its weights end at the same point."""
    denoiser, path = Denoiser(Net(), RectifiedFlow(), prediction), RectifiedFlow()
    x, grid = normal(4, 3), 0.95 - 0.95 * torch.linspace(0, 1, 7, dtype=torch.float64)
    plain, watched = (
        sample(denoiser.bind({"shift": 0.3}), x, path, solver, grid, None, torch.Generator().manual_seed(0), callbacks)
        for callbacks in ([], [Callback()])
    )
    torch.testing.assert_close(plain, watched, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prediction", over({k: PREDICTIONS[k] for k in ("residual", "anchored")}))
def test_an_anchor_that_only_the_network_reads_is_never_forgotten(prediction):
    """On a path without anchor (b = 0) the loop needs no y, but x0 = y - out, or y + c_skip d + c_out F, still does."""
    path, x, y = RectifiedFlow(), normal(4, 3), normal(4, 3, seed=1)
    bound = Denoiser(Net(), path, prediction).bind(y=y)
    grid = Uniform()(path, 4)
    torch.testing.assert_close(
        sample(bound, x, path, DDIM(), grid), sample(bound, x, path, DDIM(), grid, y), rtol=1e-12, atol=1e-12
    )


def test_estimates_are_lazy_and_remembered():
    calls = []

    def half(which):
        def compute():
            calls.append(which)
            return torch.ones(2)

        return compute

    estimate = Estimate(half("x0"), half("eps"))
    assert calls == []
    first = estimate.x0
    assert estimate.x0 is first
    assert calls == ["x0"]
    mixed = estimate.map(lambda u, v: u + v, Estimate(torch.ones(2), half("other")))
    assert calls == ["x0"]
    assert torch.equal(mixed.x0, torch.full((2,), 2.0))
    assert calls == ["x0"]


def test_the_half_that_is_not_used_is_not_computed():
    """At s = 0 the noise of an x0 network is undefined; asking for x0 alone must not care."""
    path = ResidualShift()
    x, y = normal(3, 2), normal(3, 2, seed=1)
    estimate = Denoiser(Net(), path, X0()).bind(y=y)(x, 0.5)
    assert callable(estimate._eps)
    assert estimate.x0.isfinite().all()
    assert callable(estimate._eps)


# --- precision and gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", DETERMINISTIC, ids=name)
@pytest.mark.parametrize(
    ("path", "prediction"),
    [
        pytest.param(RectifiedFlow(), U(), id="rf"),
        pytest.param(EDM(), EDMPrecondition(), id="edm"),
        pytest.param(ResidualShift(), AnchoredPrecondition(), id="resshift"),
    ],
)
def test_single_precision_stays_close_to_double(path, prediction, solver):
    torch.manual_seed(0)
    net = MLP(3, 32, 2, time_scale=1.0)
    noise, y = normal(4, 3), normal(4, 3, seed=1)
    outs = []
    for dtype in (torch.float32, torch.float64):
        denoiser = Denoiser(copy.deepcopy(net).to(dtype), path, prediction)
        anchor = y.to(dtype) if path.anchored else None
        x = path.start(noise.to(dtype), anchor)
        outs.append(sample(denoiser.bind(y=anchor), x, path, solver, Uniform()(path, 8), anchor))
        assert outs[-1].dtype == dtype
    torch.testing.assert_close(outs[0].double(), outs[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", [DDIM(), Heun()], ids=name)
def test_sampling_is_differentiable_in_parameters_and_start(solver):
    """Directional derivative through four steps against central differences."""
    path = ResidualShift()
    torch.manual_seed(0)
    net = MLP(2, 16, 2, time_scale=1.0).double()
    denoiser, y, x = Denoiser(net, path, AnchoredPrecondition()), normal(3, 2, seed=1), normal(3, 2).requires_grad_()
    parameters = list(net.parameters())

    def loss():
        return sample(denoiser.bind(y=y), x, path, solver, Uniform()(path, 4), y).square().sum()

    variables = [x, *parameters]
    gradient = torch.autograd.grad(loss(), variables)
    assert all(g.abs().max() > 0 for g in gradient)
    direction, h = [normal(*v.shape, seed=i) for i, v in enumerate(variables)], 1e-6
    values = []
    with torch.no_grad():
        for step in (h, -2 * h):
            for v, d in zip(variables, direction, strict=True):
                v += step * d
            values.append(loss().item())
    slope = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True)).item()
    assert slope == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-6)


def test_no_graph_is_kept_under_no_grad():
    path = RectifiedFlow()
    denoiser = Denoiser(MLP(2, 8, 2).double(), path, U())
    x = normal(3, 2).requires_grad_()
    with torch.no_grad():
        out = sample(denoiser.bind(), x, path, DDIM(), Uniform()(path, 3))
    assert not out.requires_grad
    assert out.grad_fn is None
    assert sample(denoiser.bind(), x, path, DDIM(), Uniform()(path, 3)).requires_grad


@pytest.mark.parametrize("solver", DETERMINISTIC, ids=name)
def test_sampling_leaves_its_inputs_alone(solver):
    path = ResidualShift()
    y = normal(4, 3, seed=1)
    x, world = path.start(normal(4, 3), y), correlated(path, y)
    before = x.clone(), y.clone()
    sample(world, x, path, solver, Uniform()(path, 4), y)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
