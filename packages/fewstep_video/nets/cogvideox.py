"""CogVideoX's transformer (arXiv:2408.06072): text and video tokens in one attention, learnt or rotary positions."""

import torch
from torch import Tensor, nn

from fewstep_video.nets.video_network import VideoNetwork, whole_patches


class CogVideoX(VideoNetwork):
    """Frames come before channels, text before time. Learnt positions fix size and frames: `sample_width`, `sample_height`, `sample_frames`.

    With `use_rotary_positional_embeddings` (the 5B model) the positions of the grid of x are computed here.
    """

    kind = "CogVideoXTransformer3DModel"

    @staticmethod
    def text_width(model: nn.Module) -> int:
        return int(model.config.text_embed_dim)  # pyright: ignore

    def call(self, x: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        rotary = self.rotary(x) if self.model.config.use_rotary_positional_embeddings else None  # pyright: ignore
        out = self.model(x.transpose(1, 2), tokens, time, image_rotary_emb=rotary, return_dict=False)[0]
        return out.transpose(1, 2)

    def rotary(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin) of the positions of x's tokens, at the scale of the sample size (as the pipeline has them)."""
        from diffusers.models.embeddings import get_3d_rotary_pos_embed

        c = self.model.config
        patch = c.patch_size  # pyright: ignore
        rows, columns, frames = x.shape[3] // patch, x.shape[4] // patch, x.shape[2]  # pyright: ignore
        base = c.sample_height // patch, c.sample_width // patch  # pyright: ignore
        top, left = (max(b - n, 0) // 2 for b, n in zip(base, (rows, columns), strict=True))
        cos, sin = get_3d_rotary_pos_embed(
            embed_dim=c.attention_head_dim,  # pyright: ignore
            crops_coords=((top, left), (top + rows, left + columns)),
            grid_size=(rows, columns),
            temporal_size=frames,
            device=x.device,
        )
        return torch.as_tensor(cos), torch.as_tensor(sin)

    def fits(self, frames: int, height: int, width: int) -> str | None:
        c = self.model.config
        if c.patch_size_t is not None:  # pyright: ignore
            return f"{self.kind} with patches in time (CogVideoX 1.5) is not supported; allowed: patch_size_t of none"
        learnt = c.use_learned_positional_embeddings or not c.use_rotary_positional_embeddings  # pyright: ignore
        least = (c.sample_frames - 1) // c.temporal_compression_ratio + 1, c.sample_height, c.sample_width  # pyright: ignore
        if learnt and (frames, height, width) != least and c.use_learned_positional_embeddings:  # pyright: ignore
            return f"this {self.kind} has learnt positions for clips of {least[0]}x{least[1]}x{least[2]}, not {frames}x{height}x{width}"
        return whole_patches(self.kind, frames, height, width, (1, c.patch_size, c.patch_size))  # pyright: ignore
