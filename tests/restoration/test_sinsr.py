"""SinSR: an exact student has zero loss; which term teaches which call; labels and scales of the inversion calls."""

import pytest
import torch
from torch import nn

from fewstep.denoiser import Denoiser
from fewstep.distill import TrajectoryRegression
from fewstep.distill.trajectory import regression_loss
from fewstep.grids import Spaced
from fewstep.paths import ResidualShift
from fewstep.precondition import AnchoredPrecondition
from fewstep.prediction import X0
from fewstep.solvers import DDIM
from fewstep_restoration.resize import matlab_bicubic
from fewstep_restoration.sinsr import SinSR, predict
from fewstep_restoration.super_resolver import SuperResolver

PATH = ResidualShift(kappa=0.2, min_noise=0.02)
PREDICTION = AnchoredPrecondition(0.1)
END = PATH.t_max


def uniform(*shape, seed=0):
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


def batch(b=2):
    hr = uniform(b, 3, 16, 12)
    return {"hr": hr, "lr": matlab_bicubic(hr, 1 / 4)}


class Zero(nn.Module):
    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x, t, lr):
        return torch.zeros_like(x) + 0 * self.unused


class Two(nn.Module):
    """gain_end * x where the label is T-1, gain_0 * x where it is 0; remembers its calls."""

    def __init__(self, at_end=0.3, at_zero=0.7):
        super().__init__()
        self.at_end = nn.Parameter(torch.tensor(at_end, dtype=torch.float64))
        self.at_zero = nn.Parameter(torch.tensor(at_zero, dtype=torch.float64))
        self.calls = []

    def forward(self, x, t, lr):
        self.calls.append((x.detach().clone(), t.clone()))
        assert ((t == END) | (t == 0)).all(), t
        return torch.where((t == END)[:, None, None, None], self.at_end, self.at_zero) * x


def resolver(net, prediction=PREDICTION, steps=15):
    return SuperResolver(Denoiser(net, PATH, prediction), DDIM(), Spaced(), steps=steps)


def sinsr(net, prediction=PREDICTION, **kw):
    return SinSR(resolver(Zero(), prediction), iterations=10, student=resolver(net, prediction, steps=1), **kw)


def scales(prediction=PREDICTION):
    """(i, k_x, k_out) at T: the network sees i (x - y) and x0 = k_x x + k_out out + k_y y."""
    c = PATH.coeffs(torch.tensor([END], dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    k = prediction.affine(c)
    return prediction.input_scale(c)[0].item(), k.x0_x.item(), k.x0_out.item()


def exact_student():
    """f(x, T) - y = A (x - y) as the teacher does in 15 steps, and f(., 0) its inverse."""
    teacher, one = resolver(Zero()), torch.ones(1, 48, 1, 1, dtype=torch.float64)
    gain = (teacher.generate(one, {"lr": one[:, :3]}, 0 * one) / PATH.start(one, 0 * one)).mean().item()  # A
    i, skip, out = scales()
    return gain, Two((gain - skip) / (out * i), (1 / gain - skip) / (out * i))


def test_the_exact_solution_has_no_loss_in_any_term():
    gain, net = exact_student()
    assert 1e-3 < gain < 0.9  # the teacher is not the identity, and can be inverted
    terms = sinsr(net).loss(batch())
    assert terms.keys() == {"distill", "inversion", "ground_truth"}
    assert all(v.item() < 1e-20 for v in terms.values())


@pytest.mark.parametrize(
    ("spoilt", "wrong"), [("at_end", {"distill", "ground_truth"}), ("at_zero", {"inversion", "ground_truth"})]
)
def test_each_mistake_shows_in_its_terms(spoilt, wrong):
    _, net = exact_student()
    with torch.no_grad():
        getattr(net, spoilt).mul_(1.1)
    terms = sinsr(net).loss(batch())
    assert {k for k, v in terms.items() if v.item() > 1e-8} == wrong


@pytest.mark.parametrize("term", ["distill", "inversion", "ground_truth"])
def test_which_call_each_term_teaches(term):
    net = Two()
    sinsr(net).loss(batch())[term].backward()
    learns = {k for k, p in net.named_parameters() if p.grad is not None and p.grad != 0}
    # The ground-truth term stops at its inner call: sg f(x0, 0).
    assert learns == {"distill": {"at_end"}, "inversion": {"at_zero"}, "ground_truth": {"at_end"}}[term]


def test_the_gradient_of_the_ground_truth_term_is_that_of_a_constant_input():
    net, data = Two(), batch()
    model = sinsr(net)
    model.loss(data)["ground_truth"].backward()
    x0, cond, y = model.student.prepare(data)
    noise = predict(model.student.denoiser, x0, 0.0, cond, y).detach()
    ours = net.at_end.grad.clone()
    i, skip, out = scales()
    # f(x, T) - x0 = y + (skip + out g i)(x - y) - x0, so dL/dg = 2 mean(f - x0)(out i (x - y)).
    d = noise - y
    expected = 2 * ((y + (skip + out * net.at_end.item() * i) * d - x0) * (out * i * d)).mean()
    torch.testing.assert_close(ours, expected)


def test_the_distillation_term_is_trajectory_regression():
    net, data = Two(), batch()
    model = sinsr(net)
    torch.manual_seed(5)
    noise, target, _, cond, y = model.pairs(data)
    one_step = regression_loss(lambda n: model.student.generate(n, cond, y, steps=1), noise, target).mean()
    torch.manual_seed(5)
    ours = model.loss(data)["distill"]
    torch.testing.assert_close(ours, one_step, rtol=1e-12, atol=0)
    plain = TrajectoryRegression(resolver(Zero()), 10, student=resolver(Two(), steps=1))
    torch.manual_seed(5)
    torch.testing.assert_close(plain.loss(data)["distill"], ours, rtol=1e-12, atol=0)


@pytest.mark.parametrize("prediction", [PREDICTION, X0()], ids=repr)
def test_inversion_calls_have_label_zero_but_the_scale_of_the_last_index(prediction):
    net, data = Two(), batch()
    model = sinsr(net, prediction)
    torch.manual_seed(0)
    noise, target, x0, _, y = model.pairs(data)
    torch.manual_seed(0)
    net.calls.clear()
    model.loss(data)
    i, _, _ = scales(prediction)
    centre = y if prediction == PREDICTION else 0 * y
    assert [t.tolist() for _, t in net.calls] == [[END] * 2, [0.0] * 2, [0.0] * 2, [END] * 2]
    for (seen, _), x in zip(net.calls, (PATH.start(noise, y), target, x0), strict=False):
        torch.testing.assert_close(seen, i * (x - centre), rtol=1e-10, atol=1e-12)


def test_prediction_at_the_end_is_the_denoiser_itself():
    denoiser, x, y, lr = (
        resolver(Two()).denoiser,
        uniform(2, 48, 4, 3),
        uniform(2, 48, 4, 3, seed=1),
        uniform(2, 3, 4, 3),
    )
    end = torch.full((2,), END, dtype=torch.float64)
    torch.testing.assert_close(predict(denoiser, x, END, {"lr": lr}, y), denoiser(x, end, {"lr": lr}, y).x0)


def test_the_weights_multiply_their_terms():
    data = batch()
    torch.manual_seed(1)
    plain = sinsr(Two()).loss(data)
    torch.manual_seed(1)
    weighted = sinsr(Two(), inversion=0.5, ground_truth=3.0).loss(data)
    torch.testing.assert_close(weighted["distill"], plain["distill"])
    torch.testing.assert_close(weighted["inversion"], 0.5 * plain["inversion"])
    torch.testing.assert_close(weighted["ground_truth"], 3 * plain["ground_truth"])


def test_the_student_has_one_step_and_the_teacher_keeps_its_own():
    model = SinSR(resolver(Zero()), iterations=3)
    assert (model.student.steps, model.teacher.steps) == (1, 15)
    assert model.student is not model.teacher
