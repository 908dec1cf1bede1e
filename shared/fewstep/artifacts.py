"""Artifacts: a model on disk as `config.json` (class paths and their arguments) and `model.safetensors`.

Everything that is configuration follows one convention: the arguments of `__init__` are kept as attributes of the same name, so
an object describes itself as {"class_path": ..., "init_args": {...}} and is rebuilt from that. Nothing is ever unpickled.
"""

import inspect
import json
import os
import shutil
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path as FilePath
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

CONFIG, WEIGHTS, FORMAT = "config.json", "model.safetensors", 1
T = TypeVar("T")
TRUSTED = ("fewstep", "fewstep_audio", "fewstep_video", "fewstep_3d", "fewstep_restoration")


class ArtifactError(ValueError):
    """An artifact that cannot be written or read; one line: what was given, where, what is allowed."""


def describe(obj: Any) -> Any:
    """The JSON description of an object: plain values as they are, others as class path and init arguments.

    Raises:
        ArtifactError: where an init argument is not kept under its own name, or has no JSON form.
    """
    if obj is None or isinstance(obj, bool | int | float | str):
        return obj
    if isinstance(obj, list | tuple | torch.nn.ModuleList):
        return [describe(v) for v in obj]
    if isinstance(obj, Mapping):
        return {str(k): describe(v) for k, v in obj.items()}
    cls = _class_of(obj)
    name = f"{cls.__module__}.{cls.__qualname__}"
    if cls.__module__ == "builtins" or isinstance(obj, torch.Tensor):
        raise ArtifactError(
            f"{name} cannot be part of an artifact's configuration: use numbers, strings and fewstep objects"
        )
    args = {}
    for arg in list(inspect.signature(cls.__init__).parameters)[1:]:
        if not hasattr(obj, arg):
            raise ArtifactError(
                f"{name} does not keep its argument `{arg}` as an attribute of that name, so it cannot be saved"
            )
        args[arg] = describe(getattr(obj, arg))
    return {"class_path": name, "init_args": args}


def _class_of(obj: Any) -> type:
    """Its class; that beneath FSDP2's where it is sharded."""
    cls = type(obj)
    return cls.__mro__[2] if cls.__mro__[1].__name__ == "FSDPModule" else cls


def build(config: Any, trusted: tuple[str, ...] = TRUSTED, where: str = "configuration") -> Any:
    """The object of a description; classes come only from `trusted` top-level packages.

    Raises:
        ArtifactError: unknown or untrusted classes, unknown arguments.
    """
    if isinstance(config, list):
        return tuple(build(v, trusted, where) for v in config)
    if not isinstance(config, Mapping):
        return config
    if "class_path" not in config:
        return {k: build(v, trusted, where) for k, v in config.items()}
    cls = _class(config["class_path"], trusted, where)
    if not isinstance(config.get("init_args", {}), Mapping):
        raise ArtifactError(
            f"{where}: init_args of {cls.__name__} are {type(config['init_args']).__name__}, not names and values"
        )
    args = {k: build(v, trusted, where) for k, v in config.get("init_args", {}).items()}
    allowed = list(inspect.signature(cls.__init__).parameters)[1:]
    unknown = sorted(set(args) - set(allowed))
    if unknown:
        raise ArtifactError(
            f"{where}: {cls.__name__} has no argument {', '.join(unknown)}; it takes {', '.join(allowed)}"
        )
    try:
        return cls(**args)
    except (TypeError, ValueError, RuntimeError) as err:
        raise (
            err
            if isinstance(err, ArtifactError)
            else ArtifactError(f"{where}: {cls.__name__} cannot be built: {_line(err)}")
        ) from err


def _class(path: Any, trusted: tuple[str, ...], where: str) -> type:
    module, _, name = str(path).rpartition(".")
    if module.split(".")[0] not in trusted:
        raise ArtifactError(
            f"{where}: class {path!r} is not from a trusted package ({', '.join(trusted)}); pass trust=(...) to allow its own"
        )
    try:
        cls = getattr(import_module(module), name)
    except (ImportError, AttributeError) as err:
        raise ArtifactError(f"{where}: unknown class {path!r}: {err}") from err
    if (
        not isinstance(cls, type) or cls.__module__.split(".")[0] not in trusted
    ):  # names that a trusted module merely imports
        raise ArtifactError(f"{where}: {path!r} is not a class of a trusted package")
    return cls


def save(
    model: nn.Module,
    folder: str | os.PathLike[str],
    provenance: Mapping[str, Any] | None = None,
    state: Mapping[str, torch.Tensor] | None = None,
    stored: torch.dtype | None = None,
) -> FilePath:
    """Write an artifact folder, whole or not at all; an artifact already there is replaced.

    Args:
        model: a module whose init arguments are kept under their own names.
        folder: where to write `config.json` and `model.safetensors`.
        provenance: JSON facts about the training: recipe, seed, data and licence, scores.
        state: its state dict, where it is not at hand in whole (sharded models).
        stored: precision of the file's floats, where the model is loaded in the precision that it is built with and not in that of the file.
    """
    from fewstep import __version__

    folder = FilePath(folder)
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder} is a file; an artifact is a folder")
    config = {"format": FORMAT, "fewstep": __version__, "model": describe(model), "provenance": dict(provenance or {})}
    tensors = {k: v.detach().cpu().contiguous() for k, v in (model.state_dict() if state is None else state).items()}
    if stored is not None:
        config["stored"] = str(stored).removeprefix("torch.")
        tensors = {k: v.to(stored) if v.is_floating_point() else v for k, v in tensors.items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    tmp = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    old = tmp.with_suffix(".old")
    for left in (tmp, old):  # of a killed process with this number
        shutil.rmtree(left, ignore_errors=True)
    tmp.mkdir()
    try:
        (tmp / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        save_file(tensors, tmp / WEIGHTS, metadata={"format": "pt"})
        (tmp / WEIGHTS).chmod((tmp / CONFIG).stat().st_mode)  # save_file leaves it readable by its owner alone
        if folder.exists():
            folder.rename(old)
            tmp.rename(folder)
            shutil.rmtree(old)
        else:
            tmp.rename(folder)
    except (TypeError, ValueError, RuntimeError) as err:
        raise ArtifactError(f"{folder}: {_class_of(model).__name__} cannot be saved: {_line(err)}") from err
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    return folder


def _line(err: BaseException) -> str:
    """An error as one line."""
    return " ".join(str(err).split())[:300] or type(err).__name__


def load(source: str | os.PathLike[str], trust: tuple[str, ...] = (), revision: str | None = None) -> nn.Module:
    """The model of an artifact folder, or of a hub id `owner/name` (only its two files are downloaded).

    Args:
        trust: top-level packages, besides fewstep's own, that classes may come from.
        revision: branch, tag or commit on the hub.
    Raises:
        ArtifactError: missing files, pickles, unknown classes, missing or extra tensors, wrong shapes, truncated files.
    """
    folder = _folder(source, revision)
    config = read_config(folder)
    model = build(config["model"], TRUSTED + tuple(trust), f"{folder / CONFIG}")
    if not isinstance(model, nn.Module):
        raise ArtifactError(f"{folder / CONFIG}: describes a {type(model).__name__}, not a torch module")
    _load_tensors(model, folder / WEIGHTS, "stored" not in config)
    return model.eval()


def load_as(source: str | os.PathLike[str], kind: type[T], hint: str = "") -> T:
    """`load`, for one kind of model.

    Args:
        kind: class or protocol.
        hint: ends the line where there is no model.
    Raises:
        ArtifactError: see `load`; also where the artifact holds something else.
    """
    try:
        model = load(source)
    except ArtifactError as err:
        raise ArtifactError(f"no model: {err}{hint}") from err
    if not isinstance(model, kind):
        raise ArtifactError(f"{source} holds a {type(model).__name__}; needed: {kind.__name__}")
    return model


def read_config(source: str | os.PathLike[str]) -> dict[str, Any]:
    """The checked `config.json` of an artifact folder: format, model, provenance."""
    file = FilePath(source) / CONFIG
    if not file.is_file():
        pickles = [
            p.name for p in sorted(file.parent.glob("*")) if p.suffix in {".pt", ".pth", ".ckpt", ".bin", ".pkl"}
        ]
        hint = f"; {pickles[0]} is a pickle, which is never read" if pickles else ""
        raise ArtifactError(f"{file.parent} is not an artifact: it has no {CONFIG}{hint}")
    try:
        config = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise ArtifactError(f"{file} is not valid JSON: {err}") from err
    if not isinstance(config, dict) or "model" not in config:
        raise ArtifactError(f"{file} does not describe a model (no `model` entry)")
    if config.get("format") != FORMAT:
        raise ArtifactError(f"{file} has format {config.get('format')!r}; this version reads format {FORMAT}")
    return config


def _folder(source: str | os.PathLike[str], revision: str | None) -> FilePath:
    folder = FilePath(source)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ArtifactError(f"{folder} is a file; give the artifact's folder (with {CONFIG} and {WEIGHTS})")
    name = os.fspath(source)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ArtifactError(f"{name} is neither a folder nor a hub id `owner/name`")
    from huggingface_hub import snapshot_download

    try:
        return FilePath(snapshot_download(name, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as err:  # the hub client raises many unrelated types; all mean the same to the caller
        raise ArtifactError(f"{name} is not a local folder, and could not be had from the hub: {_line(err)}") from err


def _load_tensors(model: nn.Module, file: FilePath, own_precision: bool) -> None:
    """own_precision: that of the file becomes the model's, and its memory format."""
    if not file.is_file():
        raise ArtifactError(f"{file.parent} has no {WEIGHTS}; weights are read from safetensors alone")
    own = model.state_dict()
    try:
        with safe_open(file, framework="pt") as f:
            names = set(f.keys())
            missing, extra = sorted(set(own) - names), sorted(names - set(own))
            if missing or extra:
                parts = [
                    f"{kind} {', '.join(n[:3])}{' ...' if len(n) > 3 else ''}"
                    for kind, n in (("lacks", missing), ("has unknown", extra))
                    if n
                ]
                raise ArtifactError(
                    f"{file} {' and '.join(parts)}: its tensors are not those of {type(model).__name__}"
                )
            tensors = {name: f.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as err:
        raise ArtifactError(f"{file} is truncated or not safetensors ({file.stat().st_size} bytes): {err}") from err
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise ArtifactError(
                f"{file}: {name} has shape {tuple(tensor.shape)}, {type(model).__name__} wants {tuple(own[name].shape)}"
            )
    for name, slot in (*model.named_parameters(), *model.named_buffers()):
        if own_precision and name in tensors:
            slot.data = slot.data.to(tensors[name].dtype)
    model.load_state_dict(tensors)
