"""Run every group of a restoration golden file through the public API: python tests/restoration/golden_cases.py
FILE.json

Prints `group passed/total worst-error` per group of `keys` (error relative to the tolerance, at most 1 to pass), one
line per failed or skipped array, and exits non-zero on any failure. Arrays are read from FILE.npz beside it. What a
group means is read from its name (resshift_*, rddm_*, irsde_*, image) and its fields alone.

Tolerances: |ours - official| <= 1e-10 + 1e-9 |official| elementwise for float64 numbers; 5e-7 for matlab_bicubic_*,
images in [0, 1] whose reference keeps its weights in float32.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.estimate import Estimate
from fewstep.grids import Spaced
from fewstep.metrics.psnr import luma, psnr_rgb, psnr_y, shave_border, to_8bit
from fewstep.metrics.ssim import ssim, ssim_y
from fewstep.paths.base import Path
from fewstep.paths.mean_reverting import MeanReverting
from fewstep.paths.residual_denoising import ResidualDenoising
from fewstep.paths.residual_shift import ResidualShift
from fewstep.prediction import X0, Eps, Score
from fewstep.sampling import Callback, sample
from fewstep.solvers.ancestral import Ancestral, UnitGainAncestral
from fewstep.solvers.base import Row
from fewstep.solvers.ddim import DDIM
from fewstep.solvers.diffusion import OwnDiffusion
from fewstep.solvers.mean_reverting import MeanRevertingEuler
from fewstep_restoration.resize import matlab_bicubic

RTOL, ATOL, BICUBIC = 1e-9, 1e-10, 5e-7
# Inputs of the examples, not results.
GIVEN = ("ex_x0", "ex_y", "ex_eps", "ex_t", "hr", "noisy")
# Functions that do not exist here yet.
MISSING = ("wavelet_fix", "adain_fix")

Ours = dict[str, Tensor]


class Group:
    """One entry of `keys` and its arrays, as float64 tensors."""

    def __init__(self, name: str, fields: dict[str, Any], arrays: Any) -> None:
        self.name, self.fields = name, fields
        prefix = f"{name}/"
        self.arrays = {k.removeprefix(prefix): arrays[k] for k in arrays.files if k.startswith(prefix)}

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def __getitem__(self, key: str) -> Tensor:
        return torch.as_tensor(self.arrays[key]).double()


def numbers(rows: list[Row], of: Callable[[Row], Any]) -> Tensor:
    return torch.tensor([of(r) for r in rows], dtype=torch.float64)


def over(v: Tensor, x: Tensor) -> Tensor:
    """(T,) beside (T, ...)."""
    return v.reshape(-1, *[1] * (x.ndim - 1))


def per_row(rows: list[Row], x: Tensor, estimate: Tensor, y: Tensor, path: Path) -> Tensor:
    """Every row taken by itself from x and an estimate, without noise, at states with anchor; all (T, ...)."""
    b, b_next = (path.schedule(numbers(rows, lambda r, k=k: r[k]))[1] for k in range(2))
    weights = [numbers(rows, lambda r: r.x[0]), numbers(rows, lambda r: r.e[0]), numbers(rows, lambda r: r.y)]
    c, w, w_y = (over(v, x) for v in weights)
    return c * (x - over(b, x) * y) + w * estimate + (w_y + over(b_next, x)) * y


# --- ResShift --------------------------------------------------------------------------------------------------


def resshift(group: Group) -> Iterator[Ours]:
    """Steps as in `timestep_map` (all of them without respacing); row i of the examples is step index i."""
    f, n = group.fields, len(group["sqrt_etas"])
    cap = 0.001**0.5 if "caps the first sqrt_eta" in f.get("note", "") else None
    path = ResidualShift(f["steps"], f["kappa"], f["power"], f.get("etas_end", 0.99), f["min_noise_level"], cap)
    grid = Spaced("floor")(path, f.get("timestep_respacing", n))
    t = grid[:-1].flip(0)
    a, b, s = path.schedule(t)
    yield {"sqrt_etas": s / path.kappa}
    eta, before = b, torch.cat([b.new_zeros(1), b[:-1]])
    yield {"etas": eta, "etas_prev": before, "alpha": eta - before, "timestep_map": t}
    posterior, ddim = ([*reversed(solver.plan(path, grid))] for solver in (UnitGainAncestral(), DDIM()))
    variance = numbers(posterior, lambda r: r.noise**2)
    c1, c2 = numbers(posterior, lambda r: r.x[0]), numbers(posterior, lambda r: r.e[0])
    # The code keeps the variance of index 1 where that of index 0 would be log 0.
    clipped = torch.cat([variance[1:2], variance[1:]]).log() if n > 1 else variance.log()
    yield {"posterior_mean_coef1": c1, "posterior_mean_coef2": c2, "posterior_variance": variance}
    # 0.5 c2^2 / variance, the KL-derived weight of an x0 loss, with the clipped variance.
    yield {"posterior_log_variance_clipped": clipped, "weight_loss_mse": 0.5 * c2**2 / clipped.exp()}
    yield {"input_std": (1 + s**2).sqrt()}
    k, m = numbers(ddim, lambda r: r.e[0]), numbers(ddim, lambda r: r.x[0])
    yield {"ddim_k": k, "ddim_m": m, "ddim_j": torch.cat([b.new_zeros(1), b[:-1]]) - m * b}
    if "ex_x0" not in group:
        return
    x0, y, eps = group["ex_x0"], group["ex_y"], group["ex_eps"]
    x = path.sample(x0, eps, t, y)
    yield {"ex_xt": x, "ex_scaled_input": x / over((1 + s**2).sqrt(), x)}
    yield {"ex_post_mean": per_row(posterior, x, x0, y, path), "ex_ddim_prev": per_row(ddim, x, x0, y, path)}
    coeffs = path.coeffs(t, x)
    to_eps, to_x0 = X0().affine(coeffs), Eps().affine(coeffs)
    yield {"ex_eps_from_x0": to_eps.eps_x * x + to_eps.eps_out * x0 + to_eps.eps_y * y}
    yield {"ex_x0_from_eps": to_x0.x0_x * x + to_x0.x0_out * eps + to_x0.x0_y * y}
    # A respaced process starts at its own last level.
    yield {"ex_prior": y + s[-1] * eps}


# --- RDDM ------------------------------------------------------------------------------------------------------


class States(Callback):
    """Remembers the start and the state after every step."""

    def __init__(self, start: Tensor) -> None:
        self.x = [start]

    def on_step(self, x: Tensor, done: int, total: int, row: Row) -> bool:
        self.x.append(x)
        return False


def rddm(group: Group) -> Iterator[Ours]:
    """Schedules, posterior coefficients of (x_t, residual, x0), time pairs, and the deterministic chain of an
    oracle.
    """
    f = group.fields
    path = ResidualDenoising(f["T"], f["sum_scale"], f["alpha"], f["beta2"])
    t = torch.arange(path.steps, dtype=torch.float64)
    _, b, s = path.schedule(t)
    yield {"alphas_cumsum": b, "betas2_cumsum": s**2}
    rows = [*reversed(UnitGainAncestral().plan(path, torch.cat([t.flip(0), t.new_tensor([-1.0])])))]
    before, c1 = torch.cat([b.new_zeros(1), b[:-1]]), numbers(rows, lambda r: r.x[0])
    c2 = before - c1 * b  # the weight of y, of which x0 takes its share: y = x0 + residual
    yield {"posterior_mean_coef1": c1, "posterior_mean_coef2": c2}
    yield {"posterior_mean_coef3": numbers(rows, lambda r: r.e[0]) + c2}
    yield {"posterior_variance": numbers(rows, lambda r: r.noise**2)}
    for n in f.get("sampling_steps", []):
        # int() truncates towards zero, as the official code does.
        yield {f"times_{n}": torch.linspace(-1, path.steps - 1, n + 1, dtype=torch.float64).trunc().flip(0)}
    if "ex_traj" not in group:
        return
    x0, y, eps = group["ex_x0"], group["ex_y"], group["ex_eps"]
    n = len(group["ex_traj"]) - 1
    grid = torch.linspace(-1, path.steps - 1, n + 1, dtype=torch.float64).trunc().flip(0)
    start = path.sample(x0, eps, grid[:1], y)
    run = States(start)
    sample(lambda x, t: Estimate(x0, eps), start, path, DDIM(), grid, y, callbacks=[run])
    yield {"ex_traj": torch.stack(run.x)}


# --- IR-SDE ----------------------------------------------------------------------------------------------------


def irsde(group: Group) -> Iterator[Ours]:
    """Schedules over the indices 0 .. T, and one step of each sampler from the indices ex_t."""
    f = group.fields
    lam = f["max_sigma"] / 255 if f["max_sigma"] >= 1 else f["max_sigma"]
    path = MeanReverting(f["T"], lam, f["eps"], f["schedule"])
    index = torch.arange(path.steps + 1, dtype=torch.float64)
    a, _, s = path.schedule(index)
    theta = path.theta(index)
    yield {"thetas": theta, "thetas_cumsum": -a.log() / path.dt, "sigmas": path.sigma(index), "sigma_bars": s}
    yield {"dt": torch.tensor(path.dt, dtype=torch.float64)}
    if "ex_t" not in group:
        return
    t = group["ex_t"]
    x0, y, eps = (group[k][0].expand(len(t), *group[k].shape[1:]) for k in ("ex_x0", "ex_y", "ex_eps"))
    x = path.sample(x0, eps, t, y)
    posterior, sde, ode = (
        [solver.plan(path, torch.stack([i, i - 1]))[0] for i in t]
        for solver in (Ancestral(), MeanRevertingEuler(), MeanRevertingEuler(OwnDiffusion(0.0)))
    )
    back = Eps().affine(path.coeffs(t, x))
    score = Score().target(x0, eps, path.coeffs(t, x))
    yield {"ex_xt": x, "ex_x0_back": back.x0_x * x + back.x0_out * eps + back.x0_y * y, "ex_score": score}
    yield {"ex_opt_prev": per_row(posterior, x, x0, y, path)}
    yield {"ex_opt_std": over(numbers(posterior, lambda r: r.noise), x)}
    yield {"ex_sde_mean": per_row(sde, x, x0, y, path), "ex_ode_prev": per_row(ode, x, x0, y, path)}


# --- images ----------------------------------------------------------------------------------------------------


def picture(array: Tensor) -> Tensor:
    """(H, W, 3) in 0..255 as (1, 3, H, W) in [0, 1]."""
    return array.permute(2, 0, 1)[None] / 255


def image(group: Group) -> Iterator[Ours]:
    """MATLAB resizing of hr, and the metrics of `noisy` against it with the border that their names give."""
    hr, noisy = picture(group["hr"]), picture(group["noisy"])
    scales = {f"{s:.6g}": s for s in group.fields.get("scales", [])}
    yield {"y_hr": luma(hr, rounded=True)[0, 0]}
    for key in group.arrays:
        if found := re.fullmatch(r"matlab_bicubic_(.+)", key):
            scale = scales.get(found[1], float(found[1]))
            yield {key: matlab_bicubic(hr, scale)[0].permute(1, 2, 0)}
        elif found := re.fullmatch(r"(psnr|ssim)_(rgb|y|y_unrounded)_border(\d+)", key):
            metric, shave = (found[1], found[2]), int(found[3])
            yield {key: METRICS[metric](noisy, hr, shave)[0]}


def ssim_rgb(a: Tensor, b: Tensor, shave: int) -> Tensor:
    return ssim(shave_border(to_8bit(a), shave), shave_border(to_8bit(b), shave))


METRICS = {
    ("psnr", "rgb"): psnr_rgb,
    ("psnr", "y"): lambda a, b, shave: psnr_y(a, b, shave, rounded_luma=True),
    ("psnr", "y_unrounded"): psnr_y,
    ("ssim", "rgb"): ssim_rgb,
    ("ssim", "y"): lambda a, b, shave: ssim_y(a, b, shave, rounded_luma=True),
    ("ssim", "y_unrounded"): ssim_y,
}


# --- the runner ------------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[Group], Iterator[Ours]]] = {
    "resshift": resshift,
    "rddm": rddm,
    "irsde": irsde,
    "image": image,
}


def error(ours: Tensor, official: Tensor, key: str) -> float:
    """Worst |ours - official| / tolerance; inf where shapes differ or ours is not finite."""
    if ours.shape != official.shape or not ours.isfinite().all():
        return float("inf")
    allowed = BICUBIC if key.startswith("matlab_bicubic") else ATOL + RTOL * official.abs()
    return ((ours - official).abs() / allowed).max().item()


def check(group: Group) -> dict[str, float]:
    """key -> error of all results of a group; inf for those that nothing here computes."""
    wanted = {k: float("inf") for k in group.arrays if k not in (*GIVEN, *MISSING)}
    try:
        for results in KINDS[group.name.split("_")[0]](group):
            for key in results.keys() & wanted.keys():
                wanted[key] = error(results[key].double(), group[key], key)
    # A group that cannot be mapped fails, with its reason.
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as err:
        print(f"{group.name}: {type(err).__name__}: {' '.join(str(err).split())}", file=sys.stderr)
    return wanted


def run(file: FilePath) -> int:
    """Check all groups; the number of failures."""
    description, arrays, failures = json.loads(file.read_text()), np.load(file.with_suffix(".npz")), 0
    for name, fields in description["keys"].items():
        group = Group(name, fields, arrays)
        errors = check(group)
        for key in MISSING:
            if key in group:
                print(f"{name}/{key}: skipped, not implemented")
        for key, worst in errors.items():
            if not worst <= 1:
                failures += 1
                print(f"{name}/{key}: error {worst:.3g} of the tolerance", file=sys.stderr)
        print(f"{name} {sum(e <= 1 for e in errors.values())}/{len(errors)} {max(errors.values()):.3g}")
    return failures


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/restoration/golden_cases.py FILE.json")
    sys.exit(1 if run(FilePath(sys.argv[1])) else 0)
