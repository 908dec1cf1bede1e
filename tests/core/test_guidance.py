import pytest
import torch
from torch import nn
from worlds import PREDICTIONS, normal, over

from fewstep.denoiser import Denoiser
from fewstep.grids import Uniform
from fewstep.guidance import CFG
from fewstep.paths import RectifiedFlow, ResidualShift
from fewstep.prediction import V
from fewstep.sampling import sample
from fewstep.solvers import DDIM, DPMpp2M

ALL = pytest.mark.parametrize("prediction", over(PREDICTIONS))
SCALES = pytest.mark.parametrize("w", [0.0, 0.4, 2.5, 7.0])


class Net(nn.Module):
    """Reads its condition beside the state, as networks with class embeddings do."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def forward(self, x, t, label):
        self.count += 1
        both = torch.cat([x, label], 1)
        return torch.tanh(both[:, :3] * 1.1 + both[:, 3:] * (1 + 0.1 * t[:, None]))


def close(ours, theirs, tol=1e-10):
    torch.testing.assert_close(ours, theirs, rtol=tol, atol=tol)


def parts(path, prediction):
    x, y = normal(5, 3), normal(5, 3, seed=1) if path.anchored else None
    cond, uncond = {"label": normal(5, 3, seed=2)}, {"label": torch.zeros(5, 3, dtype=torch.float64)}
    return Denoiser(Net(), path, prediction), x, y, cond, uncond


@ALL
def test_scale_one_is_the_conditional_model_at_one_evaluation(prediction):
    denoiser, x, _, cond, uncond = parts(RectifiedFlow(), prediction)
    guided = CFG(denoiser, 1.0, uncond).bind(cond)(x, 0.6)
    assert denoiser.net.count == 1
    plain = denoiser.bind(cond)(x, 0.6)
    assert torch.equal(guided.x0, plain.x0)
    assert torch.equal(guided.eps, plain.eps)


@SCALES
@pytest.mark.parametrize(
    ("path", "times"),
    [pytest.param(RectifiedFlow(), (0.9, 0.2), id="rf"), pytest.param(ResidualShift(), (13.0, 2.5), id="resshift")],
)
@ALL
def test_guidance_is_the_formula_on_data_and_noise_at_two_evaluations(prediction, path, times, w):
    denoiser, x, y, cond, uncond = parts(path, prediction)
    guide = CFG(denoiser, w, uncond).bind(cond, y)
    for t in (*times, torch.linspace(*times, 5, dtype=torch.float64)):
        before = denoiser.net.count
        guided = guide(x, t)
        assert denoiser.net.count == before + 2
        c, u = denoiser.bind(cond, y)(x, t), denoiser.bind(uncond, y)(x, t)
        close(guided.x0, u.x0 + w * (c.x0 - u.x0))
        close(guided.eps, u.eps + w * (c.eps - u.eps))
        # The guided pair still explains the state.
        times_of_all = t if isinstance(t, torch.Tensor) else torch.full((5,), t, dtype=torch.float64)
        close(path.sample(guided.x0, guided.eps, times_of_all, y), x)


@ALL
def test_guiding_the_estimate_is_guiding_the_network_output(prediction):
    """The conversion is affine with the same x for both branches."""
    denoiser, x, _, cond, uncond = parts(RectifiedFlow(), prediction)
    t, w = torch.full((5,), 0.6, dtype=torch.float64), 3.0
    guided = CFG(denoiser, w, uncond).bind(cond)(x, 0.6)
    out_c, out_u = denoiser.raw(x, t, cond), denoiser.raw(x, t, uncond)
    k, out = prediction.affine(denoiser.path.coeffs(t, x)), out_u + w * (out_c - out_u)
    close(guided.x0, k.x0_x * x + k.x0_out * out)
    close(guided.eps, k.eps_x * x + k.eps_out * out)


def test_equal_conditions_make_the_scale_irrelevant():
    denoiser, x, _, cond, _ = parts(RectifiedFlow(), V())
    close(CFG(denoiser, 5.0, cond).bind(cond)(x, 0.6).x0, denoiser.bind(cond)(x, 0.6).x0)


def test_one_row_of_unconditional_conditions_serves_the_batch():
    denoiser, x, _, cond, uncond = parts(RectifiedFlow(), V())
    one = {"label": uncond["label"][:1]}
    for t in (0.6, torch.full((5,), 0.6, dtype=torch.float64)):
        close(CFG(denoiser, 3.0, one).bind(cond)(x, t).x0, CFG(denoiser, 3.0, uncond).bind(cond)(x, t).x0, tol=1e-14)


@pytest.mark.parametrize("solver", [DDIM(), DPMpp2M()])
def test_guided_sampling_costs_two_evaluations_per_row(solver):
    denoiser, x, _, cond, uncond = parts(RectifiedFlow(), V())
    path = RectifiedFlow()
    guided = sample(CFG(denoiser, 3.0, uncond).bind(cond), x, path, solver, Uniform()(path, 4))
    assert denoiser.net.count == 8
    assert guided.isfinite().all()
    plain = sample(CFG(denoiser, 1.0, uncond).bind(cond), x, path, solver, Uniform()(path, 4))
    assert denoiser.net.count == 12
    close(plain, sample(denoiser.bind(cond), x, path, solver, Uniform()(path, 4)), tol=1e-14)
