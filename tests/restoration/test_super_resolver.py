"""Properties P4-P7 and P16 of the restoration sheet: the super-resolution generator around an exact, zero or simple network."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import pad

from fewstep.denoiser import Denoiser
from fewstep.grids import Spaced, Uniform
from fewstep.paths import ResidualShift
from fewstep.precondition import AnchoredPrecondition
from fewstep.prediction import X0, Residual
from fewstep.sampling import Callback
from fewstep.solvers import DDIM, DPMpp2M, UnitGainAncestral
from fewstep_restoration.nets import FiLMResNet, FiLMUNet
from fewstep_restoration.resize import TorchBicubic, matlab_bicubic
from fewstep_restoration.super_resolver import SuperResolver

GOLDEN = Path(__file__).parents[2].parent / "shared/golden"
PATH = ResidualShift(kappa=0.2, min_noise=0.02)
SOLVERS = [DDIM(), DPMpp2M(), UnitGainAncestral()]


def uniform(*shape, seed=0):
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Zero(nn.Module):
    def forward(self, x, t, lr):
        return torch.zeros_like(x)


class Known(nn.Module):
    """Always answers the same picture."""

    def __init__(self, x0):
        super().__init__()
        self.x0 = x0

    def forward(self, x, t, lr):
        return self.x0.expand_as(x)


class Pointwise(nn.Module):
    """A nonlinear map of every pixel alone; whatever it declares as stride cannot change its answer."""

    def __init__(self, stride=1, see_lr=True, channels=48):
        super().__init__()
        self.stride, self.see_lr = stride, see_lr
        self.mix = uniform(channels, channels + 3, seed=5) / 4

    def forward(self, x, t, lr):
        seen = torch.cat([x, lr if self.see_lr else torch.zeros_like(lr)], 1)
        out = torch.einsum("oc,bchw->bohw", self.mix, seen)
        return torch.tanh(out + 0.1 * t[:, None, None, None])


def resolver(net, prediction=None, scale=4, **kw):
    return SuperResolver(Denoiser(net, PATH, prediction or Residual()), DDIM(), Spaced(), scale=scale, **kw)


def trained(net, seed=0):
    """The network in float64 with random instead of zero layers."""
    torch.manual_seed(seed)
    for p in net.parameters():
        nn.init.normal_(p, std=0.1)
    return net.double()


# --- the space of the path ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_encoding_is_an_isometry_and_decoding_its_inverse(scale):
    model, image, other = (
        resolver(Zero(), scale=scale),
        uniform(2, 3, 5 * scale, 7 * scale),
        uniform(2, 3, 5 * scale, 7 * scale, seed=1),
    )
    code = model.encode(image)
    assert code.shape == (2, 3 * scale**2, 5, 7)
    assert torch.equal(model.decode(code), image)
    assert torch.equal(model.encode(model.decode(code)), code)
    torch.testing.assert_close((code * model.encode(other)).sum(), (image * other).sum())
    # The path commutes with it: states may be made in either space.
    t = torch.tensor([3.0, 12.0])
    torch.testing.assert_close(
        PATH.sample(code, code, t, model.encode(other)), model.encode(PATH.sample(image, image, t, other))
    )


def test_prepare_gives_the_data_its_condition_and_its_anchor():
    model, lr = resolver(Zero()), uniform(2, 3, 4, 5)
    hr = uniform(2, 3, 16, 20, seed=1)
    x0, cond, y = model.prepare({"hr": hr, "lr": lr})
    assert torch.equal(model.decode(x0), hr)
    assert cond.keys() == {"lr"}
    assert torch.equal(cond["lr"], lr)
    assert torch.equal(model.decode(y), matlab_bicubic(lr, 4))
    official = resolver(Zero(), anchor=TorchBicubic())
    assert torch.equal(official.decode(official.prepare({"hr": hr, "lr": lr}).y), TorchBicubic()(lr, 4))


# --- P6: an untrained network gives the anchor -------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("steps", [1, 4, 15])
def test_an_untrained_residual_network_gives_the_bicubic_picture(solver, steps):
    model, lr = resolver(Zero()), uniform(2, 3, 6, 5)
    out = model(lr, steps, solver, generator=seeded())
    torch.testing.assert_close(out, matlab_bicubic(lr, 4), rtol=0, atol=1e-14)


@pytest.mark.parametrize("net", [FiLMResNet(width=8, blocks=1), FiLMUNet(width=8)], ids=["resnet", "unet"])
@torch.no_grad()
def test_the_untrained_networks_of_the_package_give_the_bicubic_picture(net):
    lr = uniform(1, 3, 7, 6).float()
    torch.testing.assert_close(resolver(net)(lr, 4), matlab_bicubic(lr, 4), rtol=0, atol=1e-6)


def test_an_untrained_preconditioned_network_stays_as_near_as_its_skip_allows():
    prediction = AnchoredPrecondition(0.1)
    model, lr = resolver(Zero(), prediction), uniform(1, 3, 6, 5)
    noise = model.noise(lr, seeded())
    off = model(lr, steps=1, noise=noise) - matlab_bicubic(lr, 4)
    a, _, s = (v.item() for v in PATH.schedule(torch.tensor(PATH.t_max, dtype=torch.float64)))
    skip = a * 0.1**2 / (a**2 * 0.1**2 + s**2)  # spec 1.4
    torch.testing.assert_close(off, skip * s * model.decode(noise), rtol=1e-9, atol=1e-14)  # d = s eps at the start
    assert 0 < skip * s < 2e-3
    assert (off.abs() <= skip * s * model.decode(noise).abs() * (1 + 1e-9) + 1e-14).all()


# --- P4, P5, P7: exact and one-step samplers ---------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 7, 15])
@pytest.mark.parametrize("grid", [Spaced(), Spaced("floor"), Uniform()], ids=repr)
def test_with_the_true_picture_as_prediction_every_sampler_ends_at_it(solver, steps, grid):
    hr, lr = uniform(1, 3, 20, 24), uniform(1, 3, 5, 6, seed=1)
    model = resolver(Known(resolver(Zero()).encode(hr)), X0())
    model.grid = grid
    torch.testing.assert_close(model(lr, steps, solver, generator=seeded()), hr, rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", [DDIM(), DPMpp2M()], ids=repr)
def test_with_the_true_picture_every_state_lies_on_the_path_of_one_noise(solver):
    class Watch(Callback):
        states = []

        def on_step(self, x, done, total, row):
            self.states.append((row.s, x))
            return False

    hr, lr, watch = uniform(1, 3, 20, 24), uniform(1, 3, 5, 6, seed=1), Watch()
    watch.states = []
    model = resolver(Known(resolver(Zero()).encode(hr)), X0())
    x0, _, y = model.prepare({"hr": hr, "lr": lr})
    noise = model.noise(lr, seeded())
    model(lr, 5, solver, noise=noise, callbacks=[watch])
    a, b, s = PATH.schedule(torch.tensor(PATH.t_max, dtype=torch.float64))
    eps = (PATH.start(noise, y) - a * x0 - b * y) / s  # of the start, which takes a y for the unknown a x0
    assert len(watch.states) == 5
    for t, x in watch.states:
        torch.testing.assert_close(x, PATH.sample(x0, eps, torch.tensor([t]), y), rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("prediction", [X0(), Residual(), AnchoredPrecondition(0.1)], ids=repr)
def test_one_step_is_the_prediction_at_the_noisy_end(solver, prediction):
    model, lr = resolver(Pointwise(), prediction), uniform(2, 3, 5, 6)
    noise = model.noise(lr, seeded())
    y = model.encode(model.anchor(lr, 4))
    end = torch.full((2,), PATH.t_max, dtype=torch.float64)
    x0 = model.denoiser(PATH.start(noise, y), end, {"lr": lr}, y).x0
    torch.testing.assert_close(model(lr, 1, solver, noise=noise), model.decode(x0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 4, 15])
def test_adding_a_constant_to_the_input_adds_it_to_the_output(steps):
    # The preconditioned network sees x_t - y alone, so with the condition ignored it is equivariant.
    model, lr = resolver(Pointwise(see_lr=False), AnchoredPrecondition(0.1)), uniform(1, 3, 5, 6)
    noise = model.noise(lr, seeded())
    for solver in (DDIM(), DPMpp2M()):
        moved = model(lr + 0.3, steps, solver, noise=noise)
        torch.testing.assert_close(moved, model(lr, steps, solver, noise=noise) + 0.3, rtol=0, atol=1e-12)


# --- P16: determinism --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_noise_of_a_picture_does_not_depend_on_its_batch(scale):
    model, lr = resolver(Zero(), scale=scale), torch.zeros(3, 3, 5, 3)
    torch.testing.assert_close(model.noise(lr, seeded(3))[:1], model.noise(lr[:1], seeded(3)), rtol=0, atol=0)


def test_the_noise_of_a_batch_is_that_of_its_pictures_in_turn():
    model, lr, g = resolver(Zero()), torch.zeros(3, 3, 5, 3), seeded(3)
    alone = torch.cat([model.noise(lr[i : i + 1], g) for i in range(3)])
    assert torch.equal(model.noise(lr, seeded(3)), alone)


def test_noise_is_standard_normal():
    noise = resolver(Zero()).noise(torch.zeros(2, 3, 40, 40), seeded())
    n = noise.numel()
    assert noise.shape == (2, 48, 40, 40)
    assert abs(noise.mean().item()) < 4 / n**0.5
    assert abs(noise.var().item() - 1) < 4 * (2 / n) ** 0.5


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("net", [FiLMResNet(width=8, blocks=2), FiLMUNet(width=8)], ids=["resnet", "unet"])
@torch.no_grad()
def test_a_batch_of_pictures_is_its_pictures_one_by_one(net, steps):
    model, lr = resolver(trained(net), AnchoredPrecondition(0.1)), uniform(3, 3, 6, 7)
    noise = model.noise(lr, seeded())
    alone = torch.cat([model(lr[i : i + 1], steps, noise=noise[i : i + 1]) for i in range(3)])
    assert (alone - matlab_bicubic(lr, 4)).abs().max() > 1e-2  # the network matters
    torch.testing.assert_close(model(lr, steps, noise=noise), alone, rtol=0, atol=1e-11)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@torch.no_grad()
def test_the_same_seed_gives_the_same_picture(solver):
    model, lr = resolver(trained(FiLMResNet(width=8, blocks=1))), uniform(1, 3, 5, 6)
    first = model(lr, 4, solver, generator=seeded(1))
    torch.randn(7)  # the global stream has no part in it
    assert torch.equal(model(lr, 4, solver, generator=seeded(1)), first)
    assert not torch.equal(model(lr, 4, solver, generator=seeded(2)), first)
    torch.manual_seed(1)
    without = model(lr, 4, solver)
    torch.manual_seed(1)
    assert torch.equal(model(lr, 4, solver), without)


# --- sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 7), (6, 3), (8, 8)])
@torch.no_grad()
def test_any_size_works_with_a_network_of_stride_two(size):
    model, lr = resolver(trained(FiLMUNet(width=8)), AnchoredPrecondition(0.1)), uniform(1, 3, *size)
    h, w = size
    noise = model.noise(lr, seeded())
    out = model(lr, 3, noise=noise)
    assert out.shape == (1, 3, 4 * h, 4 * w)
    # By hand: everything the network sees grows to even sides by repeating its last row and column.
    grow = (0, w % 2, 0, h % 2)
    wide = [pad(v, grow, mode="replicate") for v in (noise, lr, model.encode(matlab_bicubic(lr, 4)))]
    x = model.generate(wide[0], {"lr": wide[1]}, wide[2], 3)
    torch.testing.assert_close(out, model.decode(x[..., :h, :w]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("stride", [2, 4])
def test_padding_for_a_stride_never_touches_the_picture(stride):
    lr = uniform(2, 3, 5, 7)
    plain, padded = (resolver(Pointwise(s), AnchoredPrecondition(0.1)) for s in (1, stride))
    noise = plain.noise(lr, seeded())
    torch.testing.assert_close(padded(lr, 4, noise=noise), plain(lr, 4, noise=noise), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [2, 3, 4])
@torch.no_grad()
def test_the_magnification_is_the_scale(scale):
    net = trained(FiLMResNet(channels=3 * scale**2, width=8, blocks=1))
    assert resolver(net, scale=scale)(uniform(1, 3, 5, 6), 2).shape == (1, 3, 5 * scale, 6 * scale)


# --- figures -----------------------------------------------------------------------------------------------------


def test_scores_of_the_true_picture_are_perfect_and_those_of_bicubic_are_its_psnr():
    hr = uniform(2, 3, 24, 24).float() / 2
    batch = {"hr": hr, "lr": matlab_bicubic(hr, 1 / 4)}
    exact = resolver(Known(resolver(Zero()).encode(hr)), X0()).scores(batch)
    assert exact.keys() == {"psnr_y", "psnr_y_one"}
    assert all((v > 80).all() and v.shape == (2,) for v in exact.values())
    plain = resolver(Zero()).scores(batch)
    assert all((v < 40).all() for v in plain.values())
    torch.testing.assert_close(plain["psnr_y"], plain["psnr_y_one"], rtol=1e-4, atol=1e-3)


def test_a_preview_shows_bicubic_sample_and_original():
    hr = uniform(2, 3, 24, 20).float()
    (picture,) = resolver(Zero()).preview({"hr": hr, "lr": matlab_bicubic(hr, 1 / 4)}).values()
    assert picture.shape == (3, 24, 60)
    assert picture.min() >= 0
    assert picture.max() <= 1
    torch.testing.assert_close(picture[..., 40:], (hr[0] + 1) / 2)


# --- the official respacing --------------------------------------------------------------------------------------


def test_floor_spacing_is_the_official_respacing():
    if not (GOLDEN / "restoration_dev.npz").is_file():
        pytest.skip(f"no golden vectors at {GOLDEN}")
    arrays = np.load(GOLDEN / "restoration_dev.npz")
    setting = json.loads((GOLDEN / "restoration_dev.json").read_text())["keys"]["resshift_respaced15to4"]
    path = ResidualShift(
        setting["steps"], setting["kappa"], setting["power"], setting["etas_end"], setting["min_noise_level"]
    )
    n = setting["timestep_respacing"]
    grid = Spaced("floor")(path, n)
    index = grid[:-1].flip(0)
    assert index.tolist() == arrays["resshift_respaced15to4/timestep_map"].tolist()
    assert grid[-1] == path.t_min
    root = torch.tensor(arrays["resshift_respaced15to4/sqrt_etas"])
    torch.testing.assert_close(path.schedule(index)[1].sqrt(), root, rtol=1e-12, atol=0)
    assert root[-1] == pytest.approx(0.753985, abs=1e-6)  # it does not start at 0.99 (spec 3.6)
