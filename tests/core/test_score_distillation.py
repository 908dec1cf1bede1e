"""Score distillation against exact worlds: the gradients are those of divergences, and flow where they should."""

import copy
import itertools
import math

import lightning as L
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from worlds import Batches, normal

from fewstep.artifacts import load, save
from fewstep.class_generator import ClassGenerator
from fewstep.denoiser import Denoiser
from fewstep.discriminators import Adversary, GlobalHead
from fewstep.distill.alternating import energy_terms
from fewstep.distill.asd import ASD, asd_loss
from fewstep.distill.disback import DisBack
from fewstep.distill.dmd import DMD, dmd_loss
from fewstep.distill.f_distill import (
    FDistill,
    ForwardKL,
    Jeffreys,
    JensenShannon,
    Neyman,
    Ratio,
    ReverseKL,
    SoftenedReverseKL,
    SquaredHellinger,
    normalised,
)
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.ladd import LADD
from fewstep.distill.msd import MSD
from fewstep.distill.pool import PairPool
from fewstep.distill.rollout import EachStep, LastStep, RandomStep, Rollout, frozen
from fewstep.distill.score_distillation import fake_loss
from fewstep.distill.score_forgetting import ScoreForgetting
from fewstep.distill.score_gradient import ByTeacherError, ByTime, NoiseDifference, projected
from fewstep.distill.sid import SIM, HuberScore, SiD, SquaredScore, sid_loss, sim_loss
from fewstep.distill.tdm import TDM, diffused
from fewstep.distill.uni_instruct import UniInstruct, uni_instruct_loss
from fewstep.distill.weighting import Even, MaxSNR
from fewstep.estimate import Estimate
from fewstep.generator import Generator
from fewstep.grids import Uniform
from fewstep.lora import LowRank
from fewstep.metrics.energy_distance import energy_distance
from fewstep.nets import MLP
from fewstep.nets.routed import Routed
from fewstep.paths import EDM, VP, RectifiedFlow, Trig
from fewstep.prediction import U
from fewstep.sampling import sample
from fewstep.solvers import DDIM, GammaSampling
from fewstep.toy import Mixture
from fewstep.train.ema import EMA

FLOW = RectifiedFlow()
PATHS = [(FLOW, 0.6), (Trig(), 0.8), (VP(), 0.5), (EDM(), 1.3)]

# --- a Gaussian student x0 = k z + m of a teacher with four modes, all integrals by quadrature --------------------


def nodes(n):
    """(n,) points and weights of a standard normal."""
    x, w = hermegauss(n)
    return torch.tensor(x), torch.tensor(w / w.sum())


def teacher_on(path):
    means = torch.tensor([[-2.0], [-0.5], [0.7], [2.2]], dtype=torch.float64)
    return Mixture(path, means, torch.full((4, 1, 1), 0.16, dtype=torch.float64))


class Student:
    """x0 = k z + m in one dimension, and the exact law, score and denoiser of its noised samples."""

    def __init__(self, path, time, k=0.9):
        self.path, self.time = path, torch.tensor([time], dtype=torch.float64)
        self.k = torch.tensor(k, dtype=torch.float64, requires_grad=True)
        self.m = torch.tensor(-0.4, dtype=torch.float64, requires_grad=True)
        self.parameters = [self.k, self.m]
        self.a, _, self.s = (v.item() for v in path.schedule(self.time))

    def variance(self, k):
        return (self.a * k) ** 2 + self.s**2

    def denoiser(self, k, m):
        """E[x0 | x_t] of samples with these parameters."""
        gain = self.a * k**2 / self.variance(k)
        return lambda x, t: Estimate(m + gain * (x - self.a * m), x)

    def log_density(self, x, k, m):
        v = self.variance(k)
        return -0.5 * ((x - self.a * m) ** 2 / v + v.log() + math.log(2 * math.pi))

    def drawn(self, n=80):
        """(x0, x_t, t, weights) over all (z, eps)."""
        x, w = nodes(n)
        z, eps = (v.reshape(-1, 1) for v in torch.meshgrid(x, x, indexing="ij"))
        x0 = self.k * z + self.m
        t = self.time.expand(len(z))
        return x0, self.path.sample(x0, eps, t), t, (w[:, None] * w).reshape(-1)

    def noised(self, k, m, n=160):
        """(x_t, weights) of the law with these parameters."""
        x, w = nodes(n)
        return (self.a * m + self.variance(k).sqrt() * x)[:, None], w

    def gradient(self, value):
        return torch.stack(torch.autograd.grad(value, self.parameters))


@pytest.mark.parametrize(("path", "time"), PATHS, ids=repr)
def test_dmd_has_the_gradient_of_the_reverse_divergence(path, time):
    student, teacher = Student(path, time), teacher_on(path)
    fake = student.denoiser(student.k.detach(), student.m.detach())
    x0, x_t, t, w = student.drawn()
    loss, _, _ = dmd_loss(x0, x_t, t, teacher, fake, path, ByTime(MaxSNR(0.0)))
    x, v = student.noised(student.k, student.m)
    log_ratio = student.log_density(x, student.k, student.m)[:, 0] - teacher.log_density(x, time)
    wanted = student.gradient((v * log_ratio).sum())
    torch.testing.assert_close(student.gradient((w * loss).sum()), wanted, rtol=1e-6, atol=0)
    assert wanted.abs().min() > 1e-3


F = {
    ReverseKL(): lambda r: -r.log(),
    ForwardKL(): lambda r: r * r.log(),
    JensenShannon(): lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
    SquaredHellinger(): lambda r: (1 - r.sqrt()) ** 2,
    Jeffreys(): lambda r: (r - 1) * r.log(),
    SoftenedReverseKL(): lambda r: (r + 1) * ((r + 1) / (2 * r)).log(),
}


@pytest.mark.parametrize("divergence", F, ids=repr)
@pytest.mark.parametrize(("path", "time"), PATHS, ids=repr)
def test_weights_of_f_distill_make_the_gradient_of_their_divergence(path, time, divergence):
    student, teacher = Student(path, time, 2.5), teacher_on(path)
    fake = student.denoiser(student.k.detach(), student.m.detach())
    x0, x_t, t, w = student.drawn(120)
    loss, _, _ = dmd_loss(x0, x_t, t, teacher, fake, path, ByTime(MaxSNR(0.0)))
    r = (teacher.log_density(x_t, time) - student.log_density(x_t, student.k, student.m)[:, 0]).exp().detach()
    x = torch.linspace(-24, 24, 40_001, dtype=torch.float64)[:, None]
    log_p = student.log_density(x, student.k, student.m)[:, 0]
    ratio = (teacher.log_density(x, time) - log_p).exp().clamp_min(1e-100)
    wanted = student.gradient(torch.trapezoid(log_p.exp() * F[divergence](ratio), x[:, 0]))
    torch.testing.assert_close(student.gradient((w * divergence.h(r) * loss).sum()), wanted, rtol=1e-6, atol=1e-9)
    assert wanted.abs().max() > 1e-3


@pytest.mark.parametrize("divergence", [*F, Neyman()], ids=repr)
def test_h_is_the_second_derivative_times_r_squared(divergence):
    f = F.get(divergence, lambda r: (1 - r) ** 2 / (2 * r))
    r = torch.linspace(0.2, 5, 9, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(f(r).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    torch.testing.assert_close(divergence.h(r.detach()), second * r.detach() ** 2)


def fisher(student, teacher, held, f):
    """Gradient of E f(D_phi(x_t) - D_psi(x_t)), psi the student's own; held: the law of x_t stays as it is."""
    parameters = [p.detach() if held else p for p in student.parameters]
    x, v = student.noised(*parameters)
    delta = teacher(x, student.time.item()).x0 - student.denoiser(student.k, student.m)(x, None).x0
    return student.gradient((v * f(delta)[:, 0]).sum())


def sid_gradient(student, teacher, alpha):
    fake = student.denoiser(student.k.detach(), student.m.detach())
    x0, x_t, t, w = student.drawn()
    loss = sid_loss(x0, teacher(x_t, t).x0, fake(x_t, t).x0, torch.ones(len(x0)), alpha)
    return 2 * student.gradient((w * loss).sum())


@pytest.mark.parametrize(("path", "time"), PATHS, ids=repr)
def test_sid_has_the_gradient_of_the_fisher_divergence_at_one_half_and_of_the_held_law_at_one(path, time):
    student, teacher = Student(path, time), teacher_on(path)
    full, held = (fisher(student, teacher, h, torch.square) for h in (False, True))
    torch.testing.assert_close(sid_gradient(student, teacher, 0.5), full, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(sid_gradient(student, teacher, 1.0), held, rtol=1e-6, atol=1e-9)
    assert (full - held).abs().max() > 1e-3


def uni_gradient(student, teacher, divergence, complete):
    """2 E of the loss with the exact ratio, whose graph reaches x_t alone."""
    held = [p.detach() for p in student.parameters]
    x0, x_t, t, w = student.drawn(120)
    own, wanted = student.denoiser(*held)(x_t, t).x0, teacher(x_t, t).x0
    r = (teacher.log_density(x_t, student.time.item()) - student.log_density(x_t, *held)[:, 0]).exp().clamp_min(1e-60)
    loss = uni_instruct_loss(x0, wanted, own, r, torch.ones(len(x0)), divergence, complete)
    return 2 * student.gradient((w * loss).sum())


@pytest.mark.parametrize("divergence", F, ids=repr)
@pytest.mark.parametrize(("path", "time"), PATHS, ids=repr)
def test_both_parts_of_uni_instruct_are_the_gradient_of_the_expanded_divergence(path, time, divergence):
    student, teacher = Student(path, time, 2.5), teacher_on(path)
    x = torch.linspace(-24, 24, 40_001, dtype=torch.float64)[:, None]
    log_p = student.log_density(x, student.k, student.m)[:, 0]
    r = (teacher.log_density(x, time) - log_p).exp().clamp_min(1e-100)
    delta = (teacher(x, time).x0 - student.denoiser(student.k, student.m)(x, None).x0)[:, 0]
    wanted = student.gradient(torch.trapezoid(log_p.exp() * divergence.h(r) * delta**2, x[:, 0]))
    torch.testing.assert_close(uni_gradient(student, teacher, divergence, True), wanted, rtol=1e-6, atol=1e-8)
    part = uni_gradient(student, teacher, divergence, False)
    # for the forward divergence the second part is zero
    assert torch.allclose(part, wanted, rtol=1e-6, atol=1e-8) == isinstance(divergence, ForwardKL)


def test_uni_instruct_has_sid_among_its_settings():
    student, teacher = Student(FLOW, 0.6), teacher_on(FLOW)
    for complete, alpha in ((False, 1.0), (True, 0.5)):
        x0, x_t, t, _ = student.drawn(20)
        fake, wanted = (f(x_t, t).x0 for f in (student.denoiser(student.k.detach(), student.m.detach()), teacher))
        r, weight = torch.rand(len(x0), dtype=torch.float64) + 0.5, torch.rand(len(x0), dtype=torch.float64)
        own = uni_instruct_loss(x0, wanted, fake, r, weight, ReverseKL(), complete)
        torch.testing.assert_close(own, sid_loss(x0, wanted, fake, weight, alpha), rtol=1e-12, atol=1e-12)


def test_the_forward_divergence_moves_the_mean_to_the_teacher_and_widens_a_narrow_student():
    student = Student(FLOW, 0.6, 0.7)
    teacher = Mixture(FLOW, torch.tensor([[0.6]], dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64))
    k, m = uni_gradient(student, teacher, ForwardKL(), False)
    assert k < 0  # descent raises k
    assert m < 0


def sim_gradient(student, teacher, distance, detached=False):
    fake = student.denoiser(student.k.detach(), student.m.detach())
    x0, x_t, t, w = student.drawn()
    seen = x_t.detach() if detached else x_t
    loss = sim_loss(x0, teacher(seen, t).x0, fake(seen, t).x0, torch.ones(len(x0)), distance)
    return student.gradient((w * loss).sum())


@pytest.mark.parametrize(("path", "time"), PATHS, ids=repr)
def test_sim_has_the_gradient_of_its_divergence_with_the_law_held(path, time):
    student, teacher, c = Student(path, time), teacher_on(path), 1.0
    huber = fisher(student, teacher, True, lambda y: (y**2 + c**2).sqrt() - c)
    torch.testing.assert_close(sim_gradient(student, teacher, HuberScore(c)), huber, rtol=1e-6, atol=1e-9)
    square = sim_gradient(student, teacher, SquaredScore())
    torch.testing.assert_close(square, sid_gradient(student, teacher, 1.0) / 2, rtol=1e-12, atol=1e-14)


def test_with_detached_networks_sim_would_be_dmd():
    """Why the networks of SIM and SiD must pass gradients on (the x0 form then silently has another gradient)."""
    student, teacher = Student(FLOW, 0.6), teacher_on(FLOW)
    fake = student.denoiser(student.k.detach(), student.m.detach())
    x0, x_t, t, w = student.drawn()
    loss, _, _ = dmd_loss(x0, x_t, t, teacher, fake, FLOW, ByTime(MaxSNR(0.0)))
    a, _, s = FLOW.schedule(t)
    dmd = student.gradient((w * loss / (a / s) ** 2).sum())
    torch.testing.assert_close(sim_gradient(student, teacher, SquaredScore(), detached=True), dmd, rtol=1e-9, atol=0)
    assert (dmd - sim_gradient(student, teacher, SquaredScore())).abs().max() > 1e-2


def test_weights_of_the_difference_of_scores():
    x0, teacher = normal(5, 3), normal(5, 3, seed=1)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    torch.testing.assert_close(ByTeacherError()(x0, teacher, t, FLOW), 1 / (x0 - teacher).abs().mean(1))
    # s^2 (eps_phi - eps_psi) = a s (D_psi - D_phi), since eps = (x - a D)/s
    x_t, fake = normal(5, 3, seed=2), normal(5, 3, seed=3)
    a, s = (1 - t)[:, None], t[:, None]
    eps = [(x_t - a * d) / s for d in (teacher, fake)]
    weight = NoiseDifference()(x0, teacher, t, FLOW)[:, None]
    torch.testing.assert_close(weight * (fake - teacher), s**2 * (eps[0] - eps[1]))


def test_a_projected_gradient_is_what_samples_get():
    x0, g = normal(4, 2, 3).requires_grad_(True), normal(4, 2, 3, seed=1)
    loss = projected(x0, g)
    torch.testing.assert_close(loss, 0.5 * g.square().flatten(1).mean(1))
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), x0)[0], g / 6)


# --- where gradients flow ----------------------------------------------------------------------------------------


def generator(seed=0, steps=1, solver=None, path=FLOW):
    torch.manual_seed(seed)
    return Generator(Denoiser(MLP(2, 16, 2).double(), path, U()), solver or DDIM(), Uniform(), steps)


def data(n=32, seed=0):
    return {"x0": normal(n, 2, seed=seed)}


def lagging(cls, **kwargs):
    """A method whose fake score is no longer the teacher."""
    model = cls(generator(), 10, **kwargs)
    model.fake.load_state_dict(generator(5).state_dict())
    return model


def gradients(model, terms):
    """Of the sum of these terms: the student's parameters and the fake score's."""
    total = torch.stack(list(terms.values())).sum()
    own, fake = list(model.student.parameters()), [p for p in model.fake.parameters() if p.requires_grad]
    grads = torch.autograd.grad(total, own + fake, allow_unused=True)
    return grads[: len(own)], grads[len(own) :]


@pytest.mark.parametrize("cls", [DMD, SiD, SIM])
def test_the_student_learns_from_its_terms_alone_and_the_fake_score_from_its_own(cls):
    model, teacher = lagging(cls), generator()
    terms = model.loss(data())
    assert set(terms) == {"score", "fake"}
    own, fake = gradients(model, {"score": terms["score"]})
    assert all(g is not None and g.abs().max() > 0 for g in own)
    assert all(g is None for g in fake)
    own, fake = gradients(model, {"fake": model.loss(data())["fake"]})
    assert all(g is None for g in own)
    assert all(g is not None and g.abs().max() > 0 for g in fake)
    assert not any(p.requires_grad for p in model.teacher.parameters())
    assert all(torch.equal(p, q) for p, q in zip(model.teacher.parameters(), teacher.parameters(), strict=True))


@pytest.mark.parametrize("cls", [DMD, SiD, SIM])
def test_the_students_gradient_is_the_written_one(cls):
    """By hand on the same noise: moving any detach changes it."""
    model = lagging(cls)
    batch = data()
    torch.manual_seed(3)
    own, _ = gradients(model, {"score": model.loss(batch)["score"]})
    torch.manual_seed(3)
    noise, _ = torch.randn_like(batch["x0"]), torch.randint(1, ())  # where the rollout ends
    t1 = torch.ones(32, dtype=torch.float64)
    x0 = noise - model.student.denoiser.net(noise, t1)
    t = model.times(32, FLOW)
    x_t = (1 - t)[:, None] * x0 + t[:, None] * torch.randn_like(x0)
    if cls is DMD:
        x_t = x_t.detach()
    teacher, fake = (x_t - t[:, None] * g.denoiser.net(x_t, t) for g in (model.teacher, model.fake))
    scale = 1 / (x0 - teacher).detach().abs().mean(1, keepdim=True)
    y = fake - teacher
    if cls is DMD:
        loss = (x0 * (scale * y).detach()).mean()
    elif cls is SiD:
        loss = (scale * (-y) * (teacher - x0 + y)).mean()
    else:
        norm = (y.square().sum(1, keepdim=True) + 0.05**2).sqrt()
        loss = (y / norm * (x0 - fake)).sum(1).mean()
    wanted = torch.autograd.grad(loss, list(model.student.parameters()))
    for g, h in zip(own, wanted, strict=True):
        torch.testing.assert_close(g, h, rtol=1e-9, atol=1e-12)


def test_equal_scores_move_nothing():
    for cls in (DMD, SiD):
        model = cls(generator(), 10)
        if cls is SiD:
            model.fake.load_state_dict(generator().state_dict())
        own, _ = gradients(model, {"score": model.loss(data())["score"]})
        assert max(g.abs().max() for g in own) < (1e-18 if cls is DMD else 1e-12)


def test_the_fake_score_learns_by_denoising_the_samples():
    model = lagging(DMD, fake_weighting=MaxSNR(0.0))
    x0, eps, t = normal(8, 2), normal(8, 2, seed=1), torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    d = model.fake.denoiser
    # in eps: |eps_psi - eps|^2 = SNR |D - x0|^2;  in the flow's own units: |u - (eps - x0)|^2 = |D - x0|^2 / t^2
    x_t = FLOW.sample(x0, eps, t)
    by_eps = (d(x_t, t).eps - eps).square().mean(1)
    torch.testing.assert_close(fake_loss(d, x0, eps, t, {}, None, MaxSNR(0.0)), by_eps)
    by_u = (d(x_t, t).x0 - x0).square().mean(1) / t**2
    torch.testing.assert_close(fake_loss(d, x0, eps, t, {}, None, None), by_u)


def test_pairs_add_a_regression():
    model = DMD(generator(steps=8), 10, pool=PairPool(size=64, fresh=32), regression=0.25)
    model.student.steps = 1
    terms = model.loss(data())
    assert set(terms) == {"score", "fake", "regression"}
    noise = normal(32, 2, seed=7)
    target = model.teacher.generate(noise)
    wanted = 0.25 * (model.student.generate(noise) - target).square().mean()
    torch.testing.assert_close(model.regress(None, {"noise": noise, "target": target})["regression"], wanted)


# --- the student's rollout ---------------------------------------------------------------------------------------


def states_of(student, noise):
    """The student's states at its times, each step by the sampling loop."""
    times = student.grid(FLOW, student.steps)
    return [
        noise if k == 0 else sample(student.denoiser.bind(), noise, FLOW, student.solver, times[: k + 1])
        for k in range(student.steps)
    ]


@pytest.mark.parametrize("exit", [LastStep(), RandomStep(), EachStep()], ids=repr)
def test_a_rollout_meets_the_states_of_the_sampler(exit):
    student, noise = generator(steps=4), normal(64, 2)
    with torch.no_grad():
        states = torch.stack(states_of(student, noise), 1)
        seen = set()
        for seed in range(12):
            torch.manual_seed(seed)
            reached = Rollout(exit)(student, noise, {})
            k = ((1 - reached.t) * 4).round().long()
            seen |= set(k.tolist())
            torch.testing.assert_close(reached.x, states[torch.arange(64), k])
            torch.testing.assert_close(reached.s, reached.t - 0.25)
            torch.testing.assert_close(reached.estimate.x0, student.denoiser(reached.x, reached.t).x0)
            assert (len(set(k.tolist())) == 1) is not isinstance(exit, EachStep)
    assert seen == ({3} if exit == LastStep() else {0, 1, 2, 3})


def test_a_student_begins_at_the_first_time_of_its_grid():
    """x = s_t noise there, in training as in sampling: SiD's students at sigma 2.5."""
    student, noise = generator(steps=1, solver=GammaSampling(1.0)), normal(64, 2)
    student.grid = Uniform(start=0.8)
    reached = Rollout()(student, noise, {})
    assert torch.equal(reached.t, torch.full((64,), 0.8, dtype=torch.float64))
    torch.testing.assert_close(reached.x, 0.8 * noise)
    torch.testing.assert_close(student.generate(noise), reached.estimate.x0)
    torch.testing.assert_close(student.denoiser(0.8 * noise, reached.t).x0, reached.estimate.x0)


@pytest.mark.parametrize("exit", [LastStep(), EachStep()], ids=repr)
@pytest.mark.parametrize("through", [0, 1, 2, 3])
def test_gradients_pass_so_many_steps_before_the_exit(exit, through):
    student, noise = generator(steps=4), normal(64, 2)
    torch.manual_seed(0)
    k = exit(64, 4)
    torch.manual_seed(0)
    own = Rollout(exit, through)(student, noise, {}).estimate.x0
    times, x, wanted = student.grid(FLOW, 4), noise, torch.zeros_like(own)
    for sample_of in range(64):
        x = noise[sample_of : sample_of + 1]
        last = int(k[sample_of])
        for j in range(last):
            x = sample(student.denoiser.bind(), x, FLOW, DDIM(), times[j : j + 2])
            if j < last - through:
                x = x.detach()
        wanted[sample_of] = student.denoiser(x, times[last : last + 1]).x0[0]
    for parameters in (list(student.parameters()),):
        g, h = (torch.autograd.grad(v.square().sum(), parameters) for v in (own, wanted))
        for a, b in zip(g, h, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_inputs_of_a_rollout_have_the_law_of_inference():
    """Backward simulation with fresh noise: the inputs at each step are distributed as the sampler's."""
    student = generator(steps=4, solver=GammaSampling(1.0))
    times = student.grid(FLOW, 4)
    torch.manual_seed(0)
    with torch.no_grad():
        reached = Rollout(EachStep())(student, torch.randn(8000, 2, dtype=torch.float64), {})
        for k in range(1, 4):
            there = reached.x[(reached.t - times[k]).abs() < 1e-9]
            own = sample(student.denoiser.bind(), normal(len(there), 2), FLOW, student.solver, times[: k + 1])
            assert energy_distance(there, own) < 0.003


# --- the shell ---------------------------------------------------------------------------------------------------


class Watch(L.Callback):
    """The student's, fake score's and average's first weight after every iteration."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        nets = (model.student, model.fake, model.averaged)
        self.seen.append([next(n.parameters()).detach().clone() for n in nets])


def fitted(model, tmp_path):
    watch = Watch()
    L.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[EMA(0.5), watch],
    ).fit(model, Batches())  # fmt: skip
    return watch.seen


def single(seed=0):
    torch.manual_seed(seed)
    return Generator(Denoiser(MLP(2, 16, 2), FLOW, U()), DDIM(), Uniform())


def test_the_fake_score_is_updated_always_and_the_student_every_ratio_th_time(tmp_path):
    model = DMD(single(), 10, ratio=3)
    model.fake.load_state_dict(single(4).state_dict())
    first = [next(n.parameters()).detach().clone() for n in (model.student, model.fake, model.student)]
    seen = [first, *fitted(model, tmp_path)]
    moves = [[not torch.equal(a, b) for a, b in zip(x, y, strict=True)] for x, y in itertools.pairwise(seen)]
    assert [m[0] for m in moves] == [k % 3 == 0 for k in range(10)]
    assert all(m[1] for m in moves)
    assert [m[2] for m in moves] == [k % 3 == 0 for k in range(10)]
    assert {"train/score", "train/fake", "train/grad_norm", "train/grad_norm_fake", "train/score_gap"} <= set(
        model.values
    )


def test_networks_have_optimisers_of_their_own():
    model = DMD(
        single(), 10,
        optimizer=lambda p: torch.optim.Adam(p, lr=1e-4), critic_optimizer=lambda p: torch.optim.SGD(p, lr=1e-2),
    )  # fmt: skip
    student, fake = model.configure_optimizers()
    assert isinstance(student, torch.optim.Adam)
    assert isinstance(fake, torch.optim.SGD)
    for optimizer, net in ((student, model.student), (fake, model.fake)):
        assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in net.parameters()}
    with pytest.raises(ValueError, match="ratio >= 1, not 0"):
        DMD(single(), 10, ratio=0)


def test_frozen_networks_pass_gradients_on_and_are_as_before_after_it():
    net, x = MLP(2, 8, 2), torch.randn(4, 2, requires_grad=True)
    net.first.bias.requires_grad_(False)
    with frozen(net):
        net(x, torch.ones(4)).sum().backward()
    assert x.grad.abs().max() > 0
    assert all(p.grad is None for p in net.parameters())
    assert [n for n, p in net.named_parameters() if not p.requires_grad] == ["first.bias"]


def test_the_fake_score_may_be_adapters_on_the_teachers_weights():
    model, teacher = DMD(generator(), 10, adapters=LowRank(4)), generator()
    x, t = normal(8, 2), torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    want = teacher.denoiser(x, t).x0
    torch.testing.assert_close(model.teacher.denoiser(x, t).x0, want, rtol=0, atol=0)
    torch.testing.assert_close(model.fake.denoiser(x, t).x0, want, rtol=0, atol=0)
    trained = [p for p in model.fake.parameters() if p.requires_grad]
    assert 0 < sum(p.numel() for p in trained) < sum(p.numel() for p in teacher.parameters())
    with torch.no_grad():
        for p in trained:
            p += 0.3 * normal(*p.shape)
    torch.testing.assert_close(model.teacher.denoiser(x, t).x0, want, rtol=0, atol=0)
    assert (model.fake.denoiser(x, t).x0 - want).abs().max() > 1e-2
    shared = {id(p) for p in model.fake.parameters()} & {id(p) for p in model.teacher.parameters()}
    assert len(shared) >= len(list(teacher.parameters()))
    own, fake = gradients(model, {"score": model.loss(data())["score"]})
    assert all(g is not None for g in own)
    assert all(g is None for g in fake)


def test_guidance_moves_the_teacher_and_where_asked_the_fake_score():
    torch.manual_seed(0)
    net = MLP(2, 16, 2, classes=3).double()
    teacher = ClassGenerator(Denoiser(net, FLOW, U()), DDIM(), Uniform(), shape=(2,))
    batch = {"x0": normal(16, 2), "label": torch.arange(16) % 3}
    x, t = normal(16, 2, seed=1), torch.full((16,), 0.5, dtype=torch.float64)
    for guided in (False, True):
        model = DMD(teacher, 10, guidance=TeacherGuidance(3.0, 3.0), guided_fake=guided, drop=0.5)
        drawn = model.drawn(batch)
        scores = [f(x, t).x0 for f in model.scores(drawn)]
        cond, null = {"label": batch["label"]}, {"label": torch.full((16,), 3)}
        c, u = (teacher.denoiser(x, t, v).x0 for v in (cond, null))
        torch.testing.assert_close(scores[0], u + 3 * (c - u))
        torch.testing.assert_close(scores[1], u + 3 * (c - u) if guided else c)
        model.loss(batch)["fake"].backward()
        assert model.fake.denoiser.net.label.weight.grad[3].abs().max() > 0  # dropped labels


def test_validation_has_the_energy_distance():
    x, y = normal(40, 2), normal(40, 2, seed=1) + 0.5
    cross = torch.cdist(x, y)
    n = len(x)
    distinct = energy_distance(x, y) - 2 * cross.mean() + 2 * (cross.sum() - cross.trace()) / (n * (n - 1))
    torch.testing.assert_close(energy_terms(x, y).mean(), distinct)
    figures = DMD(generator(), 1).evaluate(generator(3), data(64))
    assert {"agreement", "energy"} <= set(figures)


def test_a_copy_of_the_method_is_independent():
    model = DMD(generator(), 3)
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.fake.parameters()).add_(1.0)
    assert not torch.equal(next(model.fake.parameters()), next(other.fake.parameters()))


# --- with an adversary, and over trajectories --------------------------------------------------------------------

ADVERSARY = Adversary(["rest.0"], GlobalHead(16), weight=0.5, critic_weight=0.1)


def doubled(cls, **kwargs):
    model = lagging(cls, adversary=ADVERSARY, **kwargs) if cls is not LADD else LADD(generator(), 10, ADVERSARY)
    model.critics.double()
    return model


@pytest.mark.parametrize("cls", [DMD, SiD, TDM, FDistill, UniInstruct])
def test_an_adversary_adds_its_terms_and_each_network_learns_from_its_own(cls):
    model = doubled(cls)
    terms = model.loss(data())
    assert set(terms) == {"score", "adversarial", "fake", "critic"}
    student, fake, heads = (list(n.parameters()) for n in (model.student, model.fake, model.heads))

    def learns(name, nets):
        grads = torch.autograd.grad(terms[name], student + fake + heads, allow_unused=True, retain_graph=True)
        for net, some in zip(("student", "fake", "heads"), (grads[: len(student)], grads[len(student) : -len(heads)],
                             grads[-len(heads) :]), strict=True):  # fmt: skip
            assert any(g is not None and g.abs().max() > 0 for g in some) == (net in nets), (name, net)

    learns("score", {"student"})
    learns("adversarial", {"student"})
    learns("fake", {"fake"})
    learns("critic", {"fake", "heads"})  # the fake score is the heads' trunk


def test_heads_on_the_teacher_leave_it_as_it_is():
    model = doubled(LADD)
    terms = model.loss(data())
    assert set(terms) == {"adversarial", "critic"}
    sum(terms.values()).backward()
    assert all(p.grad is not None for p in (*model.student.parameters(), *model.heads.parameters()))
    assert all(p.grad is None for p in model.teacher.parameters())


def test_the_teachers_samples_may_stand_for_data():
    torch.manual_seed(0)
    model = LADD(generator(steps=8), 10, ADVERSARY, pool=PairPool(size=64, fresh=32))
    real = model.drawn({"x0": torch.full((32, 2), 100.0, dtype=torch.float64)}).x0
    assert real.abs().max() < 20
    torch.testing.assert_close(model.drawn(data()).x0.shape, torch.Size((32, 2)))


def test_adversarial_distillation_pulls_to_the_teacher():
    model = LADD(generator(), 10, ADVERSARY, distillation=2.5)
    model.critics.double()
    model.student.load_state_dict(generator(5).state_dict())
    torch.manual_seed(3)
    term = model.loss(data())["distill"]
    torch.manual_seed(3)
    noise, _ = torch.randn(32, 2, dtype=torch.float64), torch.randint(1, ())
    x0 = model.student.denoiser(noise, torch.ones(32, dtype=torch.float64)).x0
    ADVERSARY.student_term(model.heads, model.teacher.denoiser, x0, x0, {}, None)  # draws its noise
    t = model.times(32, FLOW)
    wanted = model.teacher.denoiser(FLOW.sample(x0, torch.randn_like(x0), t), t).x0.detach()
    torch.testing.assert_close(term, 2.5 * (x0 - wanted).square().mean())


def test_f_distill_with_the_reverse_divergence_is_dmd_bit_for_bit():
    losses = []
    for cls, kwargs in ((DMD, {}), (FDistill, {"divergence": ReverseKL()})):
        torch.manual_seed(0)
        model = doubled(cls, **kwargs)
        torch.manual_seed(1)
        losses.append(gradients(model, {"score": model.loss(data())["score"]})[0])
    assert all(torch.equal(a, b) for a, b in zip(*losses, strict=True))


def test_ratios_are_divided_by_their_running_means_in_bins_of_t():
    ratio, path = Ratio(decay=0.75), FLOW
    t = torch.linspace(0.02, 0.98, 64, dtype=torch.float64)
    logit = normal(64)
    raw, part = logit.exp().clamp(0.1, 20), (t * 10).long()
    first = ratio(logit, t, path)
    bins = torch.stack([raw[part == k].mean() for k in range(10)])
    torch.testing.assert_close(first, (raw / bins[part]).float())
    half = part < 5
    second = ratio(logit[half] + 1, t[half], path)
    moved = 0.75 * bins + 0.25 * torch.stack([(logit[part == k] + 1).exp().clamp(0.1, 20).mean() for k in range(10)])
    torch.testing.assert_close(second, ((logit[half] + 1).exp().clamp(0.1, 20) / moved[part[half]]).float())
    torch.testing.assert_close(ratio.means[5:], bins[5:].float())  # nothing was there
    assert "means" in ratio.state_dict()
    far = Ratio(bins=1)(torch.tensor([100.0, -100.0]), t[:2], path)
    torch.testing.assert_close(far[0] / far[1], torch.tensor(200.0))
    with_graph = ratio(logit.requires_grad_(True), t, path)
    assert with_graph.requires_grad
    h = torch.rand(7) + 0.1
    torch.testing.assert_close(normalised(h), h / h.mean())


@pytest.mark.parametrize(("path", "time"), PATHS, ids=repr)
def test_mixed_noise_keeps_the_coefficients_of_the_path(path, time):
    n, x0, eps, xi = 6, normal(6, 2), normal(6, 2, seed=1), normal(6, 2, seed=2)
    m = torch.linspace(0.0, 1.0, n, dtype=torch.float64) * (time - path.t_min) + path.t_min
    t = torch.full((n,), time, dtype=torch.float64)
    e = diffused(path, eps, m, t, xi)
    (a_m, _, s_m), (a_t, _, s_t) = (tuple(v[:, None] for v in path.schedule(u)) for u in (m, t))
    x_m = a_m * x0 + s_m * eps
    x_t = a_t / a_m * x_m + (s_t**2 - (a_t * s_m / a_m) ** 2).clamp_min(0).sqrt() * xi
    torch.testing.assert_close(path.sample(x0, e, t), x_t, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(e[-1], eps[-1])  # m = t: nothing is added


def test_tdm_compares_after_the_next_state_and_inside_the_path():
    for inside in (False, True):
        model = lagging(TDM, inside=inside)
        reached = model.rollout(model.student, normal(4000, 2), {})
        t, e, xi = model.mixed(reached, model.times)
        assert (t >= reached.s.clamp_min(0.02) - 1e-12).all()
        if not inside:  # uniform between m and .98, whatever m is
            for m in reached.s.unique():
                low = max(m.item(), 0.02)
                assert t[reached.s == m].mean() == pytest.approx((low + 0.98) / 2, abs=0.05 * (0.98 - low))
        assert (t <= (torch.maximum(reached.t, torch.tensor(0.98)) if inside else 0.98) + 1e-12).all()
        assert t.max() > 0.97
        last = reached.s == 0
        if not inside:
            torch.testing.assert_close(e[last], xi[last])  # a clean sample gets fresh noise alone
        assert (e[~last] - xi[~last]).abs().max() > 1e-2
        assert model.student.solver == DDIM()
    assert {round(v, 2) for v in reached.s.tolist()} == {0.75, 0.5, 0.25, 0.0}


# --- backtracking ------------------------------------------------------------------------------------------------


def test_disback_degrades_first_and_comes_back_to_the_teacher(tmp_path):
    model = DisBack(
        single(), 20, degradation=8, kept=4, backtracking=0.5, critic_optimizer=lambda p: torch.optim.Adam(p, 1e-3)
    )
    start = single()

    class Stages(L.Callback):
        seen = []
        weights = []

        def on_train_batch_start(self, trainer, model, batch, batch_idx):
            self.seen.append(model.stage() if model.done >= 8 else "degrading")
            self.weights.append([next(n.parameters()).detach().clone() for n in (model.student, model.fake)])

    stages = Stages()
    L.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[stages],
    ).fit(model, Batches())  # fmt: skip
    assert stages.seen == ["degrading"] * 8 + [2, 2, 1, 1, 0, 0] + [None] * 6  # the last state is the fake score itself
    for i in range(9):
        assert torch.equal(stages.weights[i][0], next(start.parameters()))
    assert not torch.equal(stages.weights[10][0], stages.weights[9][0])
    kept = [next(s.parameters()) for s in model.states]
    for i, done in enumerate((2, 4, 6, 8)):
        assert torch.equal(kept[i], stages.weights[done][1])
    assert not any(p.requires_grad for p in model.states.parameters())
    x, t = torch.randn(4, 2), torch.full((4,), 0.5)
    drawn = model.drawn({"x0": x})
    model.done = 8
    torch.testing.assert_close(model.scores(drawn)[0](x, t).x0, model.states[2].denoiser(x, t).x0)
    model.done = 19
    torch.testing.assert_close(model.scores(drawn)[0](x, t).x0, start.denoiser(x, t).x0)


def test_impossible_stages_are_refused():
    for kwargs in ({"degradation": 10}, {"degradation": 3, "kept": 4}, {"kept": 0}):
        with pytest.raises(ValueError, match="1 <= kept <= degradation < iterations"):
            DisBack(generator(), 10, **({"degradation": 4, "kept": 2} | kwargs))
    with pytest.raises(ValueError, match="need drop > 0"):
        DisBack(classes(), 10, degradation=4, kept=2, guidance=TeacherGuidance(2.0, 2.0))
    with pytest.raises(ValueError, match="not told w"):
        DMD(classes(), 10, guidance=TeacherGuidance(1.0, 3.0, told=True))
    with pytest.raises(ValueError, match="ratio = 1, not 2"):
        ASD(generator(), 10, ratio=2)
    with pytest.raises(ValueError, match="an adversary would see"):
        ScoreForgetting(classes(), 10, forget=2, override=0, adversary=ADVERSARY)
    with pytest.raises(ValueError, match="network of its own"):
        DisBack(generator(), 10, degradation=4, kept=2, adapters=LowRank(2))


# --- classes: several students, a class unlearnt, no fake score --------------------------------------------------


def classes(seed=0):
    torch.manual_seed(seed)
    return ClassGenerator(Denoiser(MLP(2, 16, 2, classes=4).double(), FLOW, U()), DDIM(), Uniform(), shape=(2,))


LABELLED = {"x0": normal(64, 2), "label": torch.arange(64) % 4}


def test_each_sample_goes_through_the_network_of_its_label():
    nets = [classes(s).denoiser.net for s in (0, 1)]
    routed = Routed(nets, [(0, 3), (1, 2)])
    x, t = normal(10, 2), torch.linspace(0.1, 1.0, 10, dtype=torch.float64)
    label = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3, 4])
    out = routed(x, t, label)
    for i, net in enumerate([0, 1, 1, 0, 0] * 2):
        torch.testing.assert_close(out[i : i + 1], nets[net](x[i : i + 1], t[i : i + 1], label[i : i + 1]))
    routed(x[:1], t[:1], label[:1]).sum().backward()
    assert nets[0].last.weight.grad.abs().max() > 0
    assert nets[1].last.weight.grad is None
    for groups in ([(0, 1), (1, 2, 3)], [(0, 1)], [(0, 1), (2,)], [(0, 1, 2, 3)]):
        with pytest.raises(ValueError, match="each label of 0 .. 3 once"):
            Routed(nets, groups)


def test_one_group_is_the_method_itself():
    found = []
    for cls, kwargs in ((DMD, {}), (MSD, {"groups": [range(4)]})):
        model = cls(classes(), 10, **kwargs)
        model.fake.load_state_dict(classes(5).state_dict())
        torch.manual_seed(2)
        found.append(gradients(model, {"score": model.loss(LABELLED)["score"]})[0])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_students_of_groups_are_one_artifact(tmp_path):
    model = MSD(classes(), 10, groups=[(0, 1), (2, 3)])
    assert sum(p.numel() for p in model.student.parameters()) == 2 * sum(p.numel() for p in classes().parameters())
    with torch.no_grad():
        for p in model.student.denoiser.net.nets[1].parameters():
            p.mul_(1.5)
    save(model.student, tmp_path / "one")
    loaded, noise = load(tmp_path / "one"), normal(64, 2)
    torch.testing.assert_close(
        loaded(LABELLED["label"], noise=noise), model.student(LABELLED["label"], noise=noise), rtol=0, atol=0
    )


def test_a_forgotten_class_is_answered_for_by_another():
    model = ScoreForgetting(classes(), 10, forget=2, override=0, share=0.25)
    model.fake.load_state_dict(classes(5).state_dict())
    torch.manual_seed(0)
    drawn = model.drawn(LABELLED)
    assert (drawn.cond["label"][:16] == 2).all()
    rest, before = drawn.cond["label"][16:], LABELLED["label"][16:]
    assert (rest != 2).all()
    assert torch.equal(rest[before != 2], before[before != 2])
    assert {v for _ in range(5) for v in model.drawn(LABELLED).cond["label"][16:][before == 2].tolist()} == {0, 1, 3}
    x, t = normal(64, 2), torch.full((64,), 0.5, dtype=torch.float64)
    teacher, fake = (f(x, t).x0 for f in model.scores(drawn))
    asked = torch.where(drawn.cond["label"] == 2, 0, drawn.cond["label"])
    torch.testing.assert_close(teacher, model.teacher.denoiser(x, t, {"label": asked}).x0)
    torch.testing.assert_close(fake, model.fake.denoiser(x, t, drawn.cond).x0)
    assert set(model.loss(LABELLED)) == {"score", "fake"}
    slow = ScoreForgetting(classes(), 10, forget=2, override=0, share=0.5, warm_up=0.5)
    counts = []
    for slow.done in (0, 2, 5, 9):
        counts.append((slow.drawn(LABELLED).cond["label"] == 2).sum().item())
    assert counts == [0, 13, 32, 32]
    with pytest.raises(ValueError, match="forget one label for another"):
        ScoreForgetting(classes(), 10, forget=2, override=2)


def test_asynchronous_scores_without_guidance_and_delay_move_nothing():
    model = ASD(classes(), 10, ratio_later=0.0)
    model.student.load_state_dict(classes(5).state_dict())
    assert model.loss(LABELLED)["score"] < 1e-28
    assert ASD(classes(), 10, ratio_later=0.1).loss(LABELLED)["score"] > 0
    assert len(model.configure_optimizers()) == 1
    x0, eps, t = normal(8, 2), normal(8, 2, seed=1), torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    guided = ASD(classes(), 10, guidance=TeacherGuidance(3.0, 3.0))
    cond = {"label": torch.arange(8) % 4}
    teacher = guided.guidance.teacher(guided.teacher, cond, None, torch.full((8,), 3.0))
    plain = guided.teacher.bind(cond)
    x = x0.clone().requires_grad_(True)
    loss = asd_loss(x, eps, t, t, teacher, plain, FLOW, ByTeacherError())
    (g,) = torch.autograd.grad(loss.sum(), x)
    x_t = FLOW.sample(x0, eps, t)
    c, u = (guided.teacher.denoiser(x_t, t, v).x0 for v in (cond, {"label": torch.full((8,), 4)}))
    error = (x0 - (u + 3 * (c - u))).abs().mean(1, keepdim=True)
    torch.testing.assert_close(g, (-2 * (c - u) / error / 2).detach())


def test_asynchronous_scores_look_at_one_noise_at_two_times():
    world = Mixture(
        FLOW, torch.tensor([[0.5, -0.3]], dtype=torch.float64), torch.full((1, 2), 0.49, dtype=torch.float64)
    )
    x0, eps = normal(8, 2), normal(8, 2, seed=1)
    t, later = torch.full((8,), 0.4, dtype=torch.float64), torch.full((8,), 0.5, dtype=torch.float64)
    x = x0.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(asd_loss(x, eps, t, later, world, world, FLOW, ByTeacherError()).sum(), x)
    now, then = (world((1 - v) * x0 + v * eps, v) for v in (0.4, 0.5))
    wanted = 0.4 / 0.6 * (now.eps - then.eps) / (x0 - now.x0).abs().mean(1, keepdim=True) / 2
    torch.testing.assert_close(g, wanted)


@pytest.mark.parametrize("mean", [1.0, 3.0, -2.0])
def test_asynchronous_scores_pull_a_displaced_student_back(mean):
    """N(mean, 1) of a teacher N(0, 1): descent moves the mean to 0."""
    world = Mixture(FLOW, torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    n = 20_000
    x0, t = (
        mean + normal(n, 1),
        0.1 + 0.8 * torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    )
    x = x0.clone().requires_grad_(True)
    loss = asd_loss(x, normal(n, 1, seed=1), t, t * 1.05, world, world, FLOW, ByTime(Even()))
    (g,) = torch.autograd.grad(loss.sum(), x)
    assert g.mean() * mean > 0


def test_what_is_forgotten_is_validated_by_what_stands_for_it():
    model = ScoreForgetting(classes(), 10, forget=2, override=0, guidance=TeacherGuidance())
    asked = model.asked({"label": torch.arange(4)})["label"]
    assert asked.tolist() == [0, 1, 0, 3]
    seen = []
    generate = model.guidance.generate
    model.guidance.generate = lambda teacher, noise, cond, y, w: (
        seen.append(cond["label"]) or generate(teacher, noise, cond, y, w)
    )
    model.evaluate(model.student, LABELLED)
    assert (seen[0] != 2).all()


def test_adapters_do_not_hide_the_layers_of_an_adversary():
    model = DMD(generator(), 10, adapters=LowRank(4), adversary=ADVERSARY)
    model.critics.double()
    terms = model.loss(data())
    assert set(terms) == {"score", "adversarial", "fake", "critic"}


def test_weights_of_f_distill_and_tdm_are_in_their_losses():
    """By hand, with heads that are known: one constant logit per sign of x."""

    class Known(torch.nn.Module):
        def forward(self, backbone, x, t, cond, y=None):
            return x[:, :1].sign()

    model = doubled(FDistill, divergence=ForwardKL())
    model.critics["heads"] = Known()
    x0, x_t, t = normal(64, 2), normal(64, 2, seed=1), torch.full((64,), 0.55, dtype=torch.float64)
    teacher, fake = (g.denoiser.bind() for g in (model.teacher, model.fake))
    drawn = model.drawn({"x0": x0})
    own = model.match(x0, x_t, t, teacher, fake, drawn)
    plain, _, _ = dmd_loss(x0, x_t, t, teacher, fake, FLOW, model.weight)
    r = x_t[:, 0].sign().exp()
    torch.testing.assert_close(own, plain * r / r.mean(), rtol=1e-6, atol=0)

    tdm = lagging(TDM)
    with torch.no_grad():
        reached = tdm.rollout(tdm.student, normal(64, 2), {})
    torch.manual_seed(5)
    loss = tdm.fake_terms(reached, drawn)
    torch.manual_seed(5)
    t, e, xi = tdm.mixed(reached, tdm.fake_times)
    x0 = reached.estimate.x0
    d = tdm.fake.denoiser(FLOW.sample(x0, e, t), t).x0
    snr = ((1 - t) / t).square().clamp(max=5)
    importance = (-0.5 * e.square().mean(1)).exp() / (-0.5 * xi.square().mean(1)).exp()
    torch.testing.assert_close(loss, importance * snr * (d - x0).square().mean(1))
