"""The fixed solvers of diffusers on any of our paths, as variance-preserving ones and so at their best.

The centred state z = x - b y of a path is a variance-preserving one after scaling, v = z / sqrt(a^2 + s^2): a diffusers schedule is a
table of its levels (`trained_betas`), and only the denoiser is called in our units.
"""

import itertools
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.search.starts import Starts

LEVELS = 1000


class Peer(NamedTuple):
    """A scheduler class of diffusers and its settings; exact: the denoiser is called at the noise level itself.

    Otherwise it is called at the scheduler's own label, which diffusers rounds to an index for most grids of noise levels.
    """

    scheduler: str
    settings: tuple[tuple[str, Any], ...]
    exact: bool

    @property
    def name(self) -> str:
        settings = ", ".join(f"{k}={v}" for k, v in self.settings)
        return f"{self.scheduler}({settings})" + ("" if self.exact else " at rounded labels")


SPACINGS = [
    {"timestep_spacing": "linspace"},
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "leading", "steps_offset": 1},
]
SIGMAS = [{"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}]
LU = [{"use_lu_lambdas": True}]


def peers() -> list[Peer]:
    """Every deterministic solver of diffusers 0.42 for such a process, with all its orders, variants and grids."""
    ends = [{"lower_order_final": v} for v in (True, False)]
    zero = [{"algorithm_type": "dpmsolver++"}]
    noise = [{"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}]
    orders, kinds = [{"solver_order": o} for o in (2, 3)], [{"solver_type": k} for k in ("midpoint", "heun")]
    bh, final = [{"solver_type": k} for k in ("bh1", "bh2")], [{"final_sigmas_type": k} for k in ("zero", "sigma_min")]
    fixed = [{"clip_sample": False, "set_alpha_to_one": v} for v in (True, False)]
    sets: list[tuple[str, list[list[dict[str, Any]]]]] = [
        ("DPMSolverMultistepScheduler", [orders, zero + noise, kinds, ends, SPACINGS + SIGMAS + LU]),
        ("DPMSolverSinglestepScheduler", [orders, zero + noise, SIGMAS + [{}]]),
        ("UniPCMultistepScheduler", [orders, bh, ends, final, SPACINGS + SIGMAS]),
        ("DEISMultistepScheduler", [orders, SPACINGS + SIGMAS]),
        ("DDIMScheduler", [fixed, SPACINGS]),
        ("PNDMScheduler", [[{"skip_prk_steps": True}], SPACINGS]),
        *((name, [SPACINGS + SIGMAS]) for name in ("EulerDiscreteScheduler", "HeunDiscreteScheduler")),
        *((name, [SPACINGS + SIGMAS]) for name in ("KDPM2DiscreteScheduler", "LMSDiscreteScheduler")),
    ]
    found = []
    for name, axes in sets:
        for parts in itertools.product(*axes):
            settings = tuple({k: v for part in parts for k, v in part.items()}.items())
            found.append(Peer(name, settings, exact=name not in ("DDIMScheduler", "PNDMScheduler")))
    return found


class Levels:
    """A path as a table of diffusers: the levels at 1000 times, and our time of a label or of a noise level."""

    def __init__(self, path: Path) -> None:
        self.path = path
        a, _, s = path.schedule(self.time(torch.arange(LEVELS, dtype=torch.float64)))
        kept = (a**2 / (a**2 + s**2)).clamp(min=1e-9)
        self.betas = (1 - kept / torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])).numpy()

    def time(self, label: Tensor) -> Tensor:
        """Labels 0 .. 999 are the thousandths of the path; on a DDPM path of 1000 steps they are its own indices."""
        return self.path.t_min + (label + 1) * (self.path.t_max - self.path.t_min) / LEVELS

    def time_of_sigma(self, sigma: Tensor) -> float:
        return self.path.time_of_log_snr(-sigma.double().log()).item()


@torch.no_grad()
def run(peer: Peer, levels: Levels, part: Starts, nfe: int) -> Tensor | None:
    """The end points with the most steps that `nfe` evaluations allow; None where the solver cannot be set up or breaks down."""
    import diffusers
    from diffusers.utils import logging

    logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            scheduler = _fitting(getattr(diffusers, peer.scheduler), peer, levels, nfe)
            return None if scheduler is None else _sampled(scheduler, peer, levels, part)
        # What diffusers raises where a setting has no solution: singular systems, missing steps, indices past the end.
        except (RuntimeError, ValueError, IndexError, ZeroDivisionError, AssertionError, NotImplementedError):
            return None


def _fitting(kind: Any, peer: Peer, levels: Levels, nfe: int) -> Any:
    """The scheduler with the most steps whose evaluations are at most nfe."""
    for n in dict.fromkeys((nfe, nfe - 1, (nfe + 1) // 2, nfe // 2)):
        if n > 0:
            scheduler = kind(num_train_timesteps=LEVELS, trained_betas=levels.betas, **dict(peer.settings))
            scheduler.set_timesteps(n)
            if len(scheduler.timesteps) <= nfe:
                return scheduler
    return None


def _sampled(scheduler: Any, peer: Peer, levels: Levels, part: Starts) -> Tensor | None:
    v = _scaled(levels.path, part)
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas.double()
        if (
            scheduler.init_noise_sigma != 1.0
        ):  # a state in units of a = 1: exactly so, whatever the spacing's own convention
            v = v * (1 + scheduler.sigmas[0].item() ** 2) ** 0.5
    for label in scheduler.timesteps:
        seen = scheduler.scale_model_input(v, label)
        t = _time(scheduler, peer, levels, label)
        if t is None:
            return None
        v = scheduler.step(_eps(levels.path, part, seen, t), label, v).prev_sample
    return v if v.isfinite().all() else None


def _time(scheduler: Any, peer: Peer, levels: Levels, label: Tensor) -> float | None:
    if not peer.exact:
        return levels.time(label.double()).item()
    if scheduler.step_index is None:
        scheduler._init_step_index(label)
    sigma = scheduler.sigmas[scheduler.step_index]
    if peer.scheduler == "KDPM2DiscreteScheduler" and not scheduler.state_in_first_order:
        sigma = scheduler.sigmas_interpol[scheduler.step_index]
    return levels.time_of_sigma(sigma) if sigma > 0 else None


def _scaled(path: Path, part: Starts) -> Tensor:
    """v at t_max."""
    a, b, s = path.levels(path.t_max)
    z = part.x if part.y is None else part.x - b * part.y
    return z / (a * a + s * s) ** 0.5


def _eps(path: Path, part: Starts, v: Tensor, t: float) -> Tensor:
    """The denoiser's eps at the scaled centred state v."""
    a, b, s = path.levels(t)
    x = (v * (a * a + s * s) ** 0.5).to(part.x.dtype)
    return part.denoise(x if part.y is None else x + b * part.y, t).eps


def errors(found: Sequence[Peer], path: Path, starts: Sequence[Starts], nfe: int) -> dict[Peer, float]:
    """Root mean square errors over all starts of those that work, least first."""
    levels, table = Levels(path), {}
    for peer in found:
        total, count = 0.0, 0
        for part in starts:
            end = run(peer, levels, part, nfe)
            if end is None:
                break
            gap = end.double() - part.target.double()
            total, count = total + gap.square().sum().item(), count + gap.numel()
        else:
            if total < float("inf"):
                table[peer] = (total / count) ** 0.5
    return dict(sorted(table.items(), key=lambda item: item[1]))
