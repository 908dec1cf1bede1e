"""Where a video model's states are latents: pixels to latents and back."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Codec(nn.Module, ABC):
    """Frozen: its weights belong to the generator's artifact, and nothing trains them."""

    @abstractmethod
    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) in [-1, 1] -> latents (B, C, f, h, w), of about unit variance."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """The reverse, not clamped."""

    @abstractmethod
    def frames(self, latent_frames: int) -> int:
        """Frames of a clip of so many latent ones."""
