"""What rendering distillation asks of a teacher: cameras to look with, renders in its own space, conditions with the views in them."""

from abc import ABC, abstractmethod

from torch import Tensor

from fewstep.denoiser import Cond
from fewstep.generator import Generator
from fewstep_3d.cameras import Cameras
from fewstep_3d.renderer import Rendered
from fewstep_3d.rigs import Rig


class ViewTeacher(Generator, ABC):
    """A diffusion model of views of an object; states are (B, V C, h, w)."""

    rig: Rig

    @abstractmethod
    def see(self, rendered: Rendered) -> Tensor:
        """Rendered views (B, V, H, W, ...) as clean data of this model, trained through."""

    @abstractmethod
    def told(self, cond: Cond, cameras: Cameras) -> Cond:
        """Conditions of B objects and B V cameras, object after object, as this model is told them."""
