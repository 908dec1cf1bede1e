"""Train a classifier, for judging samples: cross-entropy on images with a little noise."""

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fewstep.train.schedules import Schedule
from fewstep.train.shell import Batch, Shell, Terms


class Classification(Shell):
    """Batches {"x0": (B, ...), "label": (B,)}; the student gives logits (B, K).

    Args:
        noise: standard deviation of the noise on training images, so that its features do not hang on single grey levels.
    """

    def __init__(
        self,
        student: nn.Module,
        iterations: int,
        noise: float = 0.2,
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule | None = None,
        grad_clip: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(student, iterations, optimizer, schedule, grad_clip, seed)
        self.noise = noise

    def loss(self, batch: Batch) -> Terms:
        x = batch["x0"] + self.noise * torch.randn_like(batch["x0"])
        return {"cross_entropy": cross_entropy(self.student(x), batch["label"])}

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy and accuracy on held-out images."""
        logits, label = model(batch["x0"]), batch["label"]
        right = (logits.argmax(1) == label).float()
        return {"cross_entropy": cross_entropy(logits, label, reduction="none"), "accuracy": right}
