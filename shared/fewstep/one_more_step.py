"""One More Step (arXiv:2311.15744): start a model whose noisy end still holds signal from pure noise.

Schedules with a_T > 0 are trained on x_T = a_T x0 + s_T eps but sampled from noise alone, which loses the mean
(brightness) of x0. A small v-network at zero signal-to-noise ratio, v = a eps - s x0 = -x0, supplies it:

    x0 = -v(x_S),    x_T = a_T x0 + s_T eps,    eps = x_S (the DDIM step from S to T) or fresh noise

s_T is the root of the variance; the official pipeline multiplies the noise by the variance 1 - a_T^2 itself.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.paths import Path


def one_more_step(
    v: Callable[[Tensor], Tensor],
    noise: Tensor,
    path: Path,
    cfg: float = 1.0,
    uncond: Callable[[Tensor], Tensor] | None = None,
    fresh: Tensor | None = None,
) -> Tensor:
    """The state (B, ...) at t_max from which any sampler continues; 1 NFE of v, 2 with guidance.

    Args:
        v: (B, ...) -> (B, ...), the v-network at zero SNR with its conditions (its own prompt) fixed.
        noise: (B, ...) standard normal, x_S.
        path: the path of the model that continues.
        cfg: guidance of this step alone, v_u + cfg (v - v_u); 1 means none.
        uncond: v without conditions; needed where cfg is not 1.
        fresh: (B, ...) new standard normal noise for x_T; without it x_S is reused.
    Raises:
        ValueError: cfg without `uncond`.
    """
    out = v(noise)
    if cfg != 1.0:
        if uncond is None:
            raise ValueError(f"cfg is {cfg} but no unconditional network is given; allowed: cfg = 1 without one")
        out = torch.lerp(uncond(noise), out, cfg)
    a, _, s = path.levels(path.t_max)
    return s * (noise if fresh is None else fresh) - a * out
