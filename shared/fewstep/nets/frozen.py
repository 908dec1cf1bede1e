"""A part of a generator that no training changes, such as the autoencoder of a latent model."""

from typing import Any, Self, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


class Frozen(nn.Module):
    """Its parameters never require gradients, it is always in evaluation mode, and deep copies (averages, critics) share it."""

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        return super().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def refreeze(module: M) -> M:
    """Undo what `module.requires_grad_()` did to frozen parts: it asks for parameters, not for modules."""
    for part in module.modules():
        if isinstance(part, Frozen):
            part.requires_grad_()
    return module
