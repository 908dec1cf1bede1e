"""Paths as golden cases name them, and the families path_table and rbf_conversion."""

import re
from dataclasses import dataclass

import torch

from fewstep.convert import convert_state, convert_velocity, score_of_velocity
from fewstep.paths.base import Path
from fewstep.paths.betas import Betas, CosineBetas, GivenBetas, LinearBetas, ScaledLinearBetas
from fewstep.paths.cosine import Cosine
from fewstep.paths.edm import EDM, VE
from fewstep.paths.mean_reverting import MeanReverting
from fewstep.paths.ouve import OUVE
from fewstep.paths.polynomial import Polynomial
from fewstep.paths.rectified_flow import RectifiedFlow
from fewstep.paths.residual_denoising import ResidualDenoising
from fewstep.paths.residual_shift import ResidualShift
from fewstep.paths.sbve import SBVE
from fewstep.paths.sub_vp import SubVP
from fewstep.paths.tabulated import DiscreteVP, IndexedVP
from fewstep.paths.trig import Trig
from fewstep.paths.vp import VP


@dataclass(frozen=True)
class Notebook(Path):
    """log a = -(B1 - B0) t^2 / 4 - B0 t / 2 with s = t, the path of the superdiff notebook."""

    beta_min: float
    beta_max: float

    def schedule(self, t):
        a, zero, _ = VP(self.beta_min, self.beta_max).schedule(t)
        return a, zero, t


def params(case):
    return case.get("params") or {}


def betas_of(given) -> Betas:
    kind, n = given["kind"], given.get("n", 1000)
    if kind.startswith("cosine") or kind == "squaredcos_cap_v2":
        return CosineBetas(n, given.get("s", 0.008), given.get("max_beta", 0.999))
    if kind in ("scaled_linear", "sqrt_linear"):
        return ScaledLinearBetas(n, given["start"], given["end"])
    if kind in ("linspace", "linear"):
        return LinearBetas(n, given["start"], given["end"])
    if kind == "constant":
        return GivenBetas((given["start"],) * n)
    raise ValueError(f"unknown table of betas: {given}")


def irsde(case):
    p = params(case)
    lam = p.get("max_sigma", 50)
    return MeanReverting(
        p.get("T", 100), lam / 255 if lam >= 1 else lam, p.get("eps", 0.01), p.get("schedule", "cosine")
    )


def resshift(case):
    p = params(case)
    return ResidualShift(
        p.get("num_diffusion_timesteps", 15),
        p.get("kappa", 2.0),
        p.get("kwargs", {}).get("power", 0.3),
        p.get("etas_end", 0.99),
        p.get("min_noise_level", 0.04),
    )


def rddm(case):
    p = params(case)
    return ResidualDenoising(p.get("timesteps", 1000), p.get("sum_scale", 0.01))


def of(cls, **names):
    """cls with those of its fields that the case names, here or under `params`."""

    def build(case):
        given = case.fields | params(case)
        return cls(**{field: given[name] for field, name in names.items() if name in given})

    return build


PATHS = {
    "vp_linear": of(VP, beta_min="beta_0", beta_max="beta_1"),
    "vp_cosine": of(Cosine, offset="s"),
    "vp_discrete": lambda case: DiscreteVP(betas_of(case["betas"])),
    "vp_discrete_index": lambda case: IndexedVP(betas_of(case["betas"])),
    "subvp": of(SubVP, beta_min="beta_0", beta_max="beta_1"),
    "sub_vp": of(SubVP, beta_min="beta_0", beta_max="beta_1"),
    "edm": of(EDM),
    "ve": of(VE, sigma_min="sigma_min", sigma_max="sigma_max"),
    "fm": of(RectifiedFlow),
    "trig": of(Trig),
    "polynomial": of(Polynomial, n="n"),
    "ouve": of(OUVE, theta="theta", sigma_min="sigma_min", sigma_max="sigma_max"),
    "sbve": of(SBVE, k="k", c="c"),
    "irsde": irsde,
    "resshift": resshift,
    "rddm": rddm,
}


def path_of(case) -> Path:
    """The path of a case, from its fields `path`, `params`, `betas`, `beta_0`, `beta_1`; EDM where no path is named."""
    named = case.get("path", "edm")
    if named in PATHS:
        return PATHS[named](case)
    formula = re.match(r"log a_t=-0.25 t\^2 \(([\d.]+)-([\d.]+)\).*s_t=t\b", named)
    if formula:
        return Notebook(float(formula[2]), float(formula[1]))
    raise ValueError(f"unknown path {named!r}, known are {sorted(PATHS)}")


def regularised(a, b, s, total, note):
    """SB-VE's coefficients as the official code has them: S_T^2 - S^2 grows by eps and denominators by eps, 1e-4 in s
    at t = 1."""
    eps = float((re.search(r"eps=([\d.e-]+)", note) or (0, "0"))[1])
    s = (total * (s**2 + eps * b)).sqrt() / (total.sqrt() + eps)
    return (total * a + eps) / (total + eps), total * b / (total + eps) / (1 + eps), s


def path_table(case):
    """Columns of `out`: a time (index, 1-based index or t), then named coefficients."""
    path, table = path_of(case), case.array("out")
    label, *names = case["columns"]
    t = table[:, 0] - 1 if "1-based" in label and path.t_min == -1 else table[:, 0]
    a, b, s = path.schedule(t)
    if isinstance(path, SBVE):
        a, b, s = regularised(a, b, s, path.s2(torch.ones_like(t)), case.get("note", ""))
    ours = {"a": a, "b": b, "s": s, "lambda": path.log_snr(t)}
    if isinstance(path, OUVE):
        ours["g"] = path.diffusion(t)
    if isinstance(path, MeanReverting):
        ours["theta"], ours["sigma"] = path.theta(t), path.sigma(t)
    for column, name in enumerate(names, 1):
        yield name, ours[name], table[:, column]


def rbf_conversion(case):
    """A flow's velocity on a VP path; rows of `out` per level: state, velocity, score, then a, s, a', s'."""
    trained, sampled = RectifiedFlow(), VP(*map(float, re.findall(r"beta_\w+ ([\d.]+)", case["new_path"])))
    world, y = case.mixture(case["mixture"], trained), case.array("y")
    eps = case.array("x_init/" + case["mixture"])
    for level, expected in zip(
        case["levels_r"], case.array("out").reshape(-1, len(y), 4 + 3 * y.shape[1]), strict=True
    ):
        r = torch.full((len(y),), float(level), dtype=torch.float64)
        x = sampled.sample(0.5 * y, eps, r)
        x_a, t = convert_state(x, r, trained, sampled)
        at = world(x_a, t)
        u = convert_velocity(at.eps - at.x0, x, r, trained, sampled)
        (a, _, s), (da, _, ds) = sampled.schedule(r), sampled.rates(r)
        numbers = torch.stack([a, s, da, ds], 1)
        yield f"level {level}", torch.cat([x, u, score_of_velocity(u, x, r, sampled), numbers], 1), expected


FAMILIES = {"path_table": path_table, "rbf_conversion": rbf_conversion}
