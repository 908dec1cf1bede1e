"""The autoencoders of Wan, CogVideoX, and, frame by frame, of Stable Diffusion (ModelScope, AnimateDiff).

Latents are the means of the encoder, in the units that the pipelines give the networks.
"""

import torch
from torch import Tensor

from fewstep_video.codecs.codec import Codec, compressed


class WanCodec(Codec):
    """z = (mean - latents_mean)/latents_std of each channel; 4n+1 frames become n+1 (with the temporal strides of the checkpoint)."""

    kind = "AutoencoderKLWan"

    def encode(self, video: Tensor) -> Tensor:
        mean, std = self._units(video)
        return (self.model.encode(video).latent_dist.mode() - mean) / std  # pyright: ignore

    def decode(self, latents: Tensor) -> Tensor:
        mean, std = self._units(latents)
        return self.model.decode(latents * std + mean).sample  # pyright: ignore

    def _units(self, like: Tensor) -> tuple[Tensor, Tensor]:
        c = self.model.config
        mean, std = (torch.tensor(v, dtype=like.dtype, device=like.device) for v in (c.latents_mean, c.latents_std))  # pyright: ignore
        return mean[:, None, None, None], std[:, None, None, None]

    def shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        c = self.model.config
        time, space = 2 ** sum(c.temperal_downsample), 2 ** (len(c.dim_mult) - 1)  # pyright: ignore
        return c.z_dim, *compressed(self.kind, (frames, height, width), time, space)  # pyright: ignore


class CogVideoXCodec(Codec):
    """z = scaling_factor mean; 8n+1 frames become 2n+1: of an even number of latents the decoder makes more frames than there were."""

    kind = "AutoencoderKLCogVideoX"

    def encode(self, video: Tensor) -> Tensor:
        return self.model.encode(video).latent_dist.mode() * self.model.config.scaling_factor  # pyright: ignore

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents / self.model.config.scaling_factor).sample  # pyright: ignore

    def shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        c = self.model.config
        space = 2 ** (len(c.block_out_channels) - 1)  # pyright: ignore
        time = int(c.temporal_compression_ratio)  # pyright: ignore
        return c.latent_channels, *compressed(self.kind, (frames, height, width), time, space, 2 * time)  # pyright: ignore


class FrameCodec(Codec):
    """Each frame by itself, z = scaling_factor mean."""

    kind = "AutoencoderKL"

    def encode(self, video: Tensor) -> Tensor:
        return self._frames(
            video,
            lambda x: self.model.encode(x).latent_dist.mode() * self.model.config.scaling_factor,  # pyright: ignore
        )

    def decode(self, latents: Tensor) -> Tensor:
        return self._frames(
            latents,
            lambda z: self.model.decode(z / self.model.config.scaling_factor).sample,  # pyright: ignore
        )

    @staticmethod
    def _frames(video: Tensor, of) -> Tensor:  # noqa: ANN001
        # One frame at a time: memory does not grow with the length.
        return torch.stack([of(frame) for frame in video.unbind(2)], 2)

    def shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        c = self.model.config
        space = 2 ** (len(c.block_out_channels) - 1)  # pyright: ignore
        return c.latent_channels, frames, *compressed(self.kind, (1, height, width), 1, space)[1:]  # pyright: ignore
