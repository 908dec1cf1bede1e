import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.signal import convolve2d

from fewstep.metrics import (
    energy_distance,
    frechet_distance,
    frechet_from_moments,
    luma,
    mmd,
    psnr_rgb,
    psnr_y,
    sliced_wasserstein,
    ssim,
    ssim_y,
)
from fewstep.metrics.psnr import shave_border, to_8bit

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT.parent / "shared/golden/restoration_dev.npz"

TWO_SAMPLE = [
    lambda x, y: sliced_wasserstein(x, y, generator=torch.Generator().manual_seed(0)),
    energy_distance,
    mmd,
    frechet_distance,
]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_unbiased(values, exact):
    """The mean of independent estimates lies within 4 standard errors of the exact value."""
    error = np.std(values, ddof=1) / len(values) ** 0.5
    assert abs(np.mean(values) - exact) < 4 * error
    assert error < 0.05 * max(abs(exact), 1)


# --- all two-sample metrics ------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", TWO_SAMPLE)
def test_order_of_samples_and_of_arguments_does_not_matter(metric):
    x, y = normal(40, 3), 0.5 + 2 * normal(31, 3, seed=1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    assert metric(x[order], y.flip(0)).item() == pytest.approx(metric(x, y).item(), abs=1e-12)
    assert metric(y, x).item() == pytest.approx(metric(x, y).item(), abs=1e-12)


@pytest.mark.parametrize("metric", TWO_SAMPLE)
def test_common_shift_far_from_the_origin_does_not_matter(metric):
    x, y = normal(40, 3), 0.5 + normal(31, 3, seed=1)
    assert metric(x + 1e5, y + 1e5).item() == pytest.approx(metric(x, y).item(), rel=1e-8)


@pytest.mark.parametrize("metric", TWO_SAMPLE)
def test_chunks_give_the_same_answer(metric, monkeypatch):
    x, y = normal(40, 3), 0.5 + normal(31, 3, seed=1)
    whole = metric(x, y).item()
    for name in ("energy_distance", "sliced_wasserstein"):
        # importlib: the package attribute of this name is the function.
        monkeypatch.setattr(importlib.import_module(f"fewstep.metrics.{name}"), "MAX_ELEMENTS", 200)
    # Smaller chunks draw the directions in another order: same law, other directions.
    tolerance = 0.05 if metric is TWO_SAMPLE[0] else 1e-12
    assert metric(x, y).item() == pytest.approx(whole, abs=tolerance)


@pytest.mark.parametrize("metric", TWO_SAMPLE)
@pytest.mark.parametrize("shapes", [((5, 2), (5, 3)), ((5,), (5,)), ((5, 2, 2), (5, 2, 2)), ((0, 2), (5, 2))])
def test_bad_samples_are_named(metric, shapes):
    with pytest.raises(ValueError, match="allowed"):
        metric(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


@pytest.mark.parametrize("metric", [energy_distance, mmd, frechet_distance])
def test_one_sample_is_too_few(metric):
    with pytest.raises(ValueError, match="allowed: at least 2"):
        metric(torch.zeros(1, 2), torch.zeros(5, 2))


# --- sliced Wasserstein ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1, 2, 3])
def test_wasserstein_of_a_shift_is_the_shift(p):
    x = normal(50, 1)
    assert sliced_wasserstein(x, x.flip(0) - 1.25, p=p).item() == pytest.approx(1.25, rel=1e-12)


def test_wasserstein_1d_is_exact_for_unequal_sizes():
    for n, m in [(7, 5), (1, 4), (6, 9), (12, 12)]:
        x, y = normal(n, 1, seed=n), normal(m, 1, seed=m + 50)
        exact = stats.wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
        assert sliced_wasserstein(x, y, p=1).item() == pytest.approx(exact, rel=1e-12)
        # Repeating both to the common length changes no quantile function.
        length = math.lcm(n, m)
        pair = [v.repeat_interleave(length // len(v), 0).sort(0).values for v in (x, y)]
        exact = (pair[0] - pair[1]).square().mean().sqrt().item()
        assert sliced_wasserstein(x, y).item() == pytest.approx(exact, rel=1e-12)


def test_sliced_wasserstein_of_gaussians():
    # theta.X ~ N(theta.m, s^2): SW_2^2 = |m|^2 / D + (s_1 - s_2)^2.
    shift = torch.tensor([1.0, -2.0, 0.5, 1.0], dtype=torch.float64)
    x, y = 0.5 * normal(5000, 4), shift + 1.5 * normal(4000, 4, seed=1)
    value = sliced_wasserstein(x, y, projections=1000, generator=torch.Generator().manual_seed(3)).item()
    assert value**2 == pytest.approx(shift.square().sum().item() / 4 + 1, rel=0.05)


def test_sliced_wasserstein_repeats_with_the_generator():
    x, y = normal(20, 3), normal(30, 3, seed=1)
    values = [sliced_wasserstein(x, y, 16, generator=torch.Generator().manual_seed(s)).item() for s in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    assert sliced_wasserstein(x, x).item() == 0


@pytest.mark.parametrize("wrong", [{"projections": 0}, {"p": 0.5}])
def test_sliced_wasserstein_rejects(wrong):
    with pytest.raises(ValueError, match="allowed: both at least 1"):
        sliced_wasserstein(normal(4, 2), normal(4, 2), **wrong)


# --- energy distance -------------------------------------------------------------------------------------------


def test_energy_distance_counts_distinct_pairs():
    x, y = normal(5, 2), normal(4, 2, seed=1)
    xs, ys = x.tolist(), y.tolist()
    cross = sum(math.dist(u, v) for u in xs for v in ys) / 20
    within_x = sum(math.dist(u, v) for u in xs for v in xs) / 20
    within_y = sum(math.dist(u, v) for u in ys for v in ys) / 12
    assert energy_distance(x, y).item() == pytest.approx(2 * cross - within_x - within_y, rel=1e-12)


def test_energy_distance_of_gaussians():
    def mean_abs(m, s):
        return s * math.sqrt(2 / math.pi) * math.exp(-(m**2) / (2 * s**2)) + m * math.erf(m / (s * math.sqrt(2)))

    exact = 2 * mean_abs(0.7, math.hypot(1, 1.5)) - mean_abs(0, math.sqrt(2)) - mean_abs(0, 1.5 * math.sqrt(2))
    x, y = normal(1000, 60, 1), 0.7 + 1.5 * normal(1000, 40, 1, seed=1)
    assert_unbiased([energy_distance(*pair).item() for pair in zip(x, y, strict=True)], exact)


@pytest.mark.parametrize("metric", [energy_distance, lambda x, y: mmd(x, y, [1.0])])
def test_unbiased_on_equal_laws(metric):
    x, y = normal(1000, 20, 2), normal(1000, 15, 2, seed=1)
    values = [metric(*pair).item() for pair in zip(x, y, strict=True)]
    assert_unbiased(values, 0)
    assert min(values) < 0


# --- MMD -------------------------------------------------------------------------------------------------------


def test_mmd_of_gaussians():
    # E exp(-|Z|^2 / 2h^2) for Z ~ N(m, v I_D) = (h^2 / (h^2 + v))^(D/2) exp(-|m|^2 / (2 (h^2 + v))).
    def expected(m_sq, v, h, dim=3):
        return (h**2 / (h**2 + v)) ** (dim / 2) * math.exp(-m_sq / (2 * (h**2 + v)))

    shift, scale = torch.tensor([0.5, 1.0, 0.0], dtype=torch.float64), 0.6
    bandwidths = (0.7, 2.0)
    exact = sum(
        expected(0, 2, h) + expected(0, 2 * scale**2, h) - 2 * expected(1.25, 1 + scale**2, h) for h in bandwidths
    )
    x, y = normal(1000, 60, 3), shift + scale * normal(1000, 40, 3, seed=1)
    assert_unbiased([mmd(*pair, bandwidths).item() for pair in zip(x, y, strict=True)], exact / 2)


def test_mmd_default_bandwidths_follow_the_median():
    x, y = normal(6, 2), 1 + normal(5, 2, seed=1)
    median = torch.pdist(torch.cat([x, y])).median().item()
    assert mmd(x, y).item() == pytest.approx(mmd(x, y, [median / 2, median, 2 * median]).item(), rel=1e-12)
    assert mmd(8 * x, 8 * y).item() == pytest.approx(mmd(x, y).item(), rel=1e-12)


@pytest.mark.parametrize("bandwidths", [[], [1.0, 0.0], [-1.0]])
def test_mmd_rejects_bandwidths(bandwidths):
    with pytest.raises(ValueError, match="allowed: one or more positive numbers"):
        mmd(normal(4, 2), normal(4, 2), bandwidths)


def test_mmd_of_a_point_mass_asks_for_bandwidths():
    point = torch.ones(5, 2)
    with pytest.raises(ValueError, match="pass positive bandwidths"):
        mmd(point, point)
    assert mmd(point, point, [1.0]).item() == 0


# --- Frechet ---------------------------------------------------------------------------------------------------


def test_frechet_of_diagonal_gaussians():
    mu, v1, v2 = uniform(3, 5)
    exact = (mu.square() + (v1.sqrt() - v2.sqrt()).square()).sum().item()
    value = frechet_from_moments(torch.zeros(5), torch.diag(v1), mu, torch.diag(v2)).item()
    assert value == pytest.approx(exact, rel=1e-12)


def test_frechet_of_non_commuting_covariances():
    # W_2 to the image of a symmetric positive map A: tr (C + A C A - 2 A C).
    factor, stretch = normal(4, 4), normal(4, 4, seed=1)
    cov, push = factor @ factor.T, stretch @ stretch.T
    exact = (cov + push @ cov @ push - 2 * push @ cov).trace().item()
    zero = torch.zeros(4)
    assert frechet_from_moments(zero, cov, zero, push @ cov @ push).item() == pytest.approx(exact, rel=1e-10)


def test_frechet_of_features():
    x = normal(50, 6)
    assert frechet_distance(x, x.flip(0)).item() == pytest.approx(0, abs=1e-12)
    assert frechet_distance(x, x + 2).item() == pytest.approx(4 * 6, rel=1e-10)
    # Fewer samples than dimensions: covariances are singular, the shift is still exact.
    few = normal(4, 30)
    assert frechet_distance(few, few + 1).item() == pytest.approx(30, rel=1e-6)
    # Divisor N - 1.
    assert frechet_distance(torch.tensor([[-1.0], [1.0]]), torch.zeros(2, 1)).item() == pytest.approx(2, rel=1e-12)


def test_frechet_errors():
    eye, zero = torch.eye(3), torch.zeros(3)
    with pytest.raises(ValueError, match=r"allowed: \(D,\), \(D, D\), \(D,\), \(D, D\)"):
        frechet_from_moments(zero, eye, torch.zeros(2), torch.eye(2))
    with pytest.raises(ValueError, match="finite"):
        frechet_from_moments(zero, eye * math.nan, zero, eye)


# --- PSNR and SSIM ---------------------------------------------------------------------------------------------


def test_luma_weights():
    black, white = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    assert luma(black).item() == 16
    assert luma(white).item() == pytest.approx(235, rel=1e-12)
    red = torch.tensor([100 / 255, 0, 0]).view(1, 3, 1, 1)
    assert luma(red).item() == pytest.approx(16 + 65.481 * 100 / 255, rel=1e-12)
    assert luma(red, rounded=True).item() == 42
    # Rounded to 8 bit and clamped first.
    assert luma(red + 0.4 / 255).item() == luma(red).item()
    assert luma(white + 0.5).item() == luma(white).item()


def test_psnr_of_known_error():
    a = torch.full((2, 3, 12, 14), 100 / 255)
    b = a.clone()
    b[0] += 10 / 255
    b[1, 0] += 6 / 255
    expected = [20 * math.log10(255 / 10), 10 * math.log10(255**2 / 12)]
    assert psnr_rgb(a, b).tolist() == pytest.approx(expected, rel=1e-12)
    gap = [219 * 10 / 255, 65.481 * 6 / 255]
    assert psnr_y(a, b).tolist() == pytest.approx([20 * math.log10(255 / g) for g in gap], rel=1e-12)


def test_identical_images():
    a = uniform(2, 3, 19, 21)
    assert psnr_y(a, a).tolist() == psnr_rgb(a, a).tolist() == [math.inf] * 2
    assert ssim_y(a, a).tolist() == [1.0, 1.0]


def test_shaved_border_is_ignored():
    a = uniform(1, 3, 24, 25)
    b = a.clone()
    b[..., :4, :], b[..., -4:, :], b[..., :4], b[..., -4:] = 0, 1, 0, 1
    assert psnr_y(a, b).item() == psnr_rgb(a, b, shave=4).item() == math.inf
    assert ssim_y(a, b).item() == 1
    assert psnr_y(a, b, shave=3).isfinite().all()


def test_images_of_a_batch_do_not_mix():
    a, b = uniform(3, 3, 20, 22), uniform(3, 3, 20, 22, seed=1)
    for metric in (psnr_y, psnr_rgb, ssim_y):
        single = torch.cat([metric(a[i : i + 1], b[i : i + 1]) for i in range(3)])
        assert torch.allclose(metric(a, b), single, rtol=1e-12)
        assert torch.allclose(metric(b, a), single, rtol=1e-12)


def test_ssim_window_by_direct_convolution():
    a, b = 255 * uniform(1, 1, 15, 17)[0, 0], 255 * uniform(1, 1, 15, 17, seed=1)[0, 0]
    axis = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(axis, axis) / axis.sum() ** 2
    mean = [convolve2d(v.numpy(), window, mode="valid") for v in (a, b, a * a, b * b, a * b)]
    c1, c2 = 2.55**2, 7.65**2
    expected = (2 * mean[0] * mean[1] + c1) * (2 * (mean[4] - mean[0] * mean[1]) + c2)
    expected /= (mean[0] ** 2 + mean[1] ** 2 + c1) * (mean[2] + mean[3] - mean[0] ** 2 - mean[1] ** 2 + c2)
    assert ssim(a[None, None], b[None, None]).item() == pytest.approx(expected.mean(), rel=1e-10)


def test_image_errors():
    a = torch.zeros(1, 3, 20, 20)
    for metric in (psnr_y, psnr_rgb, ssim_y):
        with pytest.raises(ValueError, match="equal shapes"):
            metric(a, a[..., 1:])
        for wrong in (a[:, :1], a[0], a.to(torch.uint8)):
            with pytest.raises(ValueError, match=r"allowed: \(B, 3, H, W\), floating point"):
                metric(wrong, wrong)
        with pytest.raises(ValueError, match="allowed: shave >= 0, sides >= "):
            metric(a, a, shave=10)
    with pytest.raises(ValueError, match="20x20 with shave 5; allowed: shave >= 0, sides >= 21"):
        ssim_y(a, a, shave=5)
    with pytest.raises(ValueError, match="H and W >= 11"):
        ssim(a[..., :10], a[..., :10])


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.exists():
        pytest.skip(f"{GOLDEN} is absent")
    assert "image" in json.loads(GOLDEN.with_suffix(".json").read_text())["keys"]
    arrays = np.load(GOLDEN)
    return {key.removeprefix("image/"): arrays[key] for key in arrays.files if key.startswith("image/")}


@pytest.fixture(params=[torch.float32, torch.float64])
def golden_pair(golden, request):
    return [torch.from_numpy(golden[k]).permute(2, 0, 1)[None].to(request.param) / 255 for k in ("hr", "noisy")]


def test_psnr_of_kair(golden, golden_pair):
    a, b = golden_pair
    assert luma(a, rounded=True)[0, 0].numpy() == pytest.approx(golden["y_hr"].astype(float), abs=0)
    assert psnr_rgb(a, b, shave=4).item() == pytest.approx(golden["psnr_rgb_border4"].item(), rel=1e-12)
    assert psnr_y(a, b, rounded_luma=True).item() == pytest.approx(golden["psnr_y_border4"].item(), rel=1e-12)
    assert psnr_y(a, b).item() == pytest.approx(golden["psnr_y_unrounded_border4"].item(), rel=1e-9)


def test_ssim_of_kair(golden, golden_pair):
    a, b = golden_pair
    assert ssim_y(a, b, rounded_luma=True).item() == pytest.approx(golden["ssim_y_border4"].item(), rel=1e-10)
    assert ssim_y(a, b).item() == pytest.approx(golden["ssim_y_border4"].item(), abs=2e-3)
    rgb = ssim(*(shave_border(to_8bit(image), 4) for image in (a, b)))
    assert rgb.item() == pytest.approx(golden["ssim_rgb_border4"].item(), rel=1e-10)
