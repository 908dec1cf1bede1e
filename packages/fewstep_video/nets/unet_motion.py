"""AnimateDiff's UNet (arXiv:2307.04725): a UNet of images with motion modules between its blocks."""

from torch import Tensor, nn

from fewstep_video.nets.video_network import VideoNetwork, whole_patches


class UNetMotion(VideoNetwork):
    """Texts are repeated for every frame here: the model's cross-attention takes one per image. At most `motion_max_seq_length` frames."""

    kind = "UNetMotionModel"

    @staticmethod
    def text_width(model: nn.Module) -> int:
        return int(model.config.cross_attention_dim)  # pyright: ignore

    def call(self, x: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        return self.model(x, time, tokens.repeat_interleave(x.shape[2], 0), return_dict=False)[0]

    def fits(self, frames: int, height: int, width: int) -> str | None:
        most = int(self.model.config.motion_max_seq_length)  # pyright: ignore
        if frames > most:
            return f"this {self.kind} takes at most {most} frames, not {frames}"
        halvings = 2 ** (len(self.model.config.block_out_channels) - 1)  # pyright: ignore
        return whole_patches(self.kind, frames, height, width, (1, halvings, halvings))
