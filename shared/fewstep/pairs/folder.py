"""Teacher pairs on disk: (noise, end point), with states of the trajectory between them where they were asked for. Made by `fewstep pairs`.

    job.json            what is made of what: a restart must ask for the same
    pairs-000000.tar    the first samples, and so on; one member `000000000.safetensors` per sample, as webdataset has them
    manifest.json       the job with the size and SHA-256 of every shard; written last, so a folder that has it is complete

members: noise (...); states (m, ...) at the m `times` of the manifest; target (...), left out where it is the last state; conditions of
the network under their own names, the anchor y, and x0 where a data batch was given.

All members of a shard have one layout, so it is a table of rows of equal length: it is mapped into memory, not read.
"""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FORMAT, JOB, MANIFEST, BLOCK = 1, "job.json", "manifest.json", 512
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES |= {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class PairsError(ValueError):
    """A folder of pairs that cannot be written or read; one line."""


def shard_name(k: int) -> str:
    """The file of shard number k."""
    return f"pairs-{k:06d}.tar"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete folder.

    Raises:
        PairsError: no folder of pairs, one that is not complete, or a manifest of another format.
    """
    file = folder / MANIFEST
    if not file.is_file():
        begun = (folder / JOB).is_file()
        why = (
            f"is not complete: it has no {MANIFEST}, run its `fewstep pairs` again"
            if begun
            else "holds no teacher pairs"
        )
        raise PairsError(f"{folder} {why}")
    try:
        manifest = json.loads(file.read_text())
        formatted = manifest["format"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as err:
        raise PairsError(f"{file} is not the manifest of teacher pairs") from err
    if formatted != FORMAT:
        raise PairsError(f"{file} has format {formatted!r}; this version reads format {FORMAT}")
    return manifest


def sha256(file: Path) -> str:
    """The checksum of a file, in hex."""
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def check_shard(folder: Path, entry: dict[str, Any], content: bool = False) -> None:
    """Compare a shard with its entry in the manifest: its size and, where `content` is set, its checksum.

    Raises:
        PairsError: a shard that is missing, cut or changed.
    """
    file = folder / entry["file"]
    remedy = "delete it and run `fewstep pairs` again to make it anew"
    if not file.is_file():
        raise PairsError(f"shard {file} is missing: run `fewstep pairs` again to make it anew")
    if file.stat().st_size != entry["size"]:
        raise PairsError(f"shard {file} is damaged: {file.stat().st_size} bytes instead of {entry['size']}; {remedy}")
    if content and sha256(file) != entry["sha256"]:
        raise PairsError(f"shard {file} is damaged: its content is not what was written; {remedy}")


def columns(file: Path, rows: int) -> dict[str, Tensor]:
    """The tensors of a shard, name -> (rows, ...), mapped into memory."""
    raw = np.memmap(file, np.uint8, mode="c")  # copy on write: torch wants memory that could be written
    # tar: a block with the member's name, its size in octal at byte 124, then its content in whole blocks.
    size = int(bytes(raw[124:136]).rstrip(b"\0 "), 8)
    stride = BLOCK * (1 + -(-size // BLOCK))
    table = torch.from_numpy(raw[: rows * stride].reshape(rows, stride))
    # safetensors: the length of the header in 8 bytes, the header in JSON, the tensors.
    length = int.from_bytes(raw[BLOCK : BLOCK + 8].tobytes(), "little")
    data = BLOCK + 8 + length
    header = json.loads(raw[BLOCK + 8 : data].tobytes())
    mapped = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        flat = table[:, data + begin : data + end].view(DTYPES[entry["dtype"]])
        mapped[name] = flat.unflatten(1, entry["shape"]) if entry["shape"] else flat[:, 0]
    return mapped


class PairTable:
    """The rows `first` .. `last` - 1 of a folder of pairs, for loaders. Shards are mapped when they are first needed."""

    def __init__(self, folder: Path, manifest: dict[str, Any], first: int, last: int) -> None:
        self.folder, self.first, self.last = folder, first, last
        self.shard_size, self.shards = manifest["job"]["shard_size"], manifest["shards"]
        self._columns = lru_cache(maxsize=None)(self._open)

    def __len__(self) -> int:
        return self.last - self.first

    def _open(self, k: int) -> dict[str, Tensor]:
        entry = self.shards[k]
        try:
            return columns(self.folder / entry["file"], entry["samples"])
        except (OSError, ValueError, KeyError, RuntimeError) as err:
            raise PairsError(f"shard {self.folder / entry['file']} is damaged: {err}") from err

    def rows(self, index: list[int]) -> dict[str, Tensor]:
        """The batch of these rows. The end point is also x0, where the pairs were made without data."""
        place = torch.tensor(index) + self.first
        shard, row = place // self.shard_size, place % self.shard_size
        batch: dict[str, Tensor] = {}
        for k in shard.unique().tolist():
            here = shard == k
            for name, column in self._columns(k).items():
                if name not in batch:
                    batch[name] = torch.empty(len(index), *column.shape[1:], dtype=column.dtype)
                batch[name][here] = column[row[here]]
        if "target" not in batch:
            batch["target"] = batch["states"][:, -1].clone()
        return {"x0": batch["target"]} | batch
