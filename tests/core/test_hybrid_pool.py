"""Pairs of real data: the inverted flow of an exact world, and what the pool makes of it."""

import math
from itertools import pairwise

import pytest
import torch
from worlds import normal

from fewstep.denoiser import Denoiser
from fewstep.distill.hybrid_pool import HybridPool, encoded
from fewstep.distill.rf_plus import RFPlusPlus
from fewstep.estimate import Estimate
from fewstep.generator import Generator, Prepared
from fewstep.grids import Uniform
from fewstep.nets import MLP
from fewstep.paths import VP, AnchoredFlow, RectifiedFlow
from fewstep.prediction import X0, U
from fewstep.solvers import Heun

FLOW = RectifiedFlow()
MEAN, STD = torch.tensor([0.7, -1.2], dtype=torch.float64), 0.4


def teacher(prediction=None):
    torch.manual_seed(0)
    net = MLP(2, 16, 2).double()
    with torch.no_grad():
        net.last.weight.normal_(std=0.1)
    return Generator(Denoiser(net, FLOW, prediction or U()), Heun(), Uniform(), 64)


def exact(x, t):
    """The denoiser of N(MEAN, STD^2), whose velocity is finite at both ends."""
    t = torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1)
    v = (1 - t) ** 2 * STD**2 + t**2
    z = x - (1 - t) * MEAN
    return Estimate(MEAN + (1 - t) * STD**2 / v * z, t / v * z)


def test_the_noise_of_a_gaussian_is_the_exact_one_to_second_order():
    x0 = MEAN + STD * normal(64, 2)
    errors = [
        (encoded(exact, FLOW, x0, torch.linspace(0, 1, n + 1).double()) - (x0 - MEAN) / STD).abs().max().item()
        for n in (32, 64, 128)
    ]
    assert errors[-1] < 2e-4
    assert all(1.8 < math.log2(a / b) < 2.3 for a, b in pairwise(errors))


def test_the_teacher_leads_from_the_noise_to_the_data():
    pool, data = HybridPool(real=1.0, steps=64), Prepared(normal(32, 2), {}, None)
    pairs = pool.make(teacher(), data)
    assert torch.equal(pairs.target, data.x0)
    torch.testing.assert_close(teacher().generate(pairs.noise), data.x0, rtol=0, atol=2e-4)


def test_the_start_of_an_anchored_path_is_taken_back():
    path, y = AnchoredFlow(), normal(16, 2, seed=1)
    net = MLP(2, 16, 2).double()
    model = Generator(Denoiser(net, path, U()), Heun(), Uniform(), 64)
    x0 = normal(16, 2)
    noise = encoded(model.bind({}, y), path, x0, torch.linspace(0, 1, 65).double(), y)
    with torch.no_grad():
        torch.testing.assert_close(model.generate(noise, {}, y), x0, rtol=0, atol=1e-3)


def test_a_share_of_the_pairs_is_data_and_all_belong_together():
    torch.manual_seed(0)
    pool, data = HybridPool(real=0.25, steps=32), Prepared(normal(400, 2), {"label": torch.arange(400)}, None)
    model = Generator(Denoiser(MLP(2, 16, 2, classes=400).double(), FLOW, U()), Heun(), Uniform(), 32)
    pairs = pool.make(model, data)
    real = (pairs.target == pairs.x0).all(1)
    assert real.double().mean().item() == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 400))
    assert torch.equal(pairs.cond["label"].sort().values, torch.arange(400))
    assert torch.equal(pairs.x0, data.x0[pairs.cond["label"]])
    with torch.no_grad():
        torch.testing.assert_close(model.generate(pairs.noise, pairs.cond), pairs.target, rtol=0, atol=2e-3)


def test_methods_of_pairs_train_on_them_and_those_of_states_are_refused():
    model = RFPlusPlus(teacher(), 10, pool=HybridPool(real=0.5, steps=4))
    assert model.loss({"x0": normal(16, 2)})["reflow"].isfinite()
    with pytest.raises(ValueError, match="pairs alone"):
        HybridPool().trajectories(teacher(), Prepared(normal(4, 2), {}, None), Uniform()(FLOW, 2))


def test_teachers_without_a_velocity_at_the_clean_end_are_named():
    for model, path in ((teacher(X0()), FLOW), (teacher(), VP())):
        with pytest.raises(ValueError, match="no finite velocity at t = 0"):
            encoded(model.bind(), path, normal(4, 2), torch.linspace(0, 1, 5).double())
