"""TrigFlow's network (arXiv:2410.11081): input and output of unit variance, x0 = cos(t) x - sin(t) sd F(x/sd, t)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.paths import Coeffs
from fewstep.prediction import Prediction, Row


@dataclass(frozen=True)
class TrigFlow(Prediction):
    """F = u/sd, the velocity in units of sd = sigma_data; for the path Trig(sigma_data)."""

    sigma_data: float = 1.0

    def row(self, c: Coeffs) -> Row:
        return Row(c.da / self.sigma_data, c.ds / self.sigma_data, c.db / self.sigma_data)

    def input_scale(self, c: Coeffs) -> tuple[Tensor, Tensor]:
        return torch.full_like(c.a, 1 / self.sigma_data), torch.zeros_like(c.a)
