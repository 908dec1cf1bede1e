"""Photographs as training data for super-resolution: aligned crops of HR and its bicubic LR.

    lr = round8(matlab_bicubic(hr, 1/scale)) of the whole photograph, made once; crops are cut afterwards,
    so lr[i, j] always comes from hr[scale i : scale (i + 1), scale j : scale (j + 1)] and its true neighbours.

shapes: hr (3, H, W), lr (3, H/scale, W/scale), float32 in [-1, 1]; stored as uint8
"""

import warnings
from collections.abc import Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor

from fewstep_restoration.images import ImageError, list_photos, read_photo
from fewstep_restoration.resize import matlab_bicubic

WHEEL_HELD_OUT = ("astronaut", "chelsea", "coffee")
"""Kept for validation: the everyday photographs that are stored without loss and have no twin among the others."""

_WHEEL_FILES = (
    *("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "motorcycle_right.png"),
    *("retina.jpg", "hubble_deep_field.jpg", "ihc.png"),
)


class _Pair(NamedTuple):
    name: str
    hr: Tensor  # (3, H, W) uint8
    lr: Tensor  # (3, H/scale, W/scale) uint8


class PhotoPairs:
    """HR/LR pairs of photographs, decoded once, on first use.

    Args:
        paths: image files. Unreadable ones and those smaller than the crop are skipped, with one warning each that
            names the file. Alpha is ignored, grey is spread over three channels, 16 bits are rounded to 8.
        scale: super-resolution factor, an integer.
        crop: side of the HR crop in pixels, a multiple of scale.

    Raises:
        ValueError: scale or crop not allowed.
        ImageError: no paths; or, on first use, no usable photograph among them.
    """

    def __init__(self, paths: Sequence[str | Path], scale: int = 4, crop: int = 96) -> None:
        if scale < 1 or crop < 1 or crop % scale:
            raise ValueError(f"crop {crop} and scale {scale}; allowed: positive, crop a multiple of scale")
        if not paths:
            raise ImageError("no photographs given; allowed: at least one path")
        self.paths, self.scale, self.crop = [Path(p) for p in paths], scale, crop

    @classmethod
    def from_folder(cls, folder: str | Path, scale: int = 4, crop: int = 96, recursive: bool = False) -> Self:
        """All photographs of a folder. Raises ImageError when the folder is missing or holds none."""
        return cls(list_photos(folder, recursive), scale, crop)

    def __len__(self) -> int:
        """Number of usable photographs."""
        return len(self._pairs)

    @property
    def names(self) -> list[str]:
        """File names (without suffix) of the usable photographs, in the order of the indices."""
        return [pair.name for pair in self._pairs]

    def draw(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        """A random aligned crop of photograph `index` in one of the 8 symmetries of the square.

        Returns:
            hr (3, crop, crop) and lr (3, crop/scale, crop/scale), float32 in [-1, 1]. All randomness comes from
            `generator` (CPU): the same state gives the same crop.
        """
        pair, side = self._pairs[index], self.crop // self.scale
        top, left = (_below(n - side + 1, generator) for n in pair.lr.shape[-2:])
        symmetry = _below(8, generator)
        hr = _square(pair.hr, self.scale * top, self.scale * left, self.crop)
        lr = _square(pair.lr, top, left, side)
        return {"hr": _signed(_dihedral(hr, symmetry)), "lr": _signed(_dihedral(lr, symmetry))}

    def whole(self, index: int) -> dict[str, Tensor]:
        """The full photograph: hr (3, H, W) with H, W multiples of scale, lr (3, H/scale, W/scale), in [-1, 1]."""
        pair = self._pairs[index]
        return {"hr": _signed(pair.hr), "lr": _signed(pair.lr)}

    @cached_property
    def _pairs(self) -> list[_Pair]:
        pairs = []
        for path in self.paths:
            try:
                rgb = read_photo(path).rgb
            except ImageError as error:
                warnings.warn(f"skipped: {error}", stacklevel=3)
                continue
            height, width = rgb.shape[-2:]
            if min(height, width) < self.crop:
                what = f"{width} x {height} pixels, smaller than the crop"
                warnings.warn(f"skipped: {path}: {what}; allowed: sides of at least {self.crop}", stacklevel=3)
                continue
            pairs.append(_make_pair(path.stem, rgb, self.scale))
        if not pairs:
            raise ImageError(
                f"none of {len(self.paths)} files is usable, the first is {self.paths[0]}; "
                f"allowed: readable photographs with sides of at least {self.crop}"
            )
        return pairs


def wheel_photographs() -> dict[str, Path]:
    """Colour photographs inside the installed scikit-image wheel, name -> path; nothing is downloaded.

    astronaut, chelsea, coffee, rocket, motorcycle_left and motorcycle_right (one scene) are everyday photographs;
    retina, hubble_deep_field and ihc are scientific. Those this version of the wheel lacks are left out. Hold out
    `WHEEL_HELD_OUT`.

    Raises:
        ModuleNotFoundError: scikit-image is not installed.
    """
    folder = Path(str(resources.files("skimage"))) / "data"
    return {Path(name).stem: folder / name for name in _WHEEL_FILES if (folder / name).is_file()}


def _make_pair(name: str, rgb: Tensor, scale: int) -> _Pair:
    """(3, H, W) in [0, 1] -> uint8 pair, mod-cropped."""
    height, width = (n - n % scale for n in rgb.shape[-2:])
    hr = (rgb[:, :height, :width] * 255).round()
    # As MATLAB does on uint8: in double on 0..255 and halves away from zero, so that ties fall the same way.
    lr = (matlab_bicubic(hr[None].double(), 1 / scale)[0] + 0.5).floor().clamp(0, 255)
    return _Pair(name, hr.to(torch.uint8), lr.to(torch.uint8))


def _below(n: int, generator: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=generator))


def _square(x: Tensor, top: int, left: int, side: int) -> Tensor:
    return x[:, top : top + side, left : left + side]


def _dihedral(x: Tensor, symmetry: int) -> Tensor:
    """One of the 8 symmetries of the square: bit 0 mirrors left-right, bit 1 up-down, bit 2 transposes."""
    x = x.flip([d for bit, d in ((1, -1), (2, -2)) if symmetry & bit])
    return x.mT if symmetry & 4 else x


def _signed(x: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1], contiguous."""
    return (x.float() / 127.5 - 1).contiguous()
