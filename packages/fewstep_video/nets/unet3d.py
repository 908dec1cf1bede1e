"""ModelScope's text-to-video UNet (arXiv:2308.06571): convolutions and attention over frames between those of images."""

from torch import Tensor, nn

from fewstep_video.nets.video_network import VideoNetwork, whole_patches


class UNet3D(VideoNetwork):
    """The model repeats texts for its frames itself."""

    kind = "UNet3DConditionModel"

    @staticmethod
    def text_width(model: nn.Module) -> int:
        return int(model.config.cross_attention_dim)  # pyright: ignore

    def call(self, x: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        return self.model(x, time, tokens, return_dict=False)[0]

    def fits(self, frames: int, height: int, width: int) -> str | None:
        halvings = 2 ** (len(self.model.config.block_out_channels) - 1)  # pyright: ignore
        return whole_patches(self.kind, frames, height, width, (1, halvings, halvings))
