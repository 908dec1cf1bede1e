"""Property P12: the resize operator equals MATLAB's, borders included."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fewstep_restoration.resize import MatlabBicubic, TorchBicubic, matlab_bicubic

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT.parent / "shared/golden/restoration_dev.npz"
SCALES = (1 / 4, 1 / 3, 1 / 2, 2, 3, 4, 0.3, 0.875, 1.5, 0.7071)


def cubic(x):
    """Keys' kernel, a = -0.5, written from its definition."""
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def definition(x, scale):
    """1-D imresize by its definition: mirror without end, weigh, normalise."""
    n, shrink = len(x), min(scale, 1)
    out = []
    for i in range(math.ceil(n * scale)):
        centre, reach = (i + 0.5) / scale - 0.5, 2 / shrink
        taps = range(math.floor(centre - reach), math.ceil(centre + reach) + 1)
        w = [cubic((j - centre) * shrink) for j in taps]
        mirrored = (j % (2 * n) for j in taps)
        out.append(sum(a * x[j if j < n else 2 * n - 1 - j] for a, j in zip(w, mirrored, strict=True)) / sum(w))
    return torch.stack(out)


@pytest.mark.skipif(not GOLDEN.exists(), reason="golden file absent")
@pytest.mark.parametrize("name", ["0.25", "0.5", "0.333333", "2", "4"])
def test_golden(name):
    with np.load(GOLDEN) as golden:
        hr, expected = golden["image/hr"], golden[f"image/matlab_bicubic_{name}"]
    scale = 1 / 3 if name == "0.333333" else float(name)
    out = matlab_bicubic(torch.from_numpy(hr).permute(2, 0, 1)[None].double() / 255, scale)
    assert out.shape[-2:] == expected.shape[:2]
    assert (out[0].permute(1, 2, 0) - torch.from_numpy(expected)).abs().max() < 5e-7


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 37])
@pytest.mark.parametrize("scale", SCALES)
def test_equals_the_definition_at_every_size(scale, n):
    x = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    out = matlab_bicubic(x.expand(1, 1, 5, n), scale)
    # 0.7071 is no simple fraction: a shift below 1e-3 of an output pixel is allowed there.
    tolerance = 5e-3 if scale == 0.7071 else 1e-12
    assert out.shape == (1, 1, math.ceil(5 * scale), math.ceil(n * scale))
    assert (out - definition(x, scale)).abs().max() < tolerance


@pytest.mark.parametrize("scale", SCALES)
def test_constant_stays_constant(scale):
    x = torch.full((1, 2, 9, 13), 0.37, dtype=torch.float64)
    assert (matlab_bicubic(x, scale) - 0.37).abs().max() < 1e-14


@pytest.mark.parametrize("scale", SCALES[:-1])
def test_linear_ramp_is_reproduced_inside(scale):
    n = 64
    x = torch.arange(n, dtype=torch.float64).expand(1, 1, 8, n)
    out = matlab_bicubic(x, scale)[0, 0, 0]
    centre = (torch.arange(len(out), dtype=torch.float64) + 0.5) / scale - 0.5
    reach = 2 / min(scale, 1)
    inside = (centre > reach) & (centre < n - 1 - reach)
    assert inside.sum() > 5
    # Keys' kernel reproduces quadratics as an interpolator; a stretched one wobbles between the phases, but symmetric
    # phases (1/2, 1/3, 1/4) stay exact.
    exact = scale >= 1 or (1 / scale) % 1 == 0
    assert (out - centre)[inside].abs().max() < (1e-11 if exact else 0.05)


def test_size_is_not_rounded_up_for_float_dust():
    assert matlab_bicubic(torch.rand(1, 1, 10, 10), 1.1).shape[-2:] == (11, 11)  # 10 * 1.1 = 11.000000000000002


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_float_dtypes_agree_with_float64(dtype):
    x = torch.rand(2, 3, 17, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = matlab_bicubic(x, 1 / 3)
    assert out.dtype == dtype
    assert (out.double() - matlab_bicubic(x.double(), 1 / 3)).abs().max() < 2 * torch.finfo(dtype).eps


def test_gradient_is_the_adjoint():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(1, 1, 9, 8, dtype=torch.float64, generator=g, requires_grad=True)
    y = torch.rand(1, 1, 3, 2, dtype=torch.float64, generator=g)
    (gradient,) = torch.autograd.grad((matlab_bicubic(x, 0.25) * y).sum(), x)
    z = torch.rand(x.shape, dtype=torch.float64, generator=g)
    assert (gradient * z).sum() == pytest.approx((matlab_bicubic(z, 0.25) * y).sum().item(), abs=1e-12)


def test_same_result_for_any_number_of_threads():
    x = torch.randint(0, 256, (2, 3, 96, 80), generator=torch.Generator().manual_seed(0)).double()
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(matlab_bicubic(x, 1 / 4))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_anchors():
    lr = torch.rand(2, 3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(MatlabBicubic()(lr, 4), matlab_bicubic(lr, 4))
    assert torch.equal(TorchBicubic()(lr, 4), F.interpolate(lr, scale_factor=4, mode="bicubic"))
    assert (MatlabBicubic()(lr, 4) - TorchBicubic()(lr, 4)).abs().max() > 1e-3
    assert MatlabBicubic() == MatlabBicubic()


@pytest.mark.parametrize("resize", [matlab_bicubic, MatlabBicubic(), TorchBicubic()])
@pytest.mark.parametrize(
    ("x", "scale", "word"),
    [
        (torch.rand(3, 4, 4), 2, "shape"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), 2, "uint8"),
        (torch.rand(1, 3, 0, 4), 2, "non-empty"),
        (torch.rand(1, 3, 4, 4), 0, "scale"),
        (torch.rand(1, 3, 4, 4), -2, "scale"),
        (torch.rand(1, 3, 4, 4), float("nan"), "scale"),
    ],
)
def test_bad_arguments(resize, x, scale, word):
    with pytest.raises(ValueError, match=word):
        resize(x, scale)
