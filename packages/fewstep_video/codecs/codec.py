"""Where a video model's states are latents: pixels to latents and back."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from fewstep.nets.frozen import Frozen
from fewstep_video.model_config import model_config


class Codec(Frozen, ABC):
    """An autoencoder of diffusers, frozen: its weights belong to the generator's artifact.

    Args:
        config: arguments of the autoencoder's class.
    """

    kind: ClassVar[str]

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = model_config(config)
        self.model: nn.Module = getattr(import_module("diffusers"), self.kind)(**self.config)
        self.requires_grad_(False).eval()

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """The codec of an existing autoencoder, whose weights are taken over."""
        config = {k: v for k, v in model.config.items() if not k.startswith("_")}  # pyright: ignore
        codec = cls(config)
        codec.model.load_state_dict(model.state_dict())
        return codec

    @abstractmethod
    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) in [-1, 1] -> latents (B, C, f, h, w), of about unit variance."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """The reverse, not clamped."""

    @abstractmethod
    def shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, f, h, w) of the latents of a clip.

        Raises:
            ValueError: a size that it cannot take, with the nearest that it can.
        """


def compressed(
    kind: str, size: tuple[int, int, int], time: int, space: int, unit: int | None = None
) -> tuple[int, int, int]:
    """(f, h, w) of a causal autoencoder, whose first frame stands alone: f = 1 + (frames - 1)/time; `unit`: of the other frames, `time` at least.

    Raises:
        ValueError: other sizes.
    """
    frames, height, width = size
    unit = unit or time
    if (frames - 1) % unit or height % space or width % space or min(size) < 1:
        near = 1 + max(0, round((frames - 1) / unit)) * unit, *(max(space, round(n / space) * space) for n in size[1:])
        given, allowed = ("x".join(map(str, s)) for s in (size, near))
        raise ValueError(
            f"{kind} takes {unit}n+1 frames and sides that are multiples of {space}: not {given}, the nearest is {allowed}"
        )
    return 1 + (frames - 1) // time, height // space, width // space
