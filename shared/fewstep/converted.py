"""A network of one path as a denoiser of another, exactly and without training: `OnPath` (convert.py) as a prediction.

The states of two paths at equal lambda = log(a/s) differ by a scale, x_A = k x_B + j y, and x0 and eps carry over. So
the other path's network is the same network, shown k x_B + j y at the label of its own time, and its output is read
with its own coefficients. What holds is a `Denoiser`, which trains, is copied and is saved like any other.

From a rectified flow to TrigFlow this is SANA-Sprint's transformation (arXiv:2503.09641, eq. 6-8), with
    t_f = sin/(sin + cos),   k = sqrt(t_f^2 + (1 - t_f)^2),   F = [(1 - 2 t_f) k x + (1 - 2 t_f + 2 t_f^2) u(k x, t_f)]
    / k;
SANA's sd is a change of the unit of the data, its x is sd times ours.

Derivatives in time, which sCM takes, are exact: where a path finds the time of a lambda by bisection, one Newton step
carries them. In forward mode the trained path must write its own `rates`.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.generator import Generator
from fewstep.grids import Grid
from fewstep.paths import Coeffs, Path
from fewstep.paths.base import nearest_time
from fewstep.prediction import Affine, Prediction, Row


@dataclass(frozen=True)
class Converted(Prediction):
    """A network that was trained with `prediction` on the path `trained`, used on another."""

    prediction: Prediction
    trained: Path

    def row(self, c: Coeffs) -> Row:
        return self.prediction.row(self._own(c)[1])

    def affine(self, c: Coeffs) -> Affine:
        """The prediction's own, which may be finite where the general one is not, of x_A = k x + j y."""
        _, own, k, j = self._own(c)
        m = self.prediction.affine(own)
        return Affine(m.x0_x * k, m.x0_out, m.x0_y + m.x0_x * j, m.eps_x * k, m.eps_out, m.eps_y + m.eps_x * j)

    def input_scale(self, c: Coeffs) -> tuple[Tensor, Tensor]:
        _, own, k, j = self._own(c)
        i, to_y = self.prediction.input_scale(own)
        return i * k, i * j + to_y

    def label(self, t: Tensor, c: Coeffs) -> Tensor:
        time, own, _, _ = self._own(c)
        return self.prediction.label(time.reshape(t.shape), own)

    def _own(self, c: Coeffs) -> tuple[Tensor, Coeffs, Tensor, Tensor]:
        """(t, coefficients of the trained path at equal lambda, k, j)."""
        t = self._time(c.a.double().log() - c.s.double().log())
        own = Coeffs(*(v.to(c.a.dtype) for v in (*self.trained.schedule(t), *self.trained.rates(t))))
        size = torch.hypot(c.a, c.s)
        k = torch.where(size == 0, 0.0, torch.hypot(own.a, own.s) / size)
        return t, own, k, own.b - k * c.b

    def _time(self, lam: Tensor) -> Tensor:
        path, t = self.trained, nearest_time(self.trained, lam)
        if type(path).time_of_log_snr is not Path.time_of_log_snr:
            return t
        a, _, s = path.schedule(t)
        da, _, ds = path.rates(t)
        newton = (lam - path.log_snr(t)) / (da / a - ds / s)
        return torch.where(newton.isfinite() & (t > path.t_min) & (t < path.t_max), t + newton, t)


def on_path(generator: Generator, path: Path, grid: Grid | None = None) -> Generator:
    """A copy of a generator, front end and all, that samples and trains on another path; `grid`: of that path.

    For recipes: `teacher: {class_path: fewstep.converted.on_path, init_args: {generator: ..., path:
    fewstep.paths.Trig}}`.
    """
    generator = copy.deepcopy(generator)
    d = generator.denoiser
    generator.denoiser = Denoiser(d.net, path, Converted(d.prediction, d.path), d.told)
    generator.grid = grid or generator.grid
    return generator
