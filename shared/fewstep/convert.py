"""Sampling on one path with a network trained on another: at equal lambda paths differ by time and scale alone.

At sampling time r the trained time t has lambda_A(t) = lambda_B(r), lambda = log(a/s); there (a_B, s_B) = c (a_A, s_A),
and with centred states xc = x - b y

    xc_A = xc_B / c        x0 and eps carry over        score_A = c score_B
    u_B = (c'/c) xc_B + c t' (u_A - b_A' y) + b_B' y,        ' = d/dr on B, d/dt on A

c and t' are formed from a^2 + s^2 and from a's - a s', so nothing is divided by a or s, which may vanish at the ends
(RBF sampling, arXiv:2503.19385, app. B, uses c = s_B/s_A; DDPM <-> EDM <-> flow matching are this change, too).

shapes: x, u, y (B, ...); r, t (B,)
"""

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.estimate import Estimate
from fewstep.paths.base import Path, expand, nearest_time
from fewstep.prediction import U


def match(r: Tensor, trained: Path, sampled: Path) -> tuple[Tensor, Tensor]:
    """(t, 1/c) at times r of the sampled path, elementwise in float64.

    Where the trained path does not reach lambda_B(r), t is its nearest end: a network cannot be asked beyond what it
    has seen. 1/c is 0 where a bridge has no noise left (a_B = s_B = 0): there xc_B = 0.
    """
    r = r.double()
    t = nearest_time(trained, sampled.log_snr(r))
    (a, _, s), (a_b, _, s_b) = trained.schedule(t), sampled.schedule(r)
    size = torch.hypot(a_b, s_b)
    return t, torch.where(size == 0, 0.0, torch.hypot(a, s) / size)


def convert_state(x: Tensor, r: Tensor, trained: Path, sampled: Path, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(x_A, t): the state of the trained path at equal lambda, and its time."""
    t, k = match(r, trained, sampled)
    x_a = expand(k, x) * x
    return (x_a if y is None else x_a + expand(_anchor(r, t, k, trained, sampled), x) * y), t


def _anchor(r: Tensor, t: Tensor, k: Tensor, trained: Path, sampled: Path) -> Tensor:
    """j of x_A = k x_B + j y."""
    return trained.schedule(t)[1] - k * sampled.schedule(r.double())[1]


class OnPath:
    """A denoiser of the sampled path, made of one of the trained path. Wrapper: denoiser in, denoiser out.

    Args:
        denoise: (x_A, t) -> Estimate on the trained path, conditions bound; a network gets the labels of its own times.
        trained, sampled: the two paths.
        y: (B, ...) the anchor, where a path has one.
    """

    def __init__(self, denoise: Denoise, trained: Path, sampled: Path, y: Tensor | None = None) -> None:
        self.denoise, self.trained, self.sampled, self.y = denoise, trained, sampled, y
        self._table: dict[float, tuple[float, float, float]] = {}

    def prepare(self, times: tuple[float, ...], x: Tensor) -> None:
        """Tabulate the trained times and scales of these sampling times."""
        r = torch.tensor(times, dtype=torch.float64)
        t, k = match(r, self.trained, self.sampled)
        rows = zip(
            t.tolist(), k.tolist(), _anchor(r, t, k, self.trained, self.sampled).expand(len(r)).tolist(), strict=True
        )
        self._table |= zip(times, rows, strict=True)
        if hasattr(self.denoise, "prepare"):
            self.denoise.prepare(tuple(t.tolist()), x)  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        if isinstance(t, Tensor):
            return self.denoise(*convert_state(x, t, self.trained, self.sampled, self.y))
        if t not in self._table:
            self.prepare((t,), x)
        time, k, j = self._table[t]
        return self.denoise(x * k if self.y is None else (x * k).add_(self.y, alpha=j), time)


def convert_velocity(u: Tensor, x: Tensor, r: Tensor, trained: Path, sampled: Path, y: Tensor | None = None) -> Tensor:
    """u_B(x_B, r) from u = u_A(x_A, t), where (x_A, t) = convert_state(x_B, r, ...)."""
    r = r.double()
    t, k = match(r, trained, sampled)
    (a, _, s), (da, db, ds) = trained.schedule(t), trained.rates(t)
    (a_b, b_b, s_b), (da_b, db_b, ds_b) = sampled.schedule(r), sampled.rates(r)
    size, size_b = a**2 + s**2, a_b**2 + s_b**2
    speed = (da_b * s_b - a_b * ds_b) / (da * s - a * ds) * size / size_b  # t' = lambda_B' / lambda_A'
    growth = (a_b * da_b + s_b * ds_b) / size_b - speed * (a * da + s * ds) / size  # c'/c
    u_b = expand(growth, x) * x + expand(speed / k, x) * u
    return u_b if y is None else u_b + expand(db_b - growth * b_b - speed / k * db, x) * y


def convert_score(score: Tensor, r: Tensor, trained: Path, sampled: Path) -> Tensor:
    """score_B(x_B, r) from score = score_A(x_A, t); of the same eps, -eps/s."""
    return expand(match(r, trained, sampled)[1], score) * score


def score_of_velocity(u: Tensor, x: Tensor, t: Tensor, path: Path, y: Tensor | None = None) -> Tensor:
    """grad log p_t(x) = -eps/s from the velocity u at (x, t), on one path; s(t) > 0."""
    c = path.coeffs(t, x)
    k = U().affine(c)
    eps = k.eps_x * x + k.eps_out * u
    return -(eps if y is None else eps + k.eps_y * y) / c.s
