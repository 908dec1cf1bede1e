"""A picture of sound: its mel spectrogram above its wave."""

import os
import uuid
from pathlib import Path

import torch
from torch import Tensor

from fewstep_audio.mels import Mel


def write_picture(file: str | Path, wave: Tensor, mel: Mel, title: str = "") -> None:
    """PNG of a wave (N,) at the mel's rate, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    file = Path(file)
    seconds = len(wave) / mel.rate
    figure = Figure(figsize=(10, 5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    extent = (0.0, seconds, 0.0, float(mel.bands))
    above.imshow(mel(wave[None])[0].numpy(), origin="lower", aspect="auto", extent=extent, cmap="magma")
    above.set(ylabel="mel band", title=title)
    below.plot(torch.arange(len(wave)).numpy() / mel.rate, wave.numpy(), linewidth=0.5)
    below.set(xlabel="seconds", ylim=(-1, 1))
    temporary = file.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        canvas.print_png(str(temporary))
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
