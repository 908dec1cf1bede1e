"""A frozen network with something small beside it that is trained: low-rank adapters (lora.py), negative_branch.py."""

import copy
from abc import ABC, abstractmethod
from typing import Any, Self, TypeVar

import torch
from torch import nn

from fewstep.nets.frozen import refreeze

M = TypeVar("M", bound=nn.Module)


class Wrapper(nn.Module):
    """A network around `net`, whose attributes it has too: `classes`, `scalars` and what else is asked of networks."""

    net: nn.Module

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            net = self.__dict__.get("_modules", {}).get("net")
            if net is None:
                raise
            return getattr(net, name)


class Adapter(Wrapper, ABC):
    """Subclasses say what is trained; all other parameters are the base, which nothing changes.

    Deep copies (averages, targets, the teachers of stages) share the base: its weights are in memory once.
    """

    @abstractmethod
    def adapter_parameters(self) -> list[nn.Parameter]:
        """What is trained."""

    def base_parameters(self) -> list[nn.Parameter]:
        """What stays as it is."""
        trained = {id(p) for p in self.adapter_parameters()}
        return [p for p in self.parameters() if id(p) not in trained]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo |= {id(p): p for p in self.base_parameters()}
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__dict__, memo))
        return new


def trainable(module: M) -> M:
    """Set requires_grad as a training of this module needs it: on its adapters alone if it has any, else everywhere
    but in `Frozen` parts."""
    adapters = [m for m in module.modules() if isinstance(m, Adapter)]
    module.requires_grad_(not adapters)
    for adapter in adapters:
        for p in adapter.adapter_parameters():
            p.requires_grad_(True)
    return refreeze(module)


def check_copy(net: nn.Module, of: nn.Module) -> None:
    """Raise ValueError unless net has all weights of the other network; it may have further ones."""
    held = net.state_dict()
    for name, value in of.state_dict().items():
        if name not in held or not torch.equal(held[name], value):
            raise ValueError(f"adapters go on the teacher's own weights; the student's `{name}` differs from them")
