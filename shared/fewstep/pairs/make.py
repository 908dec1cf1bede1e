"""Making the folder of a job, by one process or by many, killed and restarted at will.

A shard appears under its name whole or not at all, its content depends on the job alone, and the manifest is written last. So it does not
matter how many processes share the work, or how often they are killed: the folder ends up the same.
"""

import fcntl
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import save as to_bytes
from torch import Tensor

from fewstep import __version__
from fewstep.generator import Generator
from fewstep.pairs.folder import FORMAT, JOB, MANIFEST, PairsError, check_shard, read_manifest, sha256, shard_name
from fewstep.pairs.job import Job, Teacher

# (done, total) samples of this process.
Progress = Callable[[int, int], None]
T = TypeVar("T")


def make_pairs(
    model: Generator,
    folder: str | os.PathLike[str],
    job: Job,
    batch: Mapping[str, Tensor] | None = None,
    source: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make what a folder of pairs lacks, and return its manifest. The processes of an initialised group share the work.

    Args:
        model: the teacher, on its device.
        batch: a data batch, whose conditions the samples take in turn; without one the model draws them.
        source: where the model came from, for the manifest.
    Raises:
        PairsError: the model does not fit the job; the folder belongs to another job, is being written by another process, or a shard
            in it is damaged.
    """
    place, rank, ranks = Path(folder), *_world()
    teacher = Teacher(model, job, batch)
    shards = range(-(-job.n // job.shard_size))
    with ExitStack() as lock:
        begun = _by_first(lambda: _begin(place, teacher.describe(), source, lock))
        missing = _by_first(lambda: [k for k in shards if not (place / shard_name(k)).is_file()])
        mine = missing[rank::ranks]
        done, total = 0, sum(len(job.shard(k)) for k in mine)
        for k in mine:
            _write_shard(place / shard_name(k), job.shard(k), _samples(teacher, k, progress, done, total))
            done += len(job.shard(k))
        if ranks > 1:
            dist.barrier()
        entries = {k: _entry(place / shard_name(k), len(job.shard(k))) for k in shards[rank::ranks]}
        every = {k: entry for part in _gather(entries) for k, entry in part.items()}
        manifest = {"format": FORMAT, "job": begun, "shards": [every[k] for k in shards]}
        _by_first(lambda: _finish(place, manifest))
        return manifest


def _samples(teacher: Teacher, k: int, progress: Progress | None, done: int, total: int) -> Iterator[bytes]:
    """The samples of shard k, each as the bytes of a safetensors file."""
    for part in teacher.job.batches(k):
        made = teacher.columns(part)
        for i in range(len(part)):
            yield to_bytes({name: v[i].clone(memory_format=torch.contiguous_format) for name, v in made.items()})
        done += len(part)
        if progress is not None:
            progress(done, total)


def _write_shard(file: Path, index: Iterable[int], payloads: Iterable[bytes]) -> None:
    size = None
    with _whole(file) as f, tarfile.open(fileobj=f, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for i, payload in zip(index, payloads, strict=True):
            member = tarfile.TarInfo(f"{i:09d}.safetensors")
            member.size = len(payload)
            if size not in (None, member.size):
                raise PairsError(f"the samples of {file.name} differ in shape: give a data batch of one shape")
            tar.addfile(member, io.BytesIO(payload))
            size = member.size


@contextmanager
def _whole(file: Path) -> Iterator[io.BufferedWriter]:
    """The file to write, which gets its name once it is whole; what a killed process left is written over."""
    part = file.with_name(f".{file.name}.part")
    try:
        with part.open("wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _write_json(file: Path, value: Any) -> None:
    with _whole(file) as f:
        f.write((json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def _begin(folder: Path, wanted: dict[str, Any], source: str, lock: ExitStack) -> dict[str, Any]:
    """Lock the folder and return its job: the one its file tells, or the one that is wanted where it is new."""
    file = folder / JOB
    if not file.is_file():
        if folder.exists() and (not folder.is_dir() or any(not p.name.startswith(".") for p in folder.iterdir())):
            raise PairsError(f"{folder} exists and is not a folder of teacher pairs; give a new one")
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(file, wanted | {"made_by": {"fewstep": __version__, "source": source}})
    held = lock.enter_context(file.open("rb"))
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        begun = json.loads(held.read())
    except BlockingIOError as err:
        raise PairsError(f"{folder} is being written by another process") from err
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise PairsError(f"{file} is not the job of teacher pairs") from err
    other = sorted(k for k in (wanted.keys() | begun.keys()) - {"made_by"} if wanted.get(k) != begun.get(k))
    if other:
        told = ", ".join(f"{k} is {_short(begun.get(k))}, not {_short(wanted.get(k))}" for k in other[:3])
        raise PairsError(f"{folder} belongs to another job ({told}); give a new folder")
    return begun


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _entry(file: Path, samples: int) -> dict[str, Any]:
    return {"file": file.name, "samples": samples, "size": file.stat().st_size, "sha256": sha256(file)}


def _finish(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest; a folder that has one already must be what it says."""
    if not (folder / MANIFEST).is_file():
        return _write_json(folder / MANIFEST, manifest)
    for entry in read_manifest(folder)["shards"]:
        check_shard(folder, entry, content=True)


# --- processes -------------------------------------------------------------------------------------------------------


def _world() -> tuple[int, int]:
    """(number of this process, how many there are)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _by_first(compute: Callable[[], T]) -> T:
    """What the first process computes, or the error it raises, for all."""
    if _world()[1] == 1:
        return compute()
    box: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            box = [compute()]
        except (OSError, ValueError) as err:
            box = [err]
    dist.broadcast_object_list(box)
    if isinstance(box[0], Exception):
        raise box[0]
    return box[0]


def _gather(value: T) -> list[T]:
    """Every process's value, for all."""
    if _world()[1] == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
