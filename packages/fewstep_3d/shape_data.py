"""Data of multi-view models: stacks of views of procedural shapes, or of the meshes of a folder, rendered once and held in memory.

Batches {"x0": (B, 4 V, H, W), "camera": (B, V, 16), "label": (B,), "image": (B, 4, H, W), "text": (B, D)}; `image` is a further view of the same object.
Validation batches also hold "inside": (B, M, G, G, G), the insides of members of each label's class.
"""

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fewstep.train.data import EndlessData
from fewstep_3d.cameras import orbit
from fewstep_3d.fields import Grid as FieldGrid
from fewstep_3d.fields import corners
from fewstep_3d.mesh_files import FORMATS, MeshError, normalised, read_mesh
from fewstep_3d.metrics import signed_distance
from fewstep_3d.multi_view import stacked
from fewstep_3d.opacity import NeuS
from fewstep_3d.renderer import Renderer
from fewstep_3d.rigs import Rig
from fewstep_3d.samplers import Stratified
from fewstep_3d.shapes import SHAPES, members
from fewstep_3d.texts import hashed

PHRASES = ("{}", "a {}", "one {}", "a picture of a {}", "the shape of a {}")


class _Stacks:
    """Rendered stacks as columns."""

    def __init__(self, columns: dict[str, Tensor]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["label"])

    def rows(self, index: list[int]) -> dict[str, Tensor]:
        return {k: v[index] for k, v in self.columns.items()}


class ShapeViews(EndlessData):
    """Views of shapes.

    Args:
        classes: procedural classes, by name, in the order of their labels; without `meshes`.
        meshes: a folder of watertight meshes in place of them, each a class of its own, in alphabetical order; y_up: they stand along y.
        per_class: rendered stacks of each class. More looks at procedural shapes are of other members, at meshes from other sides.
        rig: of the cameras; renderer: with normals, the same as the student's.
        side: corners per axis of the grids that are rendered, and of the insides.
        batch_size: of training; members: of each class, that generated shapes are compared with.
        images: batches hold a further view, from any azimuth at an elevation of the rig.
        text: batches hold texts as vectors of this size: the class's name in some phrase; 0 for none.
        seed: of shapes, rigs and order.
    """

    def __init__(
        self,
        classes: tuple[str, ...] = tuple(SHAPES),
        meshes: str | None = None,
        y_up: bool = False,
        per_class: int = 150,
        rig: Rig | None = None,
        renderer: Renderer | None = None,
        side: int = 28,
        batch_size: int = 32,
        members: int = 48,
        images: bool = False,
        text: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, seed=seed)
        unknown = sorted(set(classes) - set(SHAPES))
        if unknown or not classes or per_class < 1:
            raise ValueError(f"classes are some of {', '.join(SHAPES)}, not {', '.join(unknown) or 'none'}")
        self.classes, self.meshes, self.y_up, self.per_class, self.side = tuple(classes), meshes, y_up, per_class, side
        self.rig, self.renderer = rig or Rig(), renderer or Renderer(NeuS(20.0), Stratified(28), normals=True)
        self.members, self.images, self.text = members, images, text

    def setup(self, stage: str | None = None) -> None:
        """Render everything.

        Raises:
            MeshError: no meshes in the folder, open ones.
        """
        if hasattr(self, "train"):
            return
        generator = torch.Generator().manual_seed(self.seed)
        labels = range(len(self.names))
        columns = [self.looked_at(self.objects(i, self.per_class, generator), i, generator) for i in labels]
        self.train = _Stacks({k: torch.cat([c[k] for c in columns]) for k in columns[0]})
        # What validation compares with are other draws than training's; a mesh is the only one of its class.
        generator, count = torch.Generator().manual_seed(self.seed + 1), self.members if self.meshes is None else 1
        self.inside = torch.stack([self.objects(i, count, generator) for i in labels]) < 0

    @cached_property
    def sources(self) -> tuple[tuple[str, ...], dict[str, Tensor]]:
        """Names of the classes, and the signed distances (1, G, G, G) of those that are meshes (seconds each, so once)."""
        if self.meshes is None:
            return self.classes, {}
        files = sorted(f for f in Path(self.meshes).glob("*") if f.suffix.lower() in FORMATS)
        if not files:
            raise MeshError(f"{self.meshes}: no meshes ({' '.join(FORMATS)})")
        points = corners(self.side, torch.zeros(())).view(-1, 3).double().numpy()
        fields = {}
        for file in files:
            mesh = normalised(read_mesh(file, self.y_up))
            mesh.merge_vertices(merge_tex=True, merge_norm=True)  # seams of textures are no holes
            if not mesh.is_watertight:
                raise MeshError(f"{file}: the mesh is open; a teacher's meshes are watertight")
            d = signed_distance(mesh, points)
            fields[file.stem] = torch.from_numpy(np.asarray(d)).float().view(1, *[self.side] * 3)
        return tuple(fields), fields

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes."""
        return self.sources[0]

    def objects(self, label: int, count: int, generator: torch.Generator) -> Tensor:
        """Signed distances (N, G, G, G) of random members of a class; a mesh is always the same."""
        name, fixed = self.names[label], self.sources[1]
        if name in fixed:
            return fixed[name].expand(count, -1, -1, -1)
        return members(name, count, self.side, generator)

    @torch.no_grad()
    def looked_at(self, sdf: Tensor, label: int, generator: torch.Generator, chunk: int = 16) -> dict[str, Tensor]:
        """Columns of objects with these signed distances (N, G, G, G)."""
        found: list[dict[str, Tensor]] = []
        for part in sdf.split(chunk):
            n = len(part)
            grid, cameras = FieldGrid(part[:, None].contiguous()), self.rig.draw(n, generator)
            columns: dict[str, Tensor] = {
                "x0": stacked(self.renderer.views(grid, cameras, n)),
                "camera": self.rig.told(cameras),
                "label": torch.full((n,), label),
            }
            if self.images:
                columns["image"] = self._further(grid, n, generator)
            if self.text:
                which = torch.randint(len(PHRASES), (n,), generator=generator).tolist()
                texts = [hashed(PHRASES[i].format(self.names[label]), self.text) for i in which]
                columns["text"] = torch.stack(texts)
            found.append(columns)
        return {k: torch.cat([c[k] for c in found]) for k in found[0]}

    def _further(self, grid: FieldGrid, n: int, generator: torch.Generator) -> Tensor:
        low, high = self.rig.elevations
        u = torch.rand(n, 2, generator=generator)
        cameras = orbit(
            360 * u[:, 0], low + (high - low) * u[:, 1], self.rig.distance, self.rig.fov, (self.rig.size, self.rig.size)
        )
        return stacked(self.renderer.views(grid, cameras, n))

    def val_dataloader(self) -> DataLoader:
        """One batch: a fresh stack of every class, and the members of all."""
        generator = torch.Generator().manual_seed(self.seed + 2)
        looks = [self.looked_at(self.objects(i, 1, generator), i, generator) for i in range(len(self.names))]
        batch = {k: torch.cat([c[k] for c in looks]) for k in looks[0]} | {"inside": self.inside}
        return DataLoader([batch], batch_size=None)  # pyright: ignore[reportArgumentType]
