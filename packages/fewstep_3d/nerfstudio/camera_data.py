"""The data manager of `fewstep-distill`: no pictures, only random cameras around objects of random classes, as the teacher's rig has them.

`--data` is the artifact of the teacher (or its hub id), a multi-view model of classes.
"""
# pyright: reportMissingImports=false

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras as NerfstudioCameras
from nerfstudio.data.datamanagers.base_datamanager import DataManager, DataManagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.scene_box import SceneBox
from torch.nn import Parameter

from fewstep.artifacts import ArtifactError
from fewstep_3d.multi_view import MultiViewGenerator, pretrained_views
from fewstep_3d.nerfstudio.camera_conversion import to_nerfstudio

LACKS = "--data is needed: the artifact of a multi-view teacher (`fewstep fit -c recipes/3d/shapes_teacher.yaml` trains one)"


@dataclass
class CameraDataManagerConfig(DataManagerConfig):
    """Random cameras of a teacher's rig"""

    _target: type = field(default_factory=lambda: CameraDataManager)
    objects: int = 6
    """Objects per iteration, each of a random class."""
    looks: int = 1
    """Rigs per object: as many as the student has evaluations, of which each is looked at by its own."""


class CameraDataManager(DataManager):
    """See the module."""

    config: CameraDataManagerConfig

    def __init__(self, config: CameraDataManagerConfig, device: torch.device | str = "cpu", **kwargs: Any) -> None:
        self.config, self.device_of_rays = config, device
        teacher = teacher_at(config.data)
        self.rig, self.classes = teacher.rig, teacher.net.classes
        cameras = to_nerfstudio(self.rig.draw(1))
        box = SceneBox(aabb=torch.tensor([[-1.0] * 3, [1.0] * 3]))
        told = {"teacher": str(config.data), "classes": self.classes, "looks": config.looks}
        outputs = DataparserOutputs(image_filenames=[], cameras=cameras, scene_box=box, metadata=told)
        self.train_dataset = InputDataset(outputs)
        super().__init__()

    def setup_train(self) -> None:
        """Nothing is to be read."""

    def setup_eval(self) -> None:
        """There is no evaluation data."""

    def next_train(self, step: int) -> tuple[NerfstudioCameras, dict[str, torch.Tensor]]:
        """(cameras of all objects, look after look; {"label": (objects,)})."""
        self.train_count += 1
        c = self.config
        labels = torch.randint(self.classes, (c.objects,))
        cameras = self.rig.draw(c.looks * c.objects)
        return to_nerfstudio(cameras).to(self.device_of_rays), {"label": labels.to(self.device_of_rays)}

    def next_eval(self, step: int) -> tuple[NerfstudioCameras, dict[str, torch.Tensor]]:
        """As for training."""
        return self.next_train(step)

    def next_eval_image(self, step: int) -> tuple[NerfstudioCameras, dict[str, torch.Tensor]]:
        """As for training."""
        return self.next_train(step)

    def get_train_rays_per_batch(self) -> int:
        """Of all objects' views."""
        return self.config.looks * self.config.objects * self.rig.views * self.rig.size**2

    def get_eval_rays_per_batch(self) -> int:
        """The same."""
        return self.get_train_rays_per_batch()

    def get_datapath(self) -> Path:
        """The teacher."""
        return self.config.data or Path()

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """None."""
        return {}


def teacher_at(source: Path | None) -> MultiViewGenerator:
    """A multi-view teacher of classes; SystemExit with one line where there is none, since ns-train would show a stack trace."""
    if source is None:
        raise SystemExit(f"fewstep-distill: {LACKS}")
    try:
        teacher = pretrained_views(str(source))
    except ArtifactError as err:
        raise SystemExit(f"fewstep-distill: {err}") from err
    if not teacher.net.classes or set(teacher.net.wanted) - {"label", "camera"}:
        wanted = ", ".join(teacher.net.wanted)
        raise SystemExit(f"fewstep-distill: {source} is told {wanted}; a teacher of classes (label, camera) is needed")
    return teacher
