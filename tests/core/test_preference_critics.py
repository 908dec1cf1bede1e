"""Distillation-DPO, FIND and noise consistency training: gradients by hand, and laws whose answer is known."""

import math

import pytest
import torch
from test_preference import FLOW, RIGHT, data, generator
from torch import nn
from worlds import normal

from fewstep.artifacts import load, save
from fewstep.denoiser import Denoiser
from fewstep.distill.dmd import dmd_loss
from fewstep.distill.intervals import Adjacent, Doubling
from fewstep.distill.rollout import LastStep, Rollout
from fewstep.generator import Generator
from fewstep.grids import Uniform
from fewstep.jump import JumpGenerator
from fewstep.nets import MLP
from fewstep.nets.noise_policy import NoisePolicy
from fewstep.paths import VP
from fewstep.prediction import U
from fewstep.preference.distillation_dpo import DistillationDPO
from fewstep.preference.find import FIND
from fewstep.preference.nct import NCT, Measured, Nearest, named
from fewstep.preference.rewards import Linear
from fewstep.solvers import DDIM

# --- Distillation-DPO --------------------------------------------------------------------------------------------


def lagging(**kwargs):
    """Three networks that differ, a student of one step."""
    model = DistillationDPO(generator(steps=1), 10, RIGHT, **kwargs)
    model.fake.load_state_dict(generator(5).state_dict())
    model.critics["fake_loser"].load_state_dict(generator(6).state_dict())
    return model


def pair(model, batch):
    """(x0 of z and of 1.1 z, x_t, t) as `loss` draws them."""
    z = torch.randn_like(batch["x0"])
    torch.randint(1, ())  # where the rollout ends
    noise = torch.cat([z, 1.1 * z])
    x0 = noise - model.student.denoiser.net(noise, torch.ones(len(noise), dtype=torch.float64))
    t = model.times(len(noise), FLOW)
    return x0, FLOW.sample(x0, torch.randn_like(x0), t), t


@pytest.mark.parametrize("loser", [1.0, 0.3])
def test_the_gradient_is_the_winners_less_the_losers(loser):
    model, batch = lagging(loser=loser), data()
    torch.manual_seed(3)
    own = torch.autograd.grad(model.loss(batch)["score"], list(model.student.parameters()))
    torch.manual_seed(3)
    x0, x_t, t = pair(model, batch)
    x_t = x_t.detach()
    first = x0[:32, 0] >= x0[32:, 0]
    won = torch.cat([first, ~first])
    nets = (model.teacher, model.fake, model.critics["fake_loser"])
    teacher, psi_w, psi_l = (x_t - t[:, None] * g.denoiser.net(x_t, t) for g in nets)
    total = 0
    for rows, psi, sign in ((won, psi_w, 1), (~won, psi_l, -loser)):
        g = (psi - teacher)[rows] / (x0 - teacher)[rows].abs().mean(1, keepdim=True)
        total = total + sign * (g.detach() * x0[rows]).mean()
    for g, h in zip(own, torch.autograd.grad(total, list(model.student.parameters())), strict=True):
        torch.testing.assert_close(g, h, rtol=1e-9, atol=1e-12)
        assert g.abs().max() > 0


def test_the_winners_part_alone_is_dmd():
    model, batch = lagging(loser=0.0), data()
    torch.manual_seed(3)
    own = torch.autograd.grad(model.loss(batch)["score"], list(model.student.parameters()))
    torch.manual_seed(3)
    x0, x_t, t = pair(model, batch)
    rows = model.won(x0, {})
    teacher, fake = model.teacher.denoiser.bind(), model.fake.denoiser.bind()
    wanted = dmd_loss(x0[rows], x_t[rows], t[rows], teacher, fake, FLOW, model.weight)[0].mean()
    for g, h in zip(own, torch.autograd.grad(wanted, list(model.student.parameters())), strict=True):
        torch.testing.assert_close(g, h, rtol=1e-9, atol=1e-12)


def test_each_fake_score_learns_its_own_half():
    model, batch = lagging(), data()
    torch.manual_seed(3)
    loss = model.loss(batch)["fake"]
    nets = (model.fake, model.critics["fake_loser"])
    own = torch.autograd.grad(loss, [p for n in nets for p in n.parameters()], retain_graph=True)
    assert all(p is None for p in torch.autograd.grad(loss, list(model.student.parameters()), allow_unused=True))
    torch.manual_seed(3)
    x0 = pair(model, batch)[0].detach()
    won = model.won(x0, {})
    t, eps = model.fake_times(64, FLOW), torch.randn_like(x0)
    total = 0
    for rows, g in ((won, nets[0]), (~won, nets[1])):
        x_t = FLOW.sample(x0, eps, t)[rows]
        total = total + (g.denoiser.net(x_t, t[rows]) - (eps - x0)[rows]).square().mean()
    wanted = torch.autograd.grad(total, [p for n in nets for p in n.parameters()])
    for g, h in zip(own, wanted, strict=True):
        torch.testing.assert_close(g, h, rtol=1e-9, atol=1e-12)


def test_what_is_noise_alone_has_no_gradient():
    """Why the gradient goes to x0: x_t - a_t x0, in its place in the public code, does not depend on the student."""
    model = lagging()
    torch.manual_seed(3)
    x0, x_t, t = pair(model, data())
    grads = torch.autograd.grad((x_t - (1 - t)[:, None] * x0).sum(), list(model.student.parameters()))
    assert max(g.abs().max() for g in grads) < 1e-12


def test_where_the_student_has_the_teachers_law_the_reward_falls():
    """The winners of two N(0, 1) have density 2 phi Phi; their score's difference pulls them back, the losers' pushes them on."""
    x = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    phi = (-(x**2) / 2).exp() / math.sqrt(2 * math.pi)
    upper = torch.special.ndtr(x)
    down = 0.0
    for density, sign in ((2 * phi * upper, 1.0), (2 * phi * (1 - upper), -1.0)):
        score = torch.gradient(density.clamp_min(1e-300).log(), spacing=(x,))[0]
        # descent moves x along -sign (s_psi - s_phi), s_phi = -x
        down += torch.trapezoid(density * -sign * (score + x), x).item()
    assert down < -0.5


# --- FIND --------------------------------------------------------------------------------------------------------


def find(**kwargs):
    return FIND(generator(), 10, RIGHT, shape=(2,), **kwargs)


def test_the_policy_is_a_gaussian_and_travels_with_the_generator(tmp_path):
    model = find()
    with torch.no_grad():
        model.policy.mu.copy_(torch.tensor([0.5, -1.0]))
        model.policy.log_sigma.copy_(torch.tensor([0.3, -0.2]))
    law = torch.distributions.Normal(model.policy.mu, model.policy.log_sigma.exp())
    z = normal(6, 2)
    torch.testing.assert_close(model.policy.log_probability(z), law.log_prob(z).sum(1))
    kl = torch.distributions.kl_divergence(law, torch.distributions.Normal(0.0, 1.0)).sum()
    torch.testing.assert_close(model.policy.divergence(), kl)
    assert [p.shape for p in model.student.parameters() if p.requires_grad] == [(2,), (2,)]
    noise = normal(8, 2)
    torch.manual_seed(0)
    own = model.student.generate(noise)
    torch.manual_seed(0)
    torch.testing.assert_close(own, model.reference.generate(model.policy.first_noise(noise)))
    save(model.student, tmp_path / "x")
    torch.manual_seed(0)
    torch.testing.assert_close(load(tmp_path / "x").generate(noise), own)
    assert isinstance(load(tmp_path / "x").denoiser.net, NoisePolicy)


def test_every_way_of_sampling_begins_where_the_policy_says():
    noise = normal(8, 2).float()
    torch.manual_seed(0)
    plain = Generator(Denoiser(MLP(2, 16, 2), FLOW, U()), DDIM(), Uniform(), 2)
    for model in (plain, JumpGenerator.of(plain)):
        before = model.generate(3 * noise + 1)
        rolled = Rollout(LastStep())(plain, 3 * noise + 1, {}).estimate.x0
        model.denoiser.net = NoisePolicy(model.denoiser.net, (2,))
        with torch.no_grad():
            model.denoiser.net.mu += 1
            model.denoiser.net.log_sigma += math.log(3)
        torch.testing.assert_close(model.generate(noise), before)
        if model is plain:
            torch.testing.assert_close(Rollout(LastStep())(plain, noise, {}).estimate.x0, rolled)
            plain.denoiser.net = plain.denoiser.net.net


def test_the_first_update_is_the_policy_gradient_and_later_ones_are_clipped():
    model = find(replay=64, clip=0.2)
    torch.manual_seed(1)
    terms = model.loss(data())
    rows = model.held.rows()
    own = torch.autograd.grad(terms["policy"], [model.policy.mu, model.policy.log_sigma], retain_graph=True)
    # of N(0, 1): grad log p = z and z^2 - 1; the baseline is 0 yet
    r, z = rows["reward"][:, None], rows["z"]
    torch.testing.assert_close(own[0].double(), -(r * z).mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own[1].double(), -(r * (z**2 - 1)).mean(0), rtol=1e-5, atol=1e-6)
    assert torch.autograd.grad(terms["policy"], model.baseline.value, allow_unused=True)[0] is None
    (b,) = torch.autograd.grad(terms["baseline"], model.baseline.value)
    torch.testing.assert_close(b.double(), -2 * r.mean())
    with torch.no_grad():
        model.policy.mu.add_(5.0)
    model.loss(data())
    assert len(model.held) == 64
    assert (model.policy.log_probability(model.held.rows()["z"][:32]) - model.held.rows()["log_p"][:32]).abs().max() > 1


class Identity(nn.Module):
    """u such that one step from z ends in z: x0 = x - t u, u = 0."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x, t, **cond):
        return 0 * x


def test_a_linear_reward_drives_mu_along_its_gradient_to_the_tilt():
    """G = id, r = w . z, factor k of the divergence: the optimum is N(w/k, I), the tilted law."""
    identity = Generator(Denoiser(Identity(), FLOW, U()), DDIM(), Uniform(), 1)
    model = FIND(identity, 10, Linear((0.8, -0.6)), shape=(2,), kl=2.0, replay=4096)
    optimizer = torch.optim.Adam([*model.policy.adapter_parameters(), model.baseline.value], lr=0.02)
    batch, first = {"x0": torch.zeros(1024, 2, dtype=torch.float64)}, None
    for k in range(250):
        torch.manual_seed(k)
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - k / 250)
        optimizer.zero_grad()
        sum(model.loss(batch).values()).backward()
        optimizer.step()
        first = model.policy.mu.detach().clone() if k == 5 else first
    assert first[0] > 0 > first[1]
    torch.testing.assert_close(model.policy.mu.detach(), torch.tensor([0.4, -0.3]), rtol=0, atol=0.04)
    torch.testing.assert_close(model.policy.log_sigma.detach(), torch.zeros(2), rtol=0, atol=0.05)


# --- noise consistency training ----------------------------------------------------------------------------------


class OneStep(nn.Module):
    """G(z) = A z in one step: x0 = x - t u, u = x - A x."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(a)

    def forward(self, x, t, **cond):
        return x - x @ self.a.mT


def one_step(a):
    return Generator(Denoiser(OneStep(a), FLOW, U()), DDIM(), Uniform(), 1)


def test_nct_by_hand():
    """Both terms, the same z and eps at t and s, and no gradient through the target."""
    a = normal(2, 2)
    control = Nearest([[1.0, 0.0], [-1.0, 0.0]])
    torch.manual_seed(0)
    branch = MLP(2, 16, 2, classes=2).double()
    model = NCT(one_step(a), 10, control, branch, intervals=Adjacent(8), boundary=0.7)
    nn.init.normal_(branch.last.weight)
    batch = data()
    torch.manual_seed(1)
    own = torch.autograd.grad(sum(model.loss(batch).values()), list(branch.parameters()))
    torch.manual_seed(1)
    z, eps = (torch.randn(32, 2, dtype=torch.float64) for _ in range(2))
    c = (z @ a.mT)[:, 0] < 0
    i = torch.randint(0, 8, (32,))
    t, s = (math.pi / 2 * (1 - (i + j) / 8.0).double() for j in (0, 1))

    def h(time):
        z_t = time.cos()[:, None] * z + time.sin()[:, None] * eps
        return z_t @ a.mT - branch(z_t, time, label=c.long())

    clean = h(torch.zeros(32, dtype=torch.float64)) - z @ a.mT
    wanted = (h(t) - h(s).detach()).square().mean(1).mean() + 0.7 * clean.square().mean(1).mean()
    for g, k in zip(own, torch.autograd.grad(wanted, list(branch.parameters())), strict=True):
        torch.testing.assert_close(g, k, rtol=1e-8, atol=1e-10)
    assert all(p.requires_grad == ("branch" in n) for n, p in model.student.named_parameters())
    with pytest.raises(ValueError, match="keep its variance"):
        NCT(one_step(a), 10, control, MLP(2, 16, 2, classes=2), path=FLOW)
    NCT(one_step(a), 10, control, MLP(2, 16, 2, classes=2), path=VP())


def taught(model, iterations, batch, lr=2e-3):
    optimizer = torch.optim.Adam([p for p in model.student.parameters() if p.requires_grad], lr=lr)
    for k in range(iterations):
        torch.manual_seed(k)
        model.done = k
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * k / iterations))
        optimizer.zero_grad()
        sum(model.loss(batch).values()).backward()
        optimizer.step()
    return model.student


def test_nct_recovers_the_conditional_of_a_joint_gaussian():
    """x = A z, c = w x + .5 xi: x | c is Gaussian of known mean and covariance."""
    a, w = torch.tensor([[1.0, 0.3], [0.0, 0.8]]), torch.tensor([0.8, 0.6])
    torch.manual_seed(0)
    branch = MLP(2, 64, 3, time_scale=60.0, scalars={"c": 10.0})
    model = NCT(one_step(a), 600, Measured((0.8, 0.6), 0.5), branch, intervals=Adjacent(Doubling(8, 64)))
    student = taught(model, 600, {"x0": torch.zeros(256, 2)})
    cov = a @ a.mT
    gain = cov @ w / (w @ cov @ w + 0.25)
    left = cov - gain[:, None] * (cov @ w)
    g = torch.Generator().manual_seed(9)
    for c in (-1.0, 0.0, 1.5):
        with torch.no_grad():
            x = student.generate(torch.randn(4000, 2, generator=g), named({"c": torch.full((4000,), c)}))
        assert (x.mean(0) - gain * c).abs().max() < 0.08
        assert (torch.cov(x.mT) - left).abs().max() < 0.12


def test_nct_learns_the_half_normal():
    """g = id, c the sign: h(., +) is the quantile map of |z|."""
    torch.manual_seed(0)
    branch = MLP(1, 64, 3, time_scale=60.0, classes=2)
    model = NCT(one_step(torch.eye(1)), 600, Nearest([[-1.0], [1.0]]), branch, intervals=Adjacent(Doubling(8, 64)))
    student = taught(model, 600, {"x0": torch.zeros(256, 1)})
    z = torch.linspace(-2, 2, 81)[:, None]
    with torch.no_grad():
        x = student.generate(z, named({"label": torch.ones(81, dtype=torch.long)}))
    exact = torch.special.ndtri((1 + torch.special.ndtr(z.double())) / 2).float()
    assert (x - exact).abs().mean() < 0.1
    assert (x - exact).abs().max() < 0.25
