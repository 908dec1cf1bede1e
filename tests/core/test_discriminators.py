"""Adversarial losses, penalties and heads, and the discriminator's logit against the exact ratio of densities."""

import math

import pytest
import torch
from torch import nn
from worlds import normal

from fewstep.denoiser import Denoiser
from fewstep.discriminators import (
    R1,
    Adversary,
    ApproximateR1,
    BoundedHinge,
    GlobalHead,
    Hinge,
    LeastSquares,
    NonSaturating,
    PatchHead,
    Relativistic,
    Wasserstein,
)
from fewstep.discriminators.discriminator import Discriminator, features
from fewstep.discriminators.losses import per_sample
from fewstep.generator import Generator
from fewstep.grids import Uniform
from fewstep.layer_outputs import layer_outputs
from fewstep.nets import MLP
from fewstep.nets.unet import UNet
from fewstep.paths import RectifiedFlow
from fewstep.prediction import U
from fewstep.solvers import DDIM
from fewstep.times import UniformTimes

FLOW = RectifiedFlow()
LOSSES = [NonSaturating(), Hinge(), BoundedHinge(), LeastSquares(), Wasserstein(), Relativistic()]


def generator(seed=0):
    torch.manual_seed(seed)
    return Generator(Denoiser(MLP(2, 16, 3).double(), FLOW, U()), DDIM(), Uniform())


# --- losses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_critics_want_real_above_fake_and_students_the_other_way(loss):
    real, fake = normal(8, 3).requires_grad_(True), (normal(8, 3, seed=1) * 0.3).requires_grad_(True)
    for value, signs in ((loss.critic(real, fake), (-1, 1)), (loss.student(fake, real), (0, -1))):
        assert value.shape == (8,)
        grads = torch.autograd.grad(value.sum(), (real, fake), allow_unused=True)
        for g, sign in zip(grads, signs, strict=True):
            if sign and g is not None:
                # least squares has its own optimum, at 1 and 0
                ends = isinstance(loss, LeastSquares)
                assert ((sign * g >= 0) | ends).all()
    assert loss.pairs == isinstance(loss, Relativistic)


def test_values_are_those_of_the_papers():
    real, fake = torch.tensor([[0.5, 2.0]]), torch.tensor([[-0.5, -2.0]])
    assert NonSaturating().critic(real, fake).item() == pytest.approx(
        math.log1p(math.exp(-0.5)) + math.log1p(math.exp(-2))
    )
    assert Hinge().critic(real, fake).item() == pytest.approx(0.25 + 0.25)
    assert Hinge().student(fake, real).item() == pytest.approx(1.25)
    assert BoundedHinge().student(torch.tensor([[2.0, 0.0]]), real).item() == pytest.approx(0.5)
    assert LeastSquares().critic(real, fake).item() == pytest.approx((0.25 + 1) / 2 + (0.25 + 4) / 2)
    assert LeastSquares().student(fake, real).item() == pytest.approx((1.5**2 + 9) / 2)
    assert Relativistic().student(fake, real).item() == pytest.approx(
        (math.log1p(math.exp(1)) + math.log1p(math.exp(4))) / 2
    )
    assert Wasserstein().critic(real, fake).item() == pytest.approx(-2.5)
    assert Relativistic().critic(real, fake).item() == pytest.approx(
        (math.log1p(math.exp(-1)) + math.log1p(math.exp(-4))) / 2
    )


def test_relativistic_pairs_ignore_what_both_logits_share():
    real, fake = normal(8, 3), normal(8, 3, seed=1)
    for value in (Relativistic().critic, lambda a, b: Relativistic().student(b, a)):
        torch.testing.assert_close(value(real + 7, fake + 7), value(real, fake))


# --- penalties ---------------------------------------------------------------------------------------------------


class Quadratic(nn.Module):
    """logits x A x / 2 and b x."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(normal(3, 3)), nn.Parameter(normal(3, seed=1))

    def forward(self, x):
        return torch.stack([(x @ self.a * x).sum(1) / 2, x @ self.b], 1)


def test_r1_is_the_square_of_the_slope():
    critic, x = Quadratic(), normal(6, 3, seed=2)
    slope = (x @ (critic.a + critic.a.T) / 2 + critic.b) / 2  # of the mean of both logits
    torch.testing.assert_close(R1(0.3)(critic, x), 0.15 * slope.square().sum(1))
    R1(0.3)(critic, x).sum().backward()
    assert critic.a.grad.abs().max() > 0


def test_the_approximation_is_r1_on_average():
    critic, x = Quadratic(), normal(4, 3, seed=2)
    many = x.repeat(20_000, 1)
    torch.manual_seed(0)
    found = ApproximateR1(0.3, sigma=1e-4)(critic, many).reshape(-1, 4).mean(0)
    torch.testing.assert_close(found, R1(0.3)(critic, x), rtol=0.05, atol=0)


def test_penalties_look_at_the_noised_sample():
    """Of the clean one a public code compares noised and clean logits, which differ by the noise however smooth the critic is."""
    flat = ApproximateR1(1.0)(lambda v: v.new_ones(len(v), 2), normal(5, 3))
    assert torch.equal(flat, torch.zeros(5, dtype=torch.float64))
    seen = []
    adversary = Adversary(["rest.0"], GlobalHead(), penalty=ApproximateR1(1.0, sigma=0.01), times=UniformTimes(0.4))
    g = generator()
    critic = adversary.build(g).double()
    critic.heads[0].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    adversary.critic_terms(critic, g.denoiser, normal(5, 2), normal(5, 2, seed=1), {}, None)
    real, _, moved = seen
    assert 0 < (moved - real).norm() < 0.05 * real.norm()


def test_a_penalty_takes_logits_that_are_known():
    critic, x, penalty = Quadratic(), normal(6, 3, seed=2), ApproximateR1(0.3)
    asked: list[torch.Tensor] = []

    def counted(v):
        asked.append(v)
        return critic(v)

    found = []
    for logits in (None, critic(x), critic(x) + 1.0):
        torch.manual_seed(0)
        found.append(penalty(counted, x, logits))
    assert len(asked) == 2 + 1 + 1
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    assert (found[2] - found[0]).abs().min() > 1
    with torch.autocast("cpu", torch.bfloat16):  # known to few digits
        torch.manual_seed(0)
        torch.testing.assert_close(penalty(counted, x, critic(x) + 1.0), found[0], rtol=0, atol=0)


def test_lazy_penalties_weigh_as_much_more():
    g = generator()
    for every, iterations in ((1, 3), (4, 9)):
        adversary = Adversary(["rest.0"], GlobalHead(), penalty=R1(1.0, every=every))
        critic = adversary.build(g).double()
        found = []
        for i in range(iterations):
            torch.manual_seed(0)
            terms = adversary.critic_terms(critic, g.denoiser, normal(5, 2), normal(5, 2, seed=1), {}, None, i)
            assert ("penalty" in terms) == (i % every == 0)
            found += [terms["penalty"]] if "penalty" in terms else []
        torch.manual_seed(0)
        alone = Adversary(["rest.0"], GlobalHead(), penalty=R1(1.0)).critic_terms(
            critic, g.denoiser, normal(5, 2), normal(5, 2, seed=1), {}, None
        )
        torch.testing.assert_close(found[0], every * alone["penalty"])
    with pytest.raises(ValueError, match="at least 1, not 0"):
        R1(1.0, every=0)


# --- heads and features ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 12), (2, 12, 9), (2, 12, 8, 6), (2, 12, 4, 6, 5)], ids=str)
def test_heads_fit_features_of_any_number_of_axes(shape):
    feature = normal(*shape).float()
    positions = math.prod(shape[2:])
    assert GlobalHead(16).build(feature)(feature).shape == (2, 1)
    assert PatchHead(16).build(feature)(feature).shape == (2, positions)
    several = PatchHead(16, scales=(1, 2)).build(feature)(feature)
    coarse = math.prod(max(1, n // 2) for n in shape[2:])
    assert several.shape == (2, positions + coarse)
    with pytest.raises(ValueError, match="not of shape"):
        GlobalHead().build(torch.zeros(2))


def test_a_patch_logit_looks_at_its_neighbourhood_alone():
    feature = normal(1, 8, 12, 12).float().requires_grad_(True)
    head = PatchHead(8).build(feature)
    for m in head.modules():  # normalisation looks at everything
        if isinstance(m, nn.GroupNorm):
            m.forward = lambda x: x
    logit = head(feature)[0].reshape(12, 12)[5, 5]
    (grad,) = torch.autograd.grad(logit, feature)
    seen = grad[0].abs().amax(0) > 0
    assert seen[3:8, 3:8].all()
    assert seen.sum() == 25


def test_features_are_the_outputs_of_the_layers_and_nothing_runs_after_them():
    g, x, t = generator(), normal(4, 2), torch.full((4,), 0.3, dtype=torch.float64)
    net, ran = g.denoiser.net, []
    net.last.register_forward_hook(lambda m, i, o: ran.append(m))
    first, second = features(g.denoiser, ["rest.1", "rest.0"], x, t, {})
    h = nn.functional.silu(net.first(x) + net.time(t, {}))
    torch.testing.assert_close(second, net.rest[0](h))
    torch.testing.assert_close(first, net.rest[1](nn.functional.silu(second)))
    assert not ran
    assert not net.rest[0]._forward_hooks
    with pytest.raises(ValueError, match=r"name some of MLP: .*rest\.0"):
        features(g.denoiser, ["middle"], x, t, {})
    with pytest.raises(ValueError, match="did not run"):
        layer_outputs(net, ["last"], lambda: net.first(x))


def test_a_discriminator_is_made_for_what_it_looks_at():
    torch.manual_seed(0)
    images = Generator(Denoiser(UNet(3, 16, (1, 2), 1, ()), FLOW, U()), DDIM(), Uniform())
    with pytest.raises(ValueError, match="does not say the shape"):
        Discriminator.on(images, ["middle.0"], PatchHead(8))
    images.shape = (3, 8, 8)
    critic = Discriminator.on(images, ["down.0.0", "middle.0"], PatchHead(8))
    x, t = torch.randn(5, 3, 8, 8), torch.full((5,), 0.5)
    assert critic(images.denoiser, x, t, {}).shape == (5, 64 + 16)
    assert {id(p) for p in critic.parameters()}.isdisjoint(id(p) for p in images.parameters())


def test_the_best_logit_is_the_log_of_the_ratio_of_densities():
    """N(0.8, 1) against N(-0.8, 1), noised: log q_t/p_t = 1.6 a x/(a^2 + s^2)."""
    torch.manual_seed(0)
    g = Generator(Denoiser(MLP(1, 64, 3), FLOW, U()), DDIM(), Uniform())
    adversary = Adversary(["rest.0", "rest.1"], GlobalHead(64), times=UniformTimes(0.1))
    critic = adversary.build(g)
    optimizer = torch.optim.Adam(critic.parameters(), 3e-3)
    for i in range(1200):
        fake, real = torch.randn(512, 1) - 0.8, torch.randn(512, 1) + 0.8
        terms = adversary.critic_terms(critic, g.denoiser, fake, real, {}, None)
        optimizer.zero_grad()
        terms["critic"].mean().backward()
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - i / 1200)
        optimizer.step()
    t = torch.rand(4000, dtype=torch.float64) * 0.7 + 0.15
    x = FLOW.sample(torch.randn(4000, 1) + 0.8 * torch.randn(4000, 1).sign(), torch.randn(4000, 1), t)
    a, _, s = FLOW.schedule(t)
    exact = 1.6 * a * x[:, 0] / (a**2 + s**2)
    with torch.no_grad():
        logit = per_sample(critic(g.denoiser, x, t, {}))
    assert torch.corrcoef(torch.stack([logit.double(), exact]))[0, 1] > 0.97
    assert (logit - exact).abs().mean() < 0.3
