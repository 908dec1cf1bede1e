"""Recorded pairs of clean and degraded speech: the layout of sp-uhh/sgmse (train, valid, test / clean, noisy), or two folders."""

import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep_audio.data.recordings import SILENT
from fewstep_audio.files import AudioError, list_audio, read_audio
from fewstep_audio.resample import resample


class PairPath(NamedTuple):
    clean: Path
    noisy: Path


def match_folders(clean: str | Path, noisy: str | Path) -> list[PairPath]:
    """Files of equal name (without extension) in two folders, by name; those without a partner are named and skipped.

    Raises:
        AudioError: a folder is missing or empty, or no names agree.
    """
    cleans, noisies = ({p.stem: p for p in list_audio(folder)} for folder in (clean, noisy))
    for name in sorted(set(cleans) ^ set(noisies)):
        alone = cleans.get(name) or noisies[name]
        warnings.warn(f"skipped: {alone}: no partner in {noisy if name in cleans else clean}", stacklevel=2)
    pairs = [PairPath(cleans[name], noisies[name]) for name in sorted(set(cleans) & set(noisies))]
    if not pairs:
        raise AudioError(f"{clean} and {noisy}: no two files of one name; allowed: clean/NAME.wav and noisy/NAME.wav")
    return pairs


def sgmse_parts(root: str | Path) -> tuple[list[PairPath], list[PairPath]]:
    """Training and validation pairs of root/train/{clean,noisy} and root/valid/{clean,noisy} (or test, where there is no valid).

    A root that holds clean and noisy themselves gives every tenth pair (at least one) to validation.

    Raises:
        AudioError: no such layout, or a single pair.
    """
    root = Path(root)
    if (root / "clean").is_dir() and (root / "noisy").is_dir():
        pairs = match_folders(root / "clean", root / "noisy")
        if len(pairs) < 2:
            raise AudioError(f"{root}: one pair; allowed: at least two, or train and valid")
        return [p for i, p in enumerate(pairs) if i % 10], pairs[::10]
    held = "valid" if (root / "valid").is_dir() else "test"
    for part in ("train", held):
        if not (root / part / "clean").is_dir() or not (root / part / "noisy").is_dir():
            raise AudioError(
                f"{root}: no {part}/clean and {part}/noisy; allowed: train and valid (or test), or clean and noisy"
            )
    return tuple(match_folders(root / part / "clean", root / part / "noisy") for part in ("train", held))  # pyright: ignore[reportReturnType]


class NoisyPairs:
    """Pairs, decoded when drawn; a `Drawable` of crops {"clean", "noisy"}: (samples,) each.

    Pairs that cannot be read, are silent or differ in length or rate are named and skipped when they are first drawn; the next takes
    their place. Shorter ones are followed by zeros.

    Args:
        paths: of the pairs.
        rate: to which both are resampled, by one kernel.
        samples: of a crop.

    Raises:
        AudioError: no pairs; on drawing, none usable.
    """

    def __init__(self, paths: list[PairPath], rate: int, samples: int) -> None:
        if not paths:
            raise AudioError("no pairs given; allowed: at least one")
        self.paths, self.rate, self.samples = paths, rate, samples
        self._bad: set[int] = set()

    def __len__(self) -> int:
        return len(self.paths)

    def whole(self, index: int) -> dict[str, Tensor]:
        """Pair `index` (or the next usable) in full length, {"clean", "noisy"}: (N,)."""
        for i in (*range(index, len(self)), *range(index)):
            if i in self._bad:
                continue
            try:
                return self._read(self.paths[i])
            except AudioError as error:
                self._bad.add(i)
                warnings.warn(f"skipped: {error}", stacklevel=2)
        raise AudioError(f"none of {len(self)} pairs is usable, the first is {self.paths[0].clean}")

    def draw(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The same random stretch of both."""
        pair = self.whole(index)
        spare = len(pair["clean"]) - self.samples
        start = int(torch.randint(max(spare, 0) + 1, (), generator=generator))
        both = {k: v[start : start + self.samples] for k, v in pair.items()}
        return {k: torch.nn.functional.pad(v, (0, self.samples - len(v))) for k, v in both.items()}

    def _read(self, paths: PairPath) -> dict[str, Tensor]:
        clean, noisy = read_audio(paths.clean), read_audio(paths.noisy)
        if (clean.rate, clean.data.shape[1]) != (noisy.rate, noisy.data.shape[1]):
            sizes = " and ".join(f"{a.data.shape[1]} samples at {a.rate} Hz" for a in (clean, noisy))
            raise AudioError(f"{paths.clean} and {paths.noisy}: {sizes}; allowed: equal lengths and rates")
        if clean.mono().abs().max() < SILENT:
            raise AudioError(f"{paths.clean}: silent; allowed: sound")
        return {
            "clean": resample(clean.mono(), clean.rate, self.rate),
            "noisy": resample(noisy.mono(), noisy.rate, self.rate),
        }
