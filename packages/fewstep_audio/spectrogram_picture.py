"""Spectrograms of sounds one above the other, as a PNG."""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch

from fewstep_audio.files import Audio

# dB beneath the loudest bin of all panels that are black.
RANGE = 80.0


def draw_spectrograms(sounds: Mapping[str, Audio], file: str | Path) -> None:
    """One panel per named sound (channels averaged), all in dB of the loudest bin among them; whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    file, powers = Path(file), {name: _power(sound) for name, sound in sounds.items()}
    top = max(float(p.max()) for p in powers.values()) or 1.0
    figure = Figure(figsize=(10, 2.6 * len(sounds)), layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.subplots(len(sounds), 1, squeeze=False, sharex=True)
    for axis, (name, sound) in zip(axes[:, 0], sounds.items(), strict=True):
        level = 10 * (powers[name] / top).clamp_min(10 ** (-RANGE / 10)).log10()
        extent = (0.0, sound.seconds, 0.0, sound.rate / 2000)
        axis.imshow(level.numpy(), origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=-RANGE, vmax=0)
        axis.set(title=name, ylabel="kHz")
    axes[-1, 0].set_xlabel("s")
    part = file.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        canvas.print_png(str(part))
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def _power(sound: Audio) -> torch.Tensor:
    """|STFT|^2 with windows of about 32 ms: (F, T)."""
    n = max(2 ** round(torch.tensor(0.032 * sound.rate).log2().item()), 2)
    window = torch.hann_window(n)
    spec = torch.stft(sound.mono(), n, n // 4, window=window, pad_mode="constant", return_complex=True)
    return spec.abs().square()
