"""Less memory: the graph of a loss on pictures is freed before that of the renderer is walked (DreamFusion codes' SpecifyGradient).

g = dL/dx at the picture's value;   L' = <sg(g), x> + sg(L - <g, x>)    has L's value, and its gradient in all that x depends on
"""

from collections.abc import Callable

import torch
from torch import Tensor


def freed(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """loss(x), (B,), of which only the gradient with respect to x: (B, ...) is kept; exact to first order."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        value = loss(at)
        (g,) = torch.autograd.grad(value.sum(), at)
    inner = (g * x).flatten(1).sum(1)
    return inner + (value - inner).detach()
