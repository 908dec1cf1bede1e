"""`fewstep bench steps`: milliseconds per training step of every distillation method, beside the plain denoising step, on one U-Net.

The recipes of the digits, with a network of 1.6 million parameters on random 3x16x16 images, batch 8, fp32, and pairs that are made
before the clock starts. A step is all of it: loss, backward, clipping, optimiser, averages. CPU time of the process, the median of
the steps; where the student learns in every n-th step alone, the mean of the medians of the n kinds of step. Recipes are measured in turn,
several rounds, and the least counts, so that a busy machine disturbs little.
"""

import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

import lightning as L
import torch
import yaml
from torch import Tensor
from torch.utils.data import DataLoader

from fewstep import recipes
from fewstep.artifacts import save
from fewstep.bench.distill import entries, plan, stored_pairs
from fewstep.bench.distill_worlds import PatchesWorld, made, replaced
from fewstep.bench.timing import machine, write
from fewstep.train.loader import StatefulLoader

WARM, TIMED, ROUNDS, BATCH, SHAPE = 4, 11, 2, 8, (3, 16, 16)
# Guidance doubles a teacher's evaluations and Heun's method does so again. Name -> recipe, other arguments of its method: a method where
# neither is asked for.
_ALONE = {"guidance": {"class_path": "fewstep.distill.guidance.TeacherGuidance"}}
_EULER = {"class_path": "fewstep.distill.teacher_step.TeacherStep", "init_args": {"solver": "fewstep.solvers.DDIM"}}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "digits_cd, Heun, no guidance": ("digits_cd", _ALONE),
    "digits_cd, Euler, no guidance": ("digits_cd", {**_ALONE, "step": _EULER}),
    "digits_dmd2, one step, 1:5, no guidance": ("digits_dmd2", {**_ALONE, "steps": 1, "ratio": 5}),
    "digits_f_distill, 1:5, no guidance": ("digits_f_distill", _ALONE),
    "digits_ladd, 1:5": ("digits_ladd", {"ratio": 5}),
}


class RandomImages(L.LightningDataModule):
    """Batches {"x0": (B, 3, 16, 16) normal, "label": (B,)}."""

    def batch(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        label = torch.randint(10, (n,), generator=generator)
        return {"x0": torch.randn(n, *SHAPE, generator=generator), "label": label}

    def train_dataloader(self) -> StatefulLoader:
        return StatefulLoader(self, BATCH)

    def val_dataloader(self) -> DataLoader:
        return DataLoader([], batch_size=None)  # pyright: ignore[reportArgumentType]


class Clock(L.Callback):
    """CPU seconds of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.start = time.process_time()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seconds.append(time.process_time() - self.start)


def moved(recipe: Any) -> Any:
    """A digits recipe with this network, these images, and a pool of one batch."""

    def unet(args: dict[str, Any]) -> dict[str, Any]:
        return made("fewstep.nets.unet.UNet", {**args, "channels": SHAPE[0], "width": 48, "blocks": 2})

    def pool(args: dict[str, Any]) -> dict[str, Any]:
        return made("fewstep.distill.pool.PairPool", {**args, "size": BATCH, "fresh": 0})

    def data(args: dict[str, Any]) -> dict[str, Any]:
        return {"class_path": f"{__name__}.RandomImages"}

    kinds = {
        "fewstep.nets.unet.UNet": unet,
        "fewstep.distill.pool.PairPool": pool,
        "fewstep.distill.hybrid_pool.HybridPool": pool,
        "fewstep.digits.Digits": data,
        "fewstep.pairs.StoredPairs": data,
    }
    return replaced(recipe, kinds, {"shape": list(SHAPE), "judge": None})


def built(name: str, changes: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """The training of a recipe, in the current folder; untrained models stand for the artifacts it reads."""
    from fewstep.train.fit import instantiate

    for teacher in plan(PatchesWorld())[name]:
        if not Path(f"runs/{teacher}/last").is_dir():
            save(built(teacher).model.student, f"runs/{teacher}/last")
    own = yaml.safe_load((recipes.folder() / f"digits/{name}.yaml").read_text())
    recipe = moved(own)
    if stored_pairs(own) is not None:
        pool = {"class_path": "fewstep.distill.pool.PairPool", "init_args": {"size": BATCH, "fresh": 0}}
        recipe["model"]["init_args"]["pool"] = pool
    args = recipe["model"]["init_args"]
    args.update(changes)
    if "degradation" in args:
        args.update(degradation=1, kept=1)
    timed = max(TIMED, 4 * args.get("ratio", 1))
    Path(f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    options = [
        f"--model.init_args.iterations={WARM + timed}",
        "--trainer.logger=false",
        "--trainer.limit_val_batches=0",
    ]
    average = "[{class_path: fewstep.train.ema.EMA, init_args: {decay: 0.999}}]"
    return instantiate(Path(f"{name}.yaml"), [*options, f"--trainer.callbacks={average}"])


def milliseconds(name: str, changes: Mapping[str, Any] = MappingProxyType({})) -> float:
    """The median step of one short training."""
    run, clock = built(name, changes), Clock()
    run.trainer.callbacks.append(clock)
    run.trainer.fit(run.model, run.datamodule)
    ratio = getattr(run.model, "ratio", 1)
    kinds = [median(clock.seconds[WARM + k :: ratio]) for k in range(ratio)]
    return 1000 * sum(kinds) / ratio


def main(threads: int = 1, out: str | None = None) -> int:
    """Every digits recipe that trains a generator."""
    torch.set_num_threads(threads)
    # Of the patches, whose images have this size: the classifier of the digits has another.
    jobs = {n: (n, {}) for n in entries(plan(PatchesWorld()))} | VARIANTS
    least: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        milliseconds("digits_teacher")  # the process warms up
        for _ in range(ROUNDS):
            for name, job in jobs.items():
                least[name] = min(least.get(name, float("inf")), milliseconds(*job))
                sys.stderr.write(f"{name}: {least[name]:.1f} ms\n")
    plain = least["digits_teacher"]
    rows = [
        {"method": name.removeprefix("digits_"), "ms": round(ms, 2), "ratio": round(ms / plain, 2)}
        for name, ms in sorted(least.items(), key=lambda item: item[1])
    ]
    write({"bench": "steps", **machine(), "batch": BATCH, "shape": SHAPE, "rows": rows}, out)
    return 0
