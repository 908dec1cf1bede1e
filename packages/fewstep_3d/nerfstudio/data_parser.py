"""The data parser `fewstep-data`: what `fewstep mesh fit` reads, pictures in the Blender or nerfstudio layout around one object.

    train    transforms_train.json, or transforms.json
    val      transforms_val.json, or transforms_test.json;   test: the other way round

Where a folder has none but the first, every n-th of its pictures is held out. The scene box is the cube [-1, 1]^3; positions are scaled so
that the median training camera is at distance 3, unless a scale is given.
"""
# pyright: reportMissingImports=false

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.plugins.registry_dataparser import DataParserSpecification
from PIL import Image
from torch import Tensor

from fewstep_3d.mesh_views import held_out
from fewstep_3d.nerfstudio.camera_conversion import to_nerfstudio
from fewstep_3d.transforms import Frames, TransformsError, behind_of, read_frames, transforms_file

TRAIN = ("transforms_train.json", "transforms.json")
HELD_OUT = {
    "train": ("transforms_val.json", "transforms_test.json"),
    "val": ("transforms_val.json", "transforms_test.json"),
    "test": ("transforms_test.json", "transforms_val.json"),
}
MODES = ("L", "RGB", "RGBA")


@dataclass
class ViewsParserConfig(DataParserConfig):
    """Pictures of one object with transforms.json, as `fewstep mesh fit` reads them"""

    _target: type = field(default_factory=lambda: ViewsParser)
    data: Path = Path("data")
    """Folder with transforms.json or transforms_train.json."""
    background: Literal["black", "white"] | None = None
    """What is behind the object. Needed for pictures without alpha; those with alpha are put before the model's background otherwise."""
    scale: float | None = None
    """Of the positions; where not given, so that the median training camera is at distance 3."""
    held_out: int = 6
    """Pictures kept for evaluation, evenly among the others, where the folder has no split of its own."""


class ViewsParser(DataParser):
    """See the module."""

    config: ViewsParserConfig

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: object) -> DataparserOutputs:
        """SystemExit with one line for folders that cannot be used: ns-train would show a stack trace of any other error."""
        try:
            return self._outputs(split)
        except TransformsError as err:
            raise SystemExit(f"fewstep-data: {err}") from err

    def _outputs(self, split: str) -> DataparserOutputs:
        folder, config = self.config.data, self.config
        frames = read_frames(transforms_file(folder, TRAIN), config.scale)
        scale, count = frames.scale, len(frames.images)
        others = [folder / name for name in HELD_OUT[split] if (folder / name).is_file()]
        own = torch.arange(count) if others else self._part(count, split)
        if others and split != "train":
            frames = read_frames(others[0], scale)
            own = torch.arange(len(frames.images))
        metadata: dict[str, object] = {}
        if config.background is not None or not frames.alpha:
            metadata["background"] = behind_of(frames, config.background)
        _check_modes(frames)
        return DataparserOutputs(
            image_filenames=[frames.images[i] for i in own.tolist()],
            cameras=to_nerfstudio(frames.cameras[own]),
            scene_box=SceneBox(aabb=torch.tensor([[-1.0] * 3, [1.0] * 3])),
            metadata=metadata,
            dataparser_scale=scale,
        )

    def _part(self, count: int, split: str) -> Tensor:
        """Which pictures of a file without companions; where too few are there to hold some out, all are trained on and judged by."""
        held = held_out(count, self.config.held_out)
        if split != "train":
            return held if len(held) else torch.arange(count)
        rest = torch.ones(count, dtype=torch.bool)
        rest[held] = False
        return rest.nonzero()[:, 0]


def _check_modes(frames: Frames) -> None:
    for path in frames.images:
        with Image.open(path) as image:
            if image.mode not in MODES:
                raise TransformsError(
                    f"{path}: a picture of mode {image.mode}; nerfstudio takes 8-bit ones of {', '.join(MODES)}"
                )


VIEWS = DataParserSpecification(
    ViewsParserConfig(), "Pictures of one object (Blender or nerfstudio layout) in the cube [-1, 1]^3."
)
