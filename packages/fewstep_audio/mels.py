"""Mel spectrograms: the named front ends of public vocoders, value for value.

    M = log(max(F |STFT(x)|, clamp)),   |z| = sqrt(re^2 + im^2 + eps)

`hifigan_22k` (jik876/hifi-gan meldataset.py; also Matcha-TTS and CoMoSpeech), `bigvgan_24k` (NVIDIA/BigVGAN, PeriodWave) and
`encodec_24k` (PeriodWave's frame rate of EnCodec): librosa's Slaney filters, N / hop frames. `vocos_24k` (gemelo-ai/vocos):
torchaudio's HTK filters, N / hop + 1 frames. `digits_8k`: for spoken digits. Networks that normalise a mel keep mean and std themselves.

shapes: wave (B, N) in [-1, 1], mel (B, bands, T)
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Literal

import numpy as np
import torch
import torchaudio.functional as AF
from torch import Tensor
from torch.nn.functional import pad

from fewstep_audio.files import AudioError


@dataclass(frozen=True)
class Mel:
    """A mel front end; plain values only, so that artifacts hold it.

    Args:
        rate: of the wave, in Hz.
        n_fft, win, hop: in samples; periodic Hann window of `win`.
        bands: of the mel scale between `low` and `high` Hz.
        filters: "slaney": Slaney's scale, triangles of unit area; "htk": HTK's scale, triangles of unit height.
        eps: beneath the root of the magnitude.
        log: "ln" or "log10".
        clamp: smallest filtered magnitude.
        framing: "same": reflected by (n_fft - hop) / 2 at both ends, N // hop frames; "centre": by n_fft / 2, N // hop + 1 frames.
    """

    rate: int
    n_fft: int
    win: int
    hop: int
    bands: int
    low: float
    high: float
    filters: Literal["slaney", "htk"] = "slaney"
    eps: float = 1e-9
    log: Literal["ln", "log10"] = "ln"
    clamp: float = 1e-5
    framing: Literal["same", "centre"] = "same"

    def __post_init__(self) -> None:
        if not 0 < self.hop <= self.win <= self.n_fft or (self.n_fft - self.hop) % 2:
            raise ValueError(
                f"n_fft, win, hop are {self.n_fft}, {self.win}, {self.hop}; allowed: 0 < hop <= win <= n_fft, n_fft - hop even"
            )
        if not 0 <= self.low < self.high <= self.rate / 2 or self.bands < 1 or self.clamp <= 0:
            raise ValueError(
                f"{self.bands} bands from {self.low} to {self.high} Hz, clamp {self.clamp}; "
                f"allowed: at least 1 band, 0 <= low < high <= {self.rate / 2:g}, clamp > 0"
            )
        for name, allowed in (("filters", _EDGES), ("log", _LOGS), ("framing", ("same", "centre"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")

    def __call__(self, wave: Tensor) -> Tensor:
        """(B, N) -> (B, bands, T), T = self.frames(N); differentiable. Clips shorter than the reflection are followed by zeros first.

        Raises:
            AudioError: no samples, or not (B, N).
        """
        if wave.ndim != 2 or wave.shape[1] == 0:
            raise AudioError(f"the wave has shape {tuple(wave.shape)}; allowed: (batch, samples), at least one sample")
        edge = (self.n_fft - self.hop if self.framing == "same" else self.n_fft) // 2
        frames = self.frames(wave.shape[1])
        if wave.shape[1] < max(edge + 1, self.hop):
            wave = pad(wave, (0, max(edge + 1, self.hop) - wave.shape[1]))
        wave = pad(wave[:, None], (edge, edge), mode="reflect")[:, 0]
        window = _on(_window(self.win), wave)
        spec = torch.stft(wave, self.n_fft, self.hop, self.win, window, center=False, return_complex=True)
        size = (spec.real.square() + spec.imag.square() + self.eps).sqrt() if self.eps else spec.abs()
        return _LOGS[self.log]((_on(_filters(self), wave) @ size).clamp(min=self.clamp))[..., :frames]

    def frames(self, samples: int) -> int:
        """Number of frames of so many samples; at least one."""
        return max(samples // self.hop, 1) if self.framing == "same" else samples // self.hop + 1

    def linear(self, mel: Tensor) -> Tensor:
        """The mel without its logarithm: filtered magnitudes."""
        return mel.exp() if self.log == "ln" else 10**mel

    @property
    def floor(self) -> float:
        """The smallest value of a mel: log of `clamp`."""
        return math.log(self.clamp) if self.log == "ln" else math.log10(self.clamp)

    @property
    def matrix(self) -> Tensor:
        """The filters F, (bands, n_fft/2 + 1)."""
        return _filters(self)

    @property
    def window(self) -> Tensor:
        """(win,)."""
        return _window(self.win)

    @property
    def name(self) -> str:
        """That of the preset, or a description."""
        names = [name for name, preset in PRESETS.items() if preset == self]
        return names[0] if names else f"custom ({self.rate} Hz, {self.bands} bands, hop {self.hop})"

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a hash of all parameters, filter matrix and window.

        Matrix and window are those of the definition in float64, rounded to float32, so that machines whose float32 arithmetic
        differs in the last digit agree.
        """
        own = asdict(self)  # 4000 and 4000.0 are one preset
        own |= {f.name: float(own[f.name]) for f in fields(self) if f.type in (float, "float")}
        parts = json.dumps(own, sort_keys=True).encode(), _triangles(self).tobytes(), _hann(self.win).tobytes()
        return hashlib.blake2b(b"|".join(parts), digest_size=8).hexdigest()

    def check(self, other: "Mel", where: str) -> None:
        """Two models can be chained when their mels are the same.

        Raises:
            AudioError: they are not; the message names both and `where`.
        """
        if self.fingerprint != other.fingerprint:
            ours, theirs = asdict(self), asdict(other)
            differ = ", ".join(f"{k} {ours[k]} / {theirs[k]}" for k in ours if ours[k] != theirs[k])
            raise AudioError(
                f"{where}: mel {self.name} [{self.fingerprint}] does not fit mel {other.name} [{other.fingerprint}] ({differ}); "
                "allowed: two models of one mel"
            )


def _slaney_edges(low: float, high: float, points: int) -> np.ndarray:
    """Hz; linear below 1000 Hz with 200/3 Hz per mel, logarithmic above with 27 mel per factor 6.4."""
    step, start, log_step = 200 / 3, 1000.0, np.log(6.4) / 27

    def to_mel(hz: float) -> float:
        return hz / step if hz < start else start / step + np.log(hz / start) / log_step

    mel = np.linspace(to_mel(low), to_mel(high), points)
    return np.where(mel < start / step, step * mel, start * np.exp(log_step * (mel - start / step)))


def _htk_edges(low: float, high: float, points: int) -> np.ndarray:
    """Hz, from mel = 2595 log10(1 + f / 700)."""
    first, last = (2595 * np.log10(1 + hz / 700) for hz in (low, high))
    mel = np.linspace(first, last, points)
    return 700 * (10 ** (mel / 2595) - 1)


_EDGES = {"slaney": _slaney_edges, "htk": _htk_edges}
_LOGS = {"ln": torch.log, "log10": torch.log10}


def _triangles(mel: Mel) -> np.ndarray:
    """(bands, n_fft/2 + 1) float32, bit for bit librosa.filters.mel where the filters are Slaney's (without its seconds of import)."""
    hz = np.linspace(0, mel.rate / 2, mel.n_fft // 2 + 1)
    edges = _EDGES[mel.filters](mel.low, mel.high, mel.bands + 2)
    away, width = edges[:, None] - hz, np.diff(edges)[:, None]
    up, down = -away[:-2] / width[:-1], away[2:] / width[1:]
    rows = np.maximum(0, np.minimum(up, down)).astype(np.float32)
    if mel.filters == "slaney":
        rows *= (2 / (edges[2:] - edges[:-2]))[:, None]
    return rows


def _hann(win: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(win) / win)).astype(np.float32)


@cache
def _filters(mel: Mel) -> Tensor:
    """The matrix in use: torchaudio rounds the edges of its HTK filters to float32, which moves log mels by 3e-5."""
    if mel.filters == "htk":
        return AF.melscale_fbanks(
            mel.n_fft // 2 + 1, mel.low, mel.high, mel.bands, mel.rate, None, "htk"
        ).T.contiguous()
    return torch.from_numpy(_triangles(mel))


@cache
def _window(win: int) -> Tensor:
    return torch.hann_window(win)


def _on(constant: Tensor, like: Tensor) -> Tensor:
    return constant.to(like.device, like.dtype)


PRESETS = {
    "hifigan_22k": Mel(22050, 1024, 1024, 256, 80, 0, 8000),
    "bigvgan_24k": Mel(24000, 1024, 1024, 256, 100, 0, 12000),
    "vocos_24k": Mel(24000, 1024, 1024, 256, 100, 0, 12000, filters="htk", eps=0.0, clamp=1e-7, framing="centre"),
    "encodec_24k": Mel(24000, 1280, 1280, 320, 100, 0, 12000),
    "digits_8k": Mel(8000, 512, 512, 128, 40, 0, 4000, log="log10", clamp=1e-3),
}
"""By name. Where a name is all that a user gives, `PRESETS[name]`."""
