"""How clean speech becomes the degraded speech that enhancement starts from."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep_audio.data.noise import Babble, Coloured, Noise, White, mix
from fewstep_audio.data.recordings import Recordings


class Degradation(ABC):
    @abstractmethod
    def __call__(self, clean: Tensor, recordings: Recordings, index: int, generator: torch.Generator) -> Tensor:
        """(N,) -> (N,); `clean` comes from recording `index`. All randomness comes from the generator."""


class AddedNoise(Degradation):
    """One kind of noise, drawn at random, at an SNR drawn uniformly.

    Args:
        low, high: bounds of the SNR in dB.
        noises: the kinds; white, coloured and babble where not given.
    """

    def __init__(self, low: float = -2.0, high: float = 12.0, noises: Sequence[Noise] | None = None) -> None:
        if low > high:
            raise ValueError(f"SNR from {low} to {high} dB; allowed: low <= high")
        self.low, self.high, self.noises = low, high, noises

    def __call__(self, clean: Tensor, recordings: Recordings, index: int, generator: torch.Generator) -> Tensor:
        kinds = self.noises or (White(), Coloured(), Babble())
        kind = kinds[int(torch.randint(len(kinds), (), generator=generator))]
        snr = self.low + (self.high - self.low) * float(torch.rand((), generator=generator))
        return mix(clean, kind.draw(len(clean), recordings, index, generator), snr)
