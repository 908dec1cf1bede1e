"""Video models in diffusers' folders as generators: Wan, CogVideoX, LTX (network alone), ModelScope, AnimateDiff.

    folder/transformer or unet      the network: its class is in config.json
    folder/scheduler                path, prediction and time grid
    folder/vae                      the codec, where pixels are wanted

Text encoders are not used: texts come as embeddings (`Captioned` reads them beside the clips). Weights are read from safetensors alone.
"""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from fewstep.artifacts import ArtifactError
from fewstep.denoiser import Denoiser
from fewstep.integrations.diffusers_config import read
from fewstep.lora import LoRA, LowRank
from fewstep_video.codecs import Codec, CogVideoXCodec, FrameCodec, WanCodec
from fewstep_video.cogvideox_schedule import SCHEDULERS, read_cogvideox
from fewstep_video.nets import LTX, CogVideoX, Texts, UNet3D, UNetMotion, Wan
from fewstep_video.texts import stored_text
from fewstep_video.video_generator import VideoGenerator

NETWORKS = {net.kind: net for net in (Wan, CogVideoX, LTX, UNetMotion, UNet3D)}
CODECS: dict[str, type[Codec]] = {codec.kind: codec for codec in (WanCodec, CogVideoXCodec, FrameCodec)}


def from_folder(
    folder: str,
    frames: int,
    height: int,
    width: int,
    text_length: int,
    steps: int = 50,
    fps: float = 16.0,
    latents: bool = False,
    empty: str | None = None,
    adapters: LowRank | None = None,
) -> VideoGenerator:
    """The generator of a diffusers folder, for recipes to name as their teacher, or with adapters as their student.

    Args:
        folder: on this machine.
        frames, height, width: of a clip in pixels; of its latents where `latents`.
        text_length: tokens of a text (512 for Wan, 226 for CogVideoX, 77 for ModelScope and AnimateDiff).
        latents: batches hold latents, and so do samples: no autoencoder is loaded.
        empty: .safetensors with the embeddings `text` of the empty or negative prompt, which guidance leads away from; zeros unless given.
        adapters: low-rank ones to be trained, in place of all weights.
    Raises:
        ArtifactError: no such folder, a part that is missing or of a class that is not supported.
        ValueError: a size that network or codec cannot take.
    """
    place = Path(folder)
    part = next((p for n in ("transformer", "unet") if (p := place / n / "config.json").is_file()), None)
    if part is None:
        raise ArtifactError(
            f"{folder}: no transformer/config.json and no unet/config.json; allowed: a diffusers folder"
        )
    model = _model(part.parent, NETWORKS)
    kind = NETWORKS[type(model).__name__]
    scheduler = place / "scheduler" / "scheduler_config.json"
    if not scheduler.is_file():
        raise ArtifactError(f"{scheduler}: no such file; the scheduler says what the network predicts")
    schedule = _json(scheduler)
    found = (read_cogvideox if schedule.get("_class_name") in SCHEDULERS else read)(schedule)
    texts = Texts(text_length, kind.text_width(model))
    if empty is not None:
        texts.empty.copy_(texts(stored_text(empty)[None])[0])
    net = kind.of(model, texts)
    codec, shape = None, (_channels(net.model), frames, height, width)
    if not latents:
        autoencoder = _model(place / "vae", CODECS)
        codec = CODECS[type(autoencoder).__name__].of(autoencoder)
        shape = codec.shape(frames, height, width)
    if adapters is not None:
        net = LoRA(net, {"student": adapters.rank}, adapters.targets, adapters.scale)
    denoiser = Denoiser(net, found.path, found.prediction)
    return VideoGenerator(denoiser, found.solver, found.grid, steps, shape, fps, codec=codec)


def _model(folder: Path, allowed: Mapping[str, Any]) -> nn.Module:
    """The model of one part of a folder."""
    config = folder / "config.json"
    if not config.is_file():
        raise ArtifactError(f"{config}: no such file; allowed: a part of a diffusers folder")
    name = str(_json(config).get("_class_name"))
    if name not in allowed:
        raise ArtifactError(f"{config}: holds a {name}; supported: {', '.join(allowed)}")
    try:
        return getattr(import_module("diffusers"), name).from_pretrained(folder, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{folder}: cannot be loaded: {' '.join(str(error).split())[:200]}") from error


def _json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (ValueError, OSError) as error:
        raise ArtifactError(f"{file}: is not JSON ({error})") from error


def _channels(model: nn.Module) -> int:
    return int(model.config.in_channels)  # pyright: ignore
