"""Read and write audio files: wav, flac, ogg, mp3 through soundfile; what it cannot decode (m4a, webm, ...) through PyAV where installed.

The content decides how a file is read, its extension how it is written. `streams.py` holds the same for files that do not fit in memory.
"""

import struct
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import soundfile
import torch
from torch import Tensor

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aif", ".aiff", ".au")  # soundfile's
AV_SUFFIXES = (".m4a", ".aac", ".mp4", ".webm", ".wma", ".mka")  # PyAV's
WRITE_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")

BitDepth: TypeAlias = Literal[16, 24, "float"]
_ALLOWED = f"a file of sound with at least one sample, {' '.join(SUFFIXES)}"


class AudioError(ValueError):
    """Sound that cannot be read, written or used. One line: the file, what is wrong, what is allowed."""


@dataclass(frozen=True, eq=False)
class Audio:
    """Sound.

    Attributes:
        data: (C, N) float32, full scale [-1, 1].
        rate: samples per second.
    """

    data: Tensor
    rate: int

    def __post_init__(self) -> None:
        if self.data.ndim != 2 or not self.data.is_floating_point():
            raise AudioError(
                f"audio has shape {tuple(self.data.shape)} of {self.data.dtype}; allowed: (channels, samples) of floats"
            )
        if self.rate < 1:
            raise AudioError(f"audio has a rate of {self.rate} Hz; allowed: at least 1")

    def mono(self) -> Tensor:
        """Mean of the channels, (N,)."""
        return self.data.mean(0)

    @property
    def seconds(self) -> float:
        return self.data.shape[1] / self.rate


def read_audio(path: str | Path) -> Audio:
    """All of one file, at its own rate and with all its channels.

    Raises:
        AudioError: missing, empty, truncated or unknown file; no samples; nan or inf in float files.
    """
    path = Path(path)
    check_readable(path)
    try:
        data, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        data, rate = _read_with_av(path, error)
    wave = torch.from_numpy(np.ascontiguousarray(data.T))
    if wave.shape[1] == 0:
        raise AudioError(f"{path}: holds no samples; allowed: {_ALLOWED}")
    check_finite(wave, path)
    return Audio(wave, rate)


def write_audio(path: str | Path, audio: Audio, bit_depth: BitDepth = 16) -> None:
    """Write one file, whole or not at all; the extension chooses wav, flac, ogg (vorbis) or mp3.

    Values outside [-1, 1] are clipped, with a warning that says how many.

    Args:
        bit_depth: 16 or 24 bits for wav and flac, "float" for wav; ogg and mp3 have none and take 16 alone.

    Raises:
        AudioError: extension or bit depth not allowed, no samples, nan or inf, missing folder, a rate or number of channels that
            the format lacks.
    """
    from fewstep_audio.streams import AudioWriter

    if audio.data.shape[1] == 0:
        raise AudioError(f"{path}: nothing to write; allowed: at least one sample")
    with AudioWriter(path, audio.rate, len(audio.data), bit_depth) as writer:
        writer.write(audio.data)


def list_audio(folder: str | Path, recursive: bool = False) -> list[Path]:
    """Sorted paths of the audio files in `folder` (and below it if `recursive`), by extension; names that start with a dot are left out.

    Raises:
        AudioError: the folder is missing, is a file, or holds no audio.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AudioError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}; allowed: a folder")
    found = folder.rglob("*") if recursive else folder.iterdir()
    suffixes = SUFFIXES + AV_SUFFIXES
    paths = [p for p in found if p.suffix.lower() in suffixes and not p.name.startswith(".") and p.is_file()]
    if not paths:
        below = " or below" if recursive else ""
        raise AudioError(f"{folder}: no audio in it{below}; allowed: at least one of {' '.join(SUFFIXES)}")
    return sorted(paths)


def check_readable(path: Path) -> None:
    """Raises AudioError where the path is no file, is empty, or is a wav file that ends before its header says."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise AudioError(f"{path}: {what}; allowed: {_ALLOWED}")
    size = path.stat().st_size
    if size == 0:
        raise AudioError(f"{path}: the file is empty; allowed: {_ALLOWED}")
    promised = _riff_end(path)
    if promised > size:
        raise AudioError(f"{path}: truncated, {size} of {promised} bytes; allowed: a complete file")


def check_finite(wave: Tensor, path: str | Path) -> None:
    """Raises AudioError naming the file where a sample is nan or inf."""
    if not bool(wave.isfinite().all()):
        raise AudioError(f"{path}: holds nan or inf; allowed: finite samples")


def _riff_end(path: Path) -> int:
    """Where the samples of a RIFF wav file should end, in bytes; 0 for other files and for those written as a stream."""
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return 0
        while len(chunk := file.read(8)) == 8:
            name, length = chunk[:4], struct.unpack("<I", chunk[4:])[0]
            if name == b"data":  # a writer that cannot seek leaves the length at its largest value
                return 0 if length >= 0xFFFFFF00 else file.tell() + length
            file.seek(length + length % 2, 1)
    return 0


def _read_with_av(path: Path, error: Exception) -> tuple[np.ndarray, int]:
    """(N, C) float32 and rate, by PyAV's bundled FFmpeg."""
    reason = str(error).rstrip(".").split(": ")[-1]
    if find_spec("av") is None:
        also = f"; {' '.join(AV_SUFFIXES)} with the package av" if path.suffix.lower() in AV_SUFFIXES else ""
        raise AudioError(f"{path}: cannot be read ({reason}); allowed: {_ALLOWED}{also}") from error
    import av  # pyright: ignore[reportMissingImports]
    from av.error import FFmpegError  # pyright: ignore[reportMissingImports]

    try:
        with av.open(str(path)) as container:
            stream = container.streams.audio[0]
            planar = av.AudioResampler(format="fltp")  # (C, n) float32 in [-1, 1], whatever the codec's own samples are
            parts = [part for frame in container.decode(stream) for part in planar.resample(frame)]
            data = np.concatenate([part.to_ndarray() for part in (*parts, *planar.resample(None))], axis=1)
            return data.T, int(stream.rate)
    except (FFmpegError, IndexError, ValueError) as failed:
        raise AudioError(f"{path}: cannot be read ({reason}); allowed: {_ALLOWED}") from failed
