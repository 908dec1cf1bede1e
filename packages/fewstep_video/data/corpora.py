"""Folders of videos: which files there are, and what each shows."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep_video.files import SUFFIXES, VideoError, list_videos
from fewstep_video.texts import WordVectors, stored_text


class Item(NamedTuple):
    """A file and its condition: a label (), or a text (L, D)."""

    path: Path
    value: Tensor


@dataclass(frozen=True)
class Corpus(ABC):
    """The videos of a folder."""

    folder: str

    condition = "label"

    @abstractmethod
    def items(self) -> list[Item]:
        """All files in a fixed order. Raises VideoError where there are none."""

    def names(self) -> Sequence[str]:
        """Of the classes, in the order of the labels; none of texts."""
        return ()


@dataclass(frozen=True)
class ClassFolders(Corpus):
    """folder/CLASS/*.mp4 and so on: the class is the folder's name."""

    def names(self) -> Sequence[str]:
        """Raises VideoError where there is no folder, or none with videos in it."""
        folder = Path(self.folder)
        if not folder.is_dir():
            raise VideoError(f"{folder}: no such folder; allowed: a folder of class folders")
        found = [p.name for p in sorted(folder.iterdir()) if p.is_dir() and _holds_videos(p)]
        if not found:
            raise VideoError(f"{folder}: no folder with videos in it; allowed: one folder for each class")
        return found

    def items(self) -> list[Item]:
        found = enumerate(self.names())
        return [Item(p, torch.tensor(i)) for i, name in found for p in list_videos(Path(self.folder) / name)]


@dataclass(frozen=True)
class ClassFiles(Corpus):
    """One file a class, named by it: `again.mkv`. Where several begin alike, `again_2.mkv`, they are one class, `again`."""

    def names(self) -> Sequence[str]:
        return sorted({self._name(p) for p in list_videos(self.folder)})

    def items(self) -> list[Item]:
        names = self.names()
        return [Item(p, torch.tensor(names.index(self._name(p)))) for p in list_videos(self.folder)]

    @staticmethod
    def _name(path: Path) -> str:
        return path.stem.rstrip("0123456789").rstrip("_-") or path.stem


@dataclass(frozen=True)
class Captioned(Corpus):
    """A text beside every video: the words of `clip.txt`, or the embeddings `text` (L, D) of `clip.safetensors`, which go first.

    Args:
        words: what makes tokens of words.
    """

    words: WordVectors = field(default_factory=WordVectors)

    condition = "text"

    def items(self) -> list[Item]:
        """Raises VideoError of a video without a text, or of texts of different sizes; TextError of unusable ones."""
        found = [Item(p, self._text(p)) for p in list_videos(self.folder, recursive=True)]
        odd = next((i for i in found if i.value.shape != found[0].value.shape), None)
        if odd is not None:
            sizes = f"{tuple(odd.value.shape)}, {found[0].path.name} has {tuple(found[0].value.shape)}"
            raise VideoError(f"{odd.path}: its text is {sizes}; allowed: one size")
        return found

    def _text(self, path: Path) -> Tensor:
        if (file := path.with_suffix(".safetensors")).is_file():
            return stored_text(file)
        if (file := path.with_suffix(".txt")).is_file():
            return self.words(file.read_text(encoding="utf-8", errors="replace"))
        raise VideoError(f"{path}: no text; allowed: {path.stem}.txt or {path.stem}.safetensors beside it")


def _holds_videos(folder: Path) -> bool:
    return any(p.suffix.lower() in SUFFIXES for p in folder.iterdir())
