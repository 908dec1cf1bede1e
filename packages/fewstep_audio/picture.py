"""Pictures of sound as PNG files, whole or not at all: a mel spectrogram above its wave; spectrograms one above the other."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep.whole_file import whole
from fewstep_audio.files import Audio
from fewstep_audio.mels import Mel

if TYPE_CHECKING:  # takes a second
    from matplotlib.figure import Figure

# dB beneath the loudest bin of all panels that are black.
RANGE = 80.0


def write_picture(file: str | Path, wave: Tensor, mel: Mel, title: str = "") -> None:
    """The mel of a wave (N,) at the mel's rate, above the wave."""
    figure = _figure(5)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    extent = (0.0, len(wave) / mel.rate, 0.0, float(mel.bands))
    above.imshow(mel(wave[None])[0].numpy(), origin="lower", aspect="auto", extent=extent, cmap="magma")
    above.set(ylabel="mel band", title=title)
    below.plot(torch.arange(len(wave)).numpy() / mel.rate, wave.numpy(), linewidth=0.5)
    below.set(xlabel="seconds", ylim=(-1, 1))
    with whole(file) as part:
        figure.savefig(part, format="png")


def write_spectrograms(file: str | Path, sounds: Mapping[str, Audio]) -> None:
    """`spectrograms`, as a file."""
    with whole(file) as part:
        part.write_bytes(spectrograms(sounds))


def spectrograms(sounds: Mapping[str, Audio]) -> bytes:
    """PNG: one panel per named sound (channels averaged), all in dB of the loudest bin among them."""
    powers = {name: _power(sound) for name, sound in sounds.items()}
    top = max(float(p.max()) for p in powers.values()) or 1.0
    figure = _figure(2.6 * len(sounds))
    axes = figure.subplots(len(sounds), 1, squeeze=False, sharex=True)
    for axis, (name, sound) in zip(axes[:, 0], sounds.items(), strict=True):
        level = 10 * (powers[name] / top).clamp_min(10 ** (-RANGE / 10)).log10()
        extent = (0.0, sound.seconds, 0.0, sound.rate / 2000)
        axis.imshow(level.numpy(), origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=-RANGE, vmax=0)
        axis.set(title=name, ylabel="kHz")
    axes[-1, 0].set_xlabel("s")
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _figure(height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(10, height), layout="constrained")


def _power(sound: Audio) -> Tensor:
    """|STFT|^2 with windows of about 32 ms: (F, T)."""
    n = max(2 ** round(torch.tensor(0.032 * sound.rate).log2().item()), 2)
    window = torch.hann_window(n)
    spec = torch.stft(sound.mono(), n, n // 4, window=window, pad_mode="constant", return_complex=True)
    return spec.abs().square()
