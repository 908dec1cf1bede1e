"""One object as a triplane field: what `mesh fit` trains and artifacts hold."""

import torch
import trimesh
from torch import nn

from fewstep_3d.fields import Field, Grid
from fewstep_3d.meshes import extracted
from fewstep_3d.triplane import TriplaneDecoder


class Scene(nn.Module):
    """Planes and their decoder.

    Args:
        decoder: from planes to a field.
        resolution: R of the planes.
    Raises:
        ValueError: a resolution below 2.
    """

    def __init__(self, decoder: TriplaneDecoder, resolution: int = 64) -> None:
        super().__init__()
        if resolution < 2:
            raise ValueError(f"planes have at least 2x2 pixels, not {resolution}x{resolution}")
        self.decoder, self.resolution = decoder, resolution
        self.planes = nn.Parameter(0.1 * torch.randn(1, 3, decoder.channels, resolution, resolution))

    def grid(self, side: int) -> Grid:
        """The field at the corners of a grid, trained through."""
        return self.decoder.tabulate(self.planes, side)

    def field(self) -> Field:
        """The exact field."""
        return self.decoder.field(self.planes)

    @torch.no_grad()
    def mesh(self, side: int = 96) -> trimesh.Trimesh:
        """Its surface with vertex colours. Raises FieldError where there is none."""
        return extracted(self.grid(side))
