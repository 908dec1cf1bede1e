"""Endless samples of exact worlds, for toy recipes: a ring of Gaussians, and correlated ones in many dimensions."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fewstep.paths import RectifiedFlow
from fewstep.toy import Mixture, correlated, orbits, ring
from fewstep.train.data import EndlessData


class _Draws:
    """Fresh samples of a world, with the components they come from."""

    def __init__(self, world: Mixture) -> None:
        self.world = world

    def batch(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        x0, label = self.world.draw_labelled(n, generator)
        return {"x0": x0.float(), "label": label}


class MixtureData(EndlessData, ABC):
    """Batches {"x0": (B, D), "label": (B,)} of a mixture; the label is the component. 1024 fixed samples validate."""

    def __init__(self, batch_size: int = 256, seed: int = 0) -> None:
        super().__init__(batch_size, seed=seed)

    @property
    @abstractmethod
    def world(self) -> Mixture:
        """What is drawn from."""

    @property
    def train(self) -> _Draws:  # pyright: ignore[reportIncompatibleVariableOverride]
        return _Draws(self.world)

    def val_dataloader(self) -> DataLoader:
        held_out = _Draws(self.world).batch(1024, torch.Generator().manual_seed(12345))
        rows = [{k: v[i] for k, v in held_out.items()} for i in range(1024)]
        return DataLoader(rows, batch_size=1024)  # pyright: ignore[reportArgumentType]


class RingData(MixtureData):
    """`toy.ring`: `modes` Gaussians of deviation `std` on a circle of `radius` in the plane."""

    def __init__(
        self, modes: int = 8, radius: float = 2.0, std: float = 0.1, batch_size: int = 256, seed: int = 0
    ) -> None:
        super().__init__(batch_size, seed)
        self.modes, self.radius, self.std = modes, radius, std

    @property
    def world(self) -> Mixture:
        return ring(RectifiedFlow(), self.modes, self.radius, self.std)


class OrbitData(MixtureData):
    """`toy.orbits`: sequences of `frames` points that go round a ring of `modes`."""

    def __init__(
        self, frames: int = 4, modes: int = 8, std: float = 0.2, rho: float = 0.9, batch_size: int = 256, seed: int = 0
    ) -> None:
        super().__init__(batch_size, seed)
        self.frames, self.modes, self.std, self.rho = frames, modes, std, rho

    @property
    def world(self) -> Mixture:
        return orbits(RectifiedFlow(), self.frames, self.modes, std=self.std, rho=self.rho)


class CorrelatedData(MixtureData):
    """`toy.correlated`: `modes` Gaussians in `dim` dimensions, each long in eight directions."""

    def __init__(self, dim: int = 64, modes: int = 10, batch_size: int = 256, seed: int = 0) -> None:
        super().__init__(batch_size, seed)
        self.dim, self.modes = dim, modes

    @property
    def world(self) -> Mixture:
        return correlated(RectifiedFlow(), self.dim, self.modes)
