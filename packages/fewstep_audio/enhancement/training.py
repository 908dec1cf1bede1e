"""Train enhancers: the published losses of SGMSE+, the Schroedinger bridge and StoRM.

    score   1/2 |s_t score + z|^2,  z the complex noise of variance 1           (SGMSE+, arXiv:2208.05830)
    data    1/2 |x_hat - x0|^2 + l1 |wave(x_hat) - clean|                       (SB-VE, arXiv:2409.10753; l1 = 0.001)
    storm   alpha L + (1 - alpha) 1/2 |D(y) - x0|^2                             (StoRM, arXiv:2212.11851; alpha = 1/2)

All |.|^2 are complex and meant over the bins (the papers sum the score's), the waves are at the level of the network, means over samples.
Without an objective the loss is the core's denoising regression in the prediction's own units (`AnchoredPrecondition`: the EDM weighting
that SGMSE's second version offers beside its own).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from fewstep.distances import L1, SquaredL2
from fewstep.estimate import Estimate
from fewstep.generator import Prepared
from fewstep.train.denoising import Denoising, denoising_loss
from fewstep.train.shell import Batch, Terms
from fewstep_audio.enhancement.enhancer import Enhancer, peak
from fewstep_audio.enhancement.storm import Storm


@dataclass(frozen=True)
class Objective(ABC):
    """loss(model, estimate of x_t, x0, eps, batch) -> (B,)."""

    @abstractmethod
    def __call__(self, model: Enhancer, estimate: Estimate, x0: Tensor, eps: Tensor, batch: Batch) -> Tensor: ...


@dataclass(frozen=True)
class ScoreMatching(Objective):
    """1/2 |s score + z|^2 = 1/2 mean (eps_hat - eps)^2 over both parts of all bins: z = eps/sqrt 2, s score = -eps_hat/sqrt 2."""

    def __call__(self, model: Enhancer, estimate: Estimate, x0: Tensor, eps: Tensor, batch: Batch) -> Tensor:
        return SquaredL2()(estimate.eps, eps) / 2


@dataclass(frozen=True)
class DataPrediction(Objective):
    """1/2 |x_hat - x0|^2, which is the mean over both parts of all bins, plus l1 times the L1 distance of the waves."""

    l1: float = 0.001

    def __call__(self, model: Enhancer, estimate: Estimate, x0: Tensor, eps: Tensor, batch: Batch) -> Tensor:
        clean = batch["clean"] / peak(batch["noisy"])
        return SquaredL2()(estimate.x0, x0) + self.l1 * L1()(model.decode(estimate.x0, clean.shape[1]), clean)


class Enhancing(Denoising):
    """Train an enhancer on batches {"clean": (B, N), "noisy": (B, N)}.

    Args:
        objective: the loss; the core's denoising regression unless given.
        student, iterations, times: see `Denoising`.
    """

    student: Enhancer

    def __init__(self, student: Enhancer, iterations: int, objective: Objective | None = None, **kwargs: Any) -> None:
        super().__init__(student, iterations, **kwargs)
        self.objective = objective

    def loss(self, batch: Batch) -> Terms:
        """The objective at times drawn by `times`."""
        return {"denoising": self.denoising(self.student, self.student.prepare(batch), batch).mean()}

    def denoising(self, model: Enhancer, data: Prepared, batch: Batch) -> Tensor:
        """The objective of a prepared batch, (B,)."""
        x0, cond, y = data
        t, eps = self.times(len(x0), model.denoiser.path).to(x0.device), torch.randn_like(x0)
        if self.objective is None:
            return denoising_loss(model.denoiser, x0, eps, t, cond, y)
        x_t = model.denoiser.path.sample(x0, eps, t, y)
        return self.objective(model, model.denoiser(x_t, t, cond, y), x0, eps, batch)

    def evaluate(self, model: torch.nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The objective on held-out speech, and the scores of what the model makes of it."""
        model = cast(Enhancer, model)
        return {"denoising": self.denoising(model, model.prepare(batch), batch)} | model.scores(batch)


class StormTraining(Enhancing):
    """Train both stages of StoRM together; the loss of the second stage reaches the first through the anchor.

    Args:
        alpha: weight of the second stage.
        student, iterations, objective, times: see `Enhancing`.
    """

    student: Storm  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, student: Storm, iterations: int, alpha: float = 0.5, **kwargs: Any) -> None:
        super().__init__(student, iterations, **kwargs)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is the share of the second stage, in [0, 1], not {alpha}")
        self.alpha = alpha

    def loss(self, batch: Batch) -> Terms:
        """The terms of both stages."""
        data = self.student.prepare(batch)
        assert data.y is not None
        return {
            "denoising": self.alpha * self.denoising(self.student, data, batch).mean(),
            "predictive": (1 - self.alpha) * SquaredL2()(data.y, data.x0).mean(),
        }
