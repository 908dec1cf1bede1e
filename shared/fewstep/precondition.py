"""Preconditioned networks: predictions whose input and output have unit variance at every noise level.

A preconditioner writes x0 = k_x (x_t - b y) + k_y y + c_out F and shows the network c_in times the centred state; the
row (p, q, r) of F follows, so training targets and sampling conversions stay those of prediction.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.paths import Coeffs
from fewstep.prediction import Affine, Prediction, Row


@dataclass(frozen=True)
class EDMPrecondition(Prediction):
    """EDM (arXiv:2206.00364, table 1) where a > 0: z = (x_t - b y)/a, rho = s/a, x0 = c_skip z + c_out F(c_in z, log(rho)/4).

    c_skip = sd^2/(rho^2 + sd^2), c_out = rho sd/sqrt(rho^2 + sd^2), c_in = 1/sqrt(rho^2 + sd^2); sd = standard deviation of x0.
    """

    sigma_data: float = 0.5

    def _scales(self, rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(c_skip, c_out, c_in)."""
        v = rho**2 + self.sigma_data**2
        return self.sigma_data**2 / v, rho * self.sigma_data / v.sqrt(), 1 / v.sqrt()

    def row(self, c: Coeffs) -> Row:
        """F = (x0 - c_skip z)/c_out with z = x0 + rho eps: p = rho c_in/sd, q = -sd c_in, finite at rho = 0."""
        rho = c.s / c.a
        c_in = self._scales(rho)[2]
        return Row(rho * c_in / self.sigma_data, -self.sigma_data * c_in, torch.zeros_like(c.a))

    def affine(self, c: Coeffs) -> Affine:
        """eps = ((1 - c_skip) z - c_out F)/rho, where (1 - c_skip)/rho and c_out/rho stay finite at rho = 0."""
        rho = c.s / c.a
        skip, out, c_in = self._scales(rho)
        eps_z, eps_out = self._eps_scales(rho, c_in)
        return Affine(skip / c.a, out, -skip * c.b / c.a, eps_z / c.a, eps_out, -eps_z * c.b / c.a)

    def _eps_scales(self, rho: Tensor, c_in: Tensor) -> tuple[Tensor, Tensor]:
        return rho * c_in**2, -self.sigma_data * c_in

    def input_scale(self, c: Coeffs) -> tuple[Tensor, Tensor]:
        i = self._scales(c.s / c.a)[2] / c.a
        return i, -i * c.b

    def label(self, t: Tensor, c: Coeffs) -> Tensor:
        return (c.s / c.a).clamp_min(1e-20).log().reshape(t.shape) / 4


@dataclass(frozen=True)
class ConsistencyPrecondition(EDMPrecondition):
    """Consistency models (arXiv:2303.01469, app. C): EDM scales shifted so that x0(x, rho_min) = z exactly.

    c_skip = sd^2/((rho - rho_min)^2 + sd^2),  c_out = sd (rho - rho_min)/sqrt(rho^2 + sd^2).
    """

    sigma_min: float = 0.002

    def _scales(self, rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shifted, v = rho - self.sigma_min, rho**2 + self.sigma_data**2
        skip = self.sigma_data**2 / (shifted**2 + self.sigma_data**2)
        return skip, self.sigma_data * shifted / v.sqrt(), 1 / v.sqrt()

    def row(self, c: Coeffs) -> Row:
        """F = (x0 - c_skip z)/c_out with z = x0 + rho eps; undefined at rho = rho_min, where x0 = z whatever F says."""
        rho = c.s / c.a
        skip, out, _ = self._scales(rho)
        return Row((1 - skip) / out, -skip * rho / out, torch.zeros_like(c.a))

    def _eps_scales(self, rho: Tensor, c_in: Tensor) -> tuple[Tensor, Tensor]:
        skip, out, _ = self._scales(rho)
        return (1 - skip) / rho, -out / rho


@dataclass(frozen=True)
class AnchoredPrecondition(Prediction):
    """EDM preconditioning with the anchor as mean, for paths with a + b = 1: d = x_t - y = a (x0 - y) + s eps.

    x0 = y + c_skip d + c_out F(c_in d),  c_skip = a r^2/v,  c_out = r s/sqrt(v),  c_in = 1/sqrt(v),  v = a^2 r^2 + s^2,
    with r = residual_std, the root mean square of x0 - y on the training set. A zero F gives the Wiener estimate.
    """

    residual_std: float = 0.1

    def _scales(self, c: Coeffs) -> tuple[Tensor, Tensor, Tensor]:
        """(c_skip, c_out, c_in)."""
        r = self.residual_std
        v = c.a**2 * r**2 + c.s**2
        return c.a * r**2 / v, r * c.s / v.sqrt(), 1 / v.sqrt()

    def row(self, c: Coeffs) -> Row:
        """F = ((x0 - y) - c_skip d)/c_out: p = (1 - a c_skip)/c_out = s/(r sqrt v), q = -s c_skip/c_out = -a r/sqrt v."""
        _, _, c_in = self._scales(c)
        p = c.s * c_in / self.residual_std
        return Row(p, -c.a * self.residual_std * c_in, -p)

    def affine(self, c: Coeffs) -> Affine:
        """eps = (d - a (x0 - y))/s = (s/v) d - (a r/sqrt v) F: finite at s = 0."""
        skip, out, c_in = self._scales(c)
        eps_d = c.s * c_in**2
        return Affine(skip, out, 1 - skip, eps_d, -c.a * self.residual_std * c_in, -eps_d)

    def input_scale(self, c: Coeffs) -> tuple[Tensor, Tensor]:
        i = self._scales(c)[2]
        return i, -i
