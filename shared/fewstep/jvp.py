"""Derivatives along a direction: d/dh f(x + h v) at h = 0, by forward-mode differentiation or by differences.

Forward mode needs every operation of the network to support it: fused attention kernels do not, and raise. `jvp_safe` switches them to the
plain kernel, which does. Differences need only evaluations, and are the choice where forward mode is not supported at all (FSDP,
torch.compile, custom kernels).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Mode = Literal["forward", "difference"]


def jvp(
    f: Callable[..., Tensor],
    at: Sequence[Tensor],
    along: Sequence[Tensor],
    mode: Mode = "forward",
    h: float | None = None,
) -> tuple[Tensor, Tensor]:
    """(f(at), derivative of f along), both without gradient.

    Args:
        f: a function of len(at) tensors.
        along: one direction per argument, of its shape and dtype.
        mode: "forward": exact, costs about two evaluations; "difference": (f(at + h along) - f(at - h along)) / 2h, three.
        h: of the difference; unless given, cube root of the dtype's resolution: the error is then about its 2/3 power.
    Raises:
        RuntimeError: forward mode through an operation that has none; the message names it.
    """
    with torch.no_grad():
        if mode == "difference":
            step = torch.finfo(at[0].dtype).eps ** (1 / 3) if h is None else h
            ahead, behind = (f(*(x + k * v for x, v in zip(at, along, strict=True))) for k in (step, -step))
            return f(*at), (ahead - behind) / (2 * step)
        with jvp_safe():
            value, tangent, *_ = torch.func.jvp(f, tuple(at), tuple(along))
        return value, tangent


@contextmanager
def jvp_safe() -> Iterator[None]:
    """Attention by the plain kernel, the one with a forward-mode derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield
