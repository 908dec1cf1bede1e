"""Wan2.1's transformer (arXiv:2503.20314): patches in space and time, rotary positions, cross-attention to text."""

from torch import Tensor, nn

from fewstep_video.nets.video_network import VideoNetwork, whole_patches


class Wan(VideoNetwork):
    """The default family: with patches of (2, 4, 4) the cheapest of diffusers' on a CPU. `t` may also be (B, tokens)."""

    kind = "WanTransformer3DModel"

    @staticmethod
    def text_width(model: nn.Module) -> int:
        return int(model.config.text_dim)  # pyright: ignore

    @property
    def patch(self) -> tuple[int, int, int]:
        """(frames, height, width) of a token."""
        return tuple(self.model.config.patch_size)  # pyright: ignore

    def call(self, x: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        return self.model(x, time, tokens, return_dict=False)[0]

    def fits(self, frames: int, height: int, width: int) -> str | None:
        longest = int(self.model.config.rope_max_seq_len)  # pyright: ignore
        patch = self.patch
        if max(frames // patch[0], height // patch[1], width // patch[2]) > longest:
            return f"this {self.kind} has positions for {longest} patches per axis; clips of {frames}x{height}x{width} have more"
        return whole_patches(self.kind, frames, height, width, patch)
