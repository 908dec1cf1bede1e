"""Mels in files: (bands, frames) as .npy, or as the tensor `mel` of a .safetensors file, whose metadata may say its preset.

metadata   mel_fingerprint: 16 hexadecimal digits, see `Mel.fingerprint`; mel: the preset's name
"""

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.whole_file import whole
from fewstep_audio.files import AudioError
from fewstep_audio.mels import Mel

MEL_SUFFIXES = (".npy", ".safetensors")


def read_mel(path: str | Path, mel: Mel) -> Tensor:
    """(bands, T) float32 for a model of this mel; also from (1, bands, T).

    Raises:
        AudioError: files that are missing, damaged or pickles, other shapes, nan or inf, a fingerprint that is not the model's.
    """
    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path}: no such file; allowed: a mel as {' or '.join(MEL_SUFFIXES)}")
    values = _npy(path) if path.suffix.lower() == ".npy" else _safetensors(path, mel)
    if values.ndim == 3 and len(values) == 1:
        values = values[0]
    if values.ndim != 2 or values.shape[0] != mel.bands or not values.shape[1]:
        raise AudioError(
            f"{path}: a mel of shape {tuple(values.shape)}; allowed: ({mel.bands}, frames), as mel {mel.name} has it"
        )
    if not bool(values.isfinite().all()):
        raise AudioError(f"{path}: holds nan or inf; allowed: finite numbers")
    return values


def write_mel(path: str | Path, values: Tensor, mel: Mel) -> None:
    """(bands, T) to a .safetensors file that says what it is a mel of, whole or not at all."""
    with whole(path) as part:
        save_file({"mel": values.contiguous()}, part, {"mel": mel.name, "mel_fingerprint": mel.fingerprint})


def _npy(path: Path) -> Tensor:
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise AudioError(f"{path}: not an .npy file of numbers ({' '.join(str(error).split())})") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
        raise AudioError(f"{path}: holds {getattr(values, 'dtype', type(values).__name__)}; allowed: floats")
    return torch.from_numpy(values.astype(np.float32))


def _safetensors(path: Path, mel: Mel) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            about, names = file.metadata() or {}, list(file.keys())
            if "mel" not in names:
                raise AudioError(f"{path}: holds {', '.join(names) or 'nothing'}; allowed: a tensor named mel")
            values = file.get_tensor("mel")
    except (SafetensorError, OSError) as error:
        raise AudioError(f"{path}: truncated or not safetensors ({' '.join(str(error).split())})") from error
    print_of = about.get("mel_fingerprint", mel.fingerprint)
    if print_of != mel.fingerprint:
        raise AudioError(
            f"{path}: mel {about.get('mel', 'unnamed')} [{print_of}] does not fit mel {mel.name} [{mel.fingerprint}]; "
            "allowed: a vocoder of the same mel"
        )
    return values.float()
