"""LTX-Video's transformer (arXiv:2501.00103): packed tokens, rotary positions in pixels and seconds."""

import torch
from einops import rearrange
from torch import Tensor, nn

from fewstep_video.nets.video_network import VideoNetwork, whole_patches


class LTX(VideoNetwork):
    """x (B, C, F, H, W) is cut into tokens of `patch_size_t` x `patch_size` x `patch_size`; in_channels counts a whole token."""

    kind = "LTXVideoTransformer3DModel"

    @staticmethod
    def text_width(model: nn.Module) -> int:
        return int(model.config.caption_channels)  # pyright: ignore

    @property
    def patch(self) -> tuple[int, int, int]:
        """(frames, height, width) of a token."""
        c = self.model.config
        return c.patch_size_t, c.patch_size, c.patch_size  # pyright: ignore

    def call(self, x: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        """LTX takes and gives a sequence of patches; clips go in and come out whole."""
        (a, b, c), (f, h, w) = self.patch, x.shape[2:]
        grid = {"f": f // a, "h": h // b, "w": w // c}
        packed = rearrange(x, "n k (f a) (h b) (w c) -> n (f h w) (k a b c)", a=a, b=b, c=c)
        seen = torch.ones(tokens.shape[:2], dtype=torch.long, device=x.device)
        out = self.model(
            packed,
            tokens,
            time,
            seen,
            num_frames=grid["f"],
            height=grid["h"],
            width=grid["w"],
            return_dict=False,
        )[0]
        return rearrange(out, "n (f h w) (k a b c) -> n k (f a) (h b) (w c)", a=a, b=b, c=c, **grid)

    def fits(self, frames: int, height: int, width: int) -> str | None:
        return whole_patches(self.kind, frames, height, width, self.patch)
