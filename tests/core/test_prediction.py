import math

import pytest
import torch
from torch import nn
from worlds import PATHS, PREDICTIONS, coeffs, correlated, interior, normal, over, time_at, uniform

from fewstep.denoiser import Denoiser
from fewstep.grids import Uniform
from fewstep.paths import EDM, VP, Coeffs, RectifiedFlow, ResidualShift, Trig
from fewstep.precondition import AnchoredPrecondition, ConsistencyPrecondition, EDMPrecondition
from fewstep.prediction import X0, Eps, Prediction, Residual, Score, U, V
from fewstep.sampling import Callback, sample
from fewstep.solvers import DDIM
from fewstep.toy import gaussian

ALL = pytest.mark.parametrize("prediction", over(PREDICTIONS))


def random_coeffs(prediction, n, anchor):
    """Independent coefficients of a noising path (a' < 0 < s'); a + b = 1 where a preconditioner needs it."""
    a, s = uniform(n, 1, seed=3, low=0.2, high=1.0), uniform(n, 1, seed=4, low=0.05, high=2.0)
    b = 1 - a if isinstance(prediction, AnchoredPrecondition) else normal(n, 1, seed=5)
    b = b if anchor else torch.zeros_like(a)
    return Coeffs(a, b, s, -uniform(n, 1, seed=6, low=0.1), normal(n, 1, seed=7), uniform(n, 1, seed=8, low=0.1))


def close(ours, theirs, tol=1e-10):
    torch.testing.assert_close(ours, theirs, rtol=tol, atol=tol)


@pytest.mark.parametrize("anchor", [False, True])
@ALL
def test_affine_recovers_data_and_noise_from_the_target(prediction, anchor):
    c = random_coeffs(prediction, 200, anchor)
    x0, eps = normal(200, 3), normal(200, 3, seed=1)
    y = normal(200, 3, seed=2) if anchor else None
    x_t = c.a * x0 + c.s * eps + (c.b * y if anchor else 0)
    out, k = prediction.target(x0, eps, c, y), prediction.affine(c)
    close(k.x0_x * x_t + k.x0_out * out + (k.x0_y * y if anchor else 0), x0)
    close(k.eps_x * x_t + k.eps_out * out + (k.eps_y * y if anchor else 0), eps)


@ALL
def test_closed_form_affine_is_the_generic_solve(prediction):
    c = random_coeffs(prediction, 200, anchor=True)
    for closed, cramer in zip(prediction.affine(c), Prediction.affine(prediction, c), strict=True):
        close(closed, cramer)


@pytest.mark.parametrize("path", over({k: v for k, v in PATHS.items() if k != "ve"}))
@pytest.mark.parametrize(
    "prediction",
    over({k: PREDICTIONS[k] for k in ("eps", "v", "score", "edm", "anchored")}) + [pytest.param(U(), id="u")],
)
def test_clean_states_are_their_own_estimate(prediction, path):
    """At s = 0, x0 = x whatever the (finite) output, and nothing is NaN."""
    if isinstance(prediction, U) and not path.rates(torch.tensor(path.t_min, dtype=torch.float64))[2].isfinite():
        pytest.skip("s' is infinite at the clean end of this path, so u is")
    k = prediction.affine(coeffs(path, torch.full((4,), path.t_min, dtype=torch.float64)))
    x, out, y = normal(4, 3), normal(4, 3, seed=1), normal(4, 3, seed=2)
    close(k.x0_x * x + k.x0_out * out + k.x0_y * y, x, tol=1e-14)


def test_x0_prediction_is_the_output_itself_at_both_ends():
    for path in (RectifiedFlow(), Trig(), EDM(), ResidualShift()):
        k = X0().affine(coeffs(path, torch.tensor([path.t_min, path.t_max], dtype=torch.float64)))
        assert (k.x0_x == 0).all()
        assert (k.x0_out == 1).all()
        assert (k.x0_y == 0).all()


def test_residual_prediction_is_the_anchor_minus_the_output_at_both_ends():
    path = ResidualShift()
    k = Residual().affine(coeffs(path, torch.tensor([path.t_min, path.t_max], dtype=torch.float64)))
    x, out, y = normal(2, 3), normal(2, 3, seed=1), normal(2, 3, seed=2)
    close(k.x0_x * x + k.x0_out * out + k.x0_y * y, y - out, tol=1e-14)


@pytest.mark.parametrize("prediction", over({k: PREDICTIONS[k] for k in ("score", "edm", "anchored", "v")}))
@pytest.mark.parametrize("path", [RectifiedFlow(), EDM(), ResidualShift()])
def test_noise_estimate_is_finite_at_clean_data(prediction, path):
    k = prediction.affine(coeffs(path, torch.tensor([path.t_min], dtype=torch.float64)))
    assert all(v.isfinite().all() for v in k)


@pytest.mark.parametrize("prediction", over({"v": V(), "u": U()}))
@pytest.mark.parametrize("path", [RectifiedFlow(), Trig()])
def test_velocities_are_finite_and_exact_at_pure_noise(prediction, path):
    """At a = 0: eps = x / s, and x0 is still in the velocity."""
    c = coeffs(path, torch.full((4,), path.t_max, dtype=torch.float64))
    x0, eps = normal(4, 3), normal(4, 3, seed=1)
    x, out, k = c.s * eps, prediction.target(x0, eps, c), prediction.affine(c)
    close(k.x0_x * x + k.x0_out * out, x0, tol=1e-14)
    close(k.eps_x * x + k.eps_out * out, eps, tol=1e-14)


# --- preconditioning -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", over(PATHS))
@pytest.mark.parametrize("prediction", over({k: PREDICTIONS[k] for k in ("edm", "anchored")}))
def test_preconditioned_target_and_input_have_unit_variance(prediction, path):
    """Data of the assumed standard deviation: Var F = p^2 sd^2 + q^2 = 1 and Var input = i^2 (a^2 sd^2 + s^2) = 1."""
    sd = getattr(prediction, "sigma_data", None) or prediction.residual_std
    c = coeffs(path, interior(path, 50))
    p, q, _ = prediction.row(c)
    i, _ = prediction.input_scale(c)
    close(p**2 * sd**2 + q**2, torch.ones_like(p))
    close(i**2 * (c.a**2 * sd**2 + c.s**2), torch.ones_like(p))
    # The target is uncorrelated with the input, so that a zero network is the best linear estimate.
    close(p * c.a * sd**2 + q * c.s, torch.zeros_like(p))


def test_preconditioned_inputs_do_not_contain_the_anchor():
    path = ResidualShift()
    t = interior(path, 20)
    for prediction in (PREDICTIONS["edm"], PREDICTIONS["consistency"], PREDICTIONS["anchored"]):
        c = coeffs(path, t)
        i, j = prediction.input_scale(c)
        residual, y, eps = normal(20, 3), normal(20, 3, seed=1), normal(20, 3, seed=2)
        mean = y if prediction == PREDICTIONS["anchored"] else 0  # data = anchor + residual, or residual alone
        x = c.a * (mean + residual) + c.b * y + c.s * eps
        close(i * x + j * y, i * (c.a * residual + c.s * eps), tol=1e-12)


def test_edm_scales_are_those_of_the_paper():
    sigma = torch.tensor([0.002, 0.5, 80.0], dtype=torch.float64)
    p, c = EDMPrecondition(0.5), coeffs(EDM(), sigma)
    k, (i, j), sigma = p.affine(c), p.input_scale(c), sigma[:, None]
    close(k.x0_x, 0.25 / (sigma**2 + 0.25), tol=1e-14)
    close(k.x0_out, sigma * 0.5 / (sigma**2 + 0.25).sqrt(), tol=1e-14)
    close(i, 1 / (sigma**2 + 0.25).sqrt(), tol=1e-14)
    assert (j == 0).all()
    close(p.label(sigma[:, 0], c), sigma[:, 0].log() / 4, tol=1e-14)


def test_edm_target_at_clean_data_is_the_limit_minus_the_noise():
    """F = (x0 - c_skip z)/c_out -> -eps as rho -> 0."""
    x0, eps = normal(4, 3), normal(4, 3, seed=1)
    near = coeffs(EDM(), torch.full((4,), 1e-9, dtype=torch.float64))
    close(EDMPrecondition(0.5).target(x0, eps, near), -eps, tol=1e-7)
    clean = coeffs(EDM(), torch.zeros(4, dtype=torch.float64))
    close(EDMPrecondition(0.5).target(x0, eps, clean), -eps, tol=1e-14)


class Zero(nn.Module):
    def forward(self, x, t):
        return torch.zeros_like(x)


@pytest.mark.parametrize("path", [EDM(), VP(), RectifiedFlow()])
def test_edm_with_a_zero_network_is_the_wiener_estimate(path):
    world = gaussian(path, 0.0, 0.5, dim=3)
    t = interior(path, 20)
    x = path.sample(0.5 * normal(20, 3), normal(20, 3, seed=1), t)
    ours, exact = Denoiser(Zero(), path, EDMPrecondition(0.5))(x, t), world(x, t)
    close(ours.x0, exact.x0, tol=1e-12)
    close(ours.eps, exact.eps, tol=1e-12)


def test_anchored_with_a_zero_network_is_the_wiener_estimate_around_the_anchor():
    path, y = ResidualShift(), normal(3, seed=2)
    world = gaussian(path, y, 0.3, dim=3, y=y)  # x0 ~ N(y, 0.3^2)
    t = torch.cat([interior(path, 20), torch.tensor([path.t_min], dtype=torch.float64)])
    x, anchor = y + normal(21, 3), y.expand(21, 3)
    ours, exact = Denoiser(Zero(), path, AnchoredPrecondition(0.3))(x, t, y=anchor), world(x, t)
    close(ours.x0, exact.x0, tol=1e-12)
    close(ours.eps, exact.eps, tol=1e-12)


@pytest.mark.parametrize("path", [EDM(), VP(), RectifiedFlow()])
def test_consistency_function_is_the_identity_at_the_smallest_level(path):
    prediction = ConsistencyPrecondition(0.5, 0.002)
    t = torch.full((4,), time_at(path, -math.log(0.002)), dtype=torch.float64)
    c, x, out = coeffs(path, t), normal(4, 3), 1e3 * normal(4, 3, seed=1)
    k = prediction.affine(c)
    close(k.x0_x * x + k.x0_out * out, x / c.a, tol=1e-10)


# --- the same model in every parameterisation ------------------------------------------------------------------


class Exact(nn.Module):
    """The network that a perfect training of `prediction` on the world would give: undoes input scaling and label."""

    def __init__(self, world, prediction, y):
        super().__init__()
        self.world, self.prediction, self.y = world, prediction, y

    def forward(self, seen, label):
        path, scaled_label = self.world.path, isinstance(self.prediction, EDMPrecondition)
        t = path.time_of_log_snr(-4 * label) if scaled_label else label
        c = path.coeffs(t, seen)
        i, j = self.prediction.input_scale(c)
        x = (seen - (0 if self.y is None else j * self.y)) / i
        estimate = self.world(x, t)
        return self.prediction.target(estimate.x0, estimate.eps, c, self.y)


class Trajectory(Callback):
    def __init__(self):
        self.x = []

    def on_step(self, x, done, total, row):
        self.x.append(x)
        return False


GRIDS = {
    "vp": (VP(), Uniform(end=1e-3)),
    "rf": (RectifiedFlow(), lambda path, n: 0.99 - 0.98 * torch.linspace(0, 1, n + 1, dtype=torch.float64)),
    "resshift15": (ResidualShift(), lambda path, n: torch.linspace(14, 0, n + 1, dtype=torch.float64)),
}


@pytest.mark.parametrize(("path", "grid"), [pytest.param(*v, id=k) for k, v in GRIDS.items()])
def test_all_parameterisations_of_the_exact_model_give_the_same_trajectory(path, grid):
    y = normal(8, 3, seed=9) if path.anchored else None
    world, times, start = correlated(path, y), grid(path, 12), path.start(normal(8, 3), y)
    reference = Trajectory()
    sample(world, start, path, DDIM(), times, y, callbacks=[reference])
    assert len(reference.x) == 12
    for prediction in PREDICTIONS.values():
        ours = Trajectory()
        sample(
            Denoiser(Exact(world, prediction, y), path, prediction).bind(y=y),
            start,
            path,
            DDIM(),
            times,
            y,
            callbacks=[ours],
        )
        for a, b in zip(ours.x, reference.x, strict=True):
            close(a, b)


def test_score_prediction_is_the_gradient_of_the_density():
    path = VP()
    world, t = correlated(path), interior(path, 6)
    x = normal(6, 3).requires_grad_()
    (score,) = torch.autograd.grad(world.log_density(x, t).sum(), x)
    estimate, c = world(x.detach(), t), coeffs(path, t)
    close(Score().target(estimate.x0, estimate.eps, c), score, tol=1e-9)


def test_velocity_prediction_is_the_rate_of_the_flow():
    """u of the exact model is d/dt of the exact flow map."""
    path, h = VP(), 1e-6
    world, t, x = gaussian(path, 0.4, 0.7, dim=2), 0.6, normal(5, 2)
    rate = (world.flow_map(x, t, t + h) - world.flow_map(x, t, t - h)) / (2 * h)
    estimate = world(x, t)
    u = U().target(estimate.x0, estimate.eps, coeffs(path, torch.full((5,), t, dtype=torch.float64)))
    close(u, rate, tol=1e-7)


def test_targets_are_what_their_names_say():
    path, t = ResidualShift(), interior(ResidualShift(), 9)
    x0, eps, y, c = normal(9, 3), normal(9, 3, seed=1), normal(9, 3, seed=2), coeffs(path, t)
    for prediction, wanted in (
        (X0(), x0),
        (Eps(), eps),
        (V(), c.a * eps - c.s * x0),
        (U(), path.velocity(x0, eps, t, y)),
        (Score(), -eps / c.s),
        (Residual(), y - x0),
    ):
        close(prediction.target(x0, eps, c, y), wanted, tol=1e-13)
    assert torch.equal(U().label(t, c), t)


def test_predictions_are_equal_by_value():
    assert X0() == X0()
    assert X0() != Eps()
    assert EDMPrecondition(0.5) != EDMPrecondition(1.0)
