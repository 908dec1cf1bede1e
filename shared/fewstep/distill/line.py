"""DDIM's straight lines: all states x_t = a x0 + b y + s eps of one pair (x0, eps).

    step       x_s = (s_s/s_t) (x_t - b_t y) + (a_s - a_t s_s/s_t) x0 + b_s y
    secant     the line through two states, z = x - b y:   det = a_t s_s - s_t a_s
               x0 = (s_s z_t - s_t z_s)/det,   eps = (a_t z_s - a_s z_t)/det

On a rectified flow a line is straight in t as well, and eps - x0 of the secant is the chord's velocity (x_s - x_t)/(s - t). Elsewhere it
is straight in x/a over s/a: the first-order path of Rectified Diffusion (arXiv:2410.07303). det is 0 only between equal noise levels.
"""

from torch import Tensor

from fewstep.estimate import Estimate
from fewstep.paths import Path, expand
from fewstep.solvers.base import data_form


def step(path: Path, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor, y: Tensor | None = None) -> Tensor:
    """x_s on the line of x_t and x0; x_t, x0: (B, ...), t, s: (B,). Differentiable; finite where a_t = 0 or s_s = 0."""
    t, s = t.double(), s.double()
    to_x, to_x0 = (expand(v, x_t) for v in data_form(path, t, s))
    if y is None:
        return to_x * x_t + to_x0 * x0
    b_t, b_s = (expand(path.schedule(v)[1], x_t) for v in (t, s))
    return to_x * (x_t - b_t * y) + to_x0 * x0 + b_s * y


def secant(path: Path, x_t: Tensor, t: Tensor, x_s: Tensor, s: Tensor, y: Tensor | None = None) -> Estimate:
    """The (x0, eps) of the line through x_t: (B, ...) at t: (B,) and x_s at s."""
    (a_t, b_t, s_t), (a_s, b_s, s_s) = path.schedule(t.double()), path.schedule(s.double())
    if y is not None:
        x_t, x_s = x_t - expand(b_t, x_t) * y, x_s - expand(b_s, x_s) * y
    det = a_t * s_s - s_t * a_s
    x0 = expand(s_s / det, x_t) * x_t - expand(s_t / det, x_t) * x_s
    return Estimate(x0, expand(a_t / det, x_t) * x_s - expand(a_s / det, x_t) * x_t)
