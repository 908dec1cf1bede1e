"""Audio files block by block, for sound of any length: memory holds one block."""

import os
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import soundfile
import torch
from torch import Tensor

from fewstep_audio.files import WRITE_SUFFIXES, AudioError, BitDepth, check_finite, check_readable, read_audio

_FORMATS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".mp3": "MP3"}
_SUBTYPES = {
    ".wav": {16: "PCM_16", 24: "PCM_24", "float": "FLOAT"},
    ".flac": {16: "PCM_16", 24: "PCM_24"},
    ".ogg": {16: "VORBIS"},
    ".mp3": {16: "MPEG_LAYER_III"},
}


class AudioInfo(NamedTuple):
    rate: int
    channels: int
    samples: int


def audio_info(path: str | Path) -> AudioInfo:
    """Rate in Hz, channels and samples per channel, from the header where soundfile reads it.

    Raises:
        AudioError: as `read_audio`.
    """
    path = Path(path)
    check_readable(path)
    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError:
        audio = read_audio(path)
        return AudioInfo(audio.rate, *audio.data.shape)
    return AudioInfo(info.samplerate, info.channels, info.frames)


def read_blocks(path: str | Path, block: int) -> Iterator[Tensor]:
    """The samples of a file as tensors (C, block), the last one shorter; files that only PyAV reads are decoded at once.

    Raises:
        AudioError: as `read_audio`; for nan and truncation once the bad block is reached.
    """
    if block < 1:
        raise ValueError(f"block is {block} samples; allowed: at least 1")
    path = Path(path)
    check_readable(path)
    try:
        file = soundfile.SoundFile(path)
    except soundfile.LibsndfileError:
        yield from read_audio(path).data.split(block, dim=1)
        return
    seen = 0
    with file:
        try:
            for part in file.blocks(block, dtype="float32", always_2d=True):
                wave = torch.from_numpy(np.ascontiguousarray(part.T))
                check_finite(wave, path)
                seen += wave.shape[1]
                yield wave
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{path}: damaged after {seen} samples ({error}); allowed: a complete file") from error
    if seen == 0:
        raise AudioError(f"{path}: holds no samples; allowed: at least one")


class AudioWriter:
    """An audio file that appears when the `with` block ends well, and not at all when it raises.

    Args:
        path: its extension chooses the format, as in `write_audio`.
        rate, channels: of the blocks to come.
        bit_depth: as in `write_audio`.

    Raises:
        AudioError: as `write_audio`.
    """

    def __init__(self, path: str | Path, rate: int, channels: int, bit_depth: BitDepth = 16) -> None:
        self.path, self.rate, self.channels, self.bit_depth = Path(path), rate, channels, bit_depth
        self.samples = self.clipped = 0
        self.suffix = self.path.suffix.lower()
        if self.suffix not in WRITE_SUFFIXES:
            raise AudioError(
                f"{path}: cannot write {self.suffix or 'no extension'}; allowed: {' '.join(WRITE_SUFFIXES)}"
            )
        if bit_depth not in _SUBTYPES[self.suffix]:
            allowed = ", ".join(map(str, _SUBTYPES[self.suffix]))
            raise AudioError(f"{path}: bit depth {bit_depth}; allowed for {self.suffix}: {allowed}")
        if not self.path.parent.is_dir():
            raise AudioError(f"{path}: folder {self.path.parent} does not exist; allowed: an existing folder")
        self._temporary = self.path.parent / f".{uuid.uuid4().hex}.tmp"

    def __enter__(self) -> Self:
        subtype, kind = _SUBTYPES[self.suffix][self.bit_depth], _FORMATS[self.suffix]
        try:
            self._file = soundfile.SoundFile(self._temporary, "w", self.rate, self.channels, subtype, format=kind)
        except (soundfile.LibsndfileError, OSError) as error:
            self._temporary.unlink(missing_ok=True)
            raise AudioError(
                f"{self.path}: {self.channels} channels at {self.rate} Hz cannot be written as {kind} ({error})"
            ) from error
        return self

    def write(self, block: Tensor) -> None:
        """Append (C, n) samples in [-1, 1]; what lies outside is clipped and counted. Raises AudioError on nan, inf, other channels."""
        if block.ndim != 2 or len(block) != self.channels:
            raise AudioError(f"{self.path}: a block of shape {tuple(block.shape)}; allowed: ({self.channels}, samples)")
        block = block.detach().float().cpu()
        check_finite(block, self.path)
        self.samples += block.shape[1]
        self.clipped += int((block.abs() > 1).sum())
        self._file.write(block.clamp(-1, 1).T.numpy())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
            if kind is None:
                os.replace(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)
        if kind is None and self.clipped:
            share = self.clipped / (self.samples * self.channels)
            warnings.warn(f"{self.path}: {share:.2%} of the samples lay outside [-1, 1] and were clipped", stacklevel=2)
