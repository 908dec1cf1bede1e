"""Sampling with a flow map, a network that jumps along the probability flow: x_u = jump(x_t, t, u).

Gamma sampling of CTM (arXiv:2310.02279): jump from t below the next time s, then add noise back up to s.

    rho = s/a,   rho_u = sqrt(1 - gamma^2) (rho_s - rho_min) + rho_min
    x_s = (a_s/a_u) (jump(x_t, t, u) - b_u y) + b_s y + sqrt(s_s^2 - (a_s s_u/a_u)^2) xi

gamma = 0: deterministic jumps; gamma = 1: multistep consistency sampling (arXiv:2303.01469, algorithm 1), where every
jump is to rho_min. The paper has rho_min = 0. The official codes of both papers stop their networks at 0.002 and so
have rho_min = 0.002.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.nets.latent import latents_from
from fewstep.paths import Path
from fewstep.sampling import Noise, draw
from fewstep.solvers.base import Row
from fewstep.solvers.gamma import check_gamma

# jump(x, t, u): the state at time u of the flow through x: (B, ...) at time t.
Jump = Callable[[Tensor, float, float], Tensor]


def sample_jumps(
    jump: Jump,
    x: Tensor,
    path: Path,
    grid: Tensor,
    gamma: float = 0.0,
    y: Tensor | None = None,
    generator: Noise | None = None,
    rho_min: float = 0.0,
) -> Tensor:
    """Follow a flow map from x at grid[0] to grid[-1]; 1 NFE per step, the last one without noise.

    Args:
        x: (B, ...) the state at grid[0], real or complex.
        grid: (n + 1,) decreasing times.
        gamma: in [0, 1], 0 deterministic.
        y: (B, ...) the anchor on anchored paths.
        generator: source of the noise and of networks' latents, as in `sample`.
        rho_min: the cleanest level the network knows.
    Returns:
        (B, ...) the state at grid[-1].
    Raises:
        ValueError: gamma outside [0, 1].
    """
    check_gamma(gamma)
    *times, end = grid.tolist()
    with latents_from(generator):
        for t, s in pairwise(times):
            row, b_u, b_s = _renoise(path, s, gamma, rho_min)
            x = jump(x, t, row.t)
            noise = draw(x, row, generator)
            if noise is not None:
                x = row.x[0] * (x if y is None else x - b_u * y) + row.noise * noise
                x = x if y is None else x + b_s * y
        return jump(x, times[-1], end)


def _renoise(path: Path, s: float, gamma: float, rho_min: float) -> tuple[Row, float, float]:
    """From where to where the noise is put back: the row u -> s, b_u and b_s."""
    rho_s = (-path.log_snr(torch.tensor(s, dtype=torch.float64))).exp().item()
    rho = math.sqrt(1 - gamma**2) * (rho_s - rho_min) + rho_min
    clean, lam = rho == 0.0, torch.tensor(math.inf if rho == 0.0 else -math.log(rho), dtype=torch.float64)
    u = s if gamma == 0.0 else path.t_min if clean else path.time_of_log_snr(lam).item()
    (a_u, a_s), (b_u, b_s), (s_u, s_s) = (v.tolist() for v in path.schedule(torch.tensor([u, s], dtype=torch.float64)))
    gain = a_s / a_u
    return Row(u, s, (gain,), (), math.sqrt(max(s_s**2 - (gain * s_u) ** 2, 0.0))), b_u, b_s
