"""The Lightning shell of every training: seeds, optimises, schedules, clips and logs. No mathematics here.

Rules (each was measured): optimisation is manual; the `iteration` buffer counts batches and is what stopping, saving, averaging
and logging follow; every iteration seeds its randomness from (seed, rank, iteration), so a killed run resumes bit for bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from fewstep.train.schedules import Constant, Schedule

Batch = Mapping[str, Tensor]
Terms = dict[str, Tensor]


class NonFiniteLoss(RuntimeError):
    """A loss or gradient became NaN or infinite; one line with the term and the iteration."""


def iteration_seed(seed: int, rank: int, iteration: int) -> int:
    """One 63-bit seed per (run seed, rank, iteration), mixed so that neighbouring iterations share nothing (splitmix64)."""
    z = (
        seed * 0x9E3779B97F4A7C15 + rank * 0xBF58476D1CE4E5B9 + iteration * 0x94D049BB133111EB + 0x2545F4914F6CDD1D
    ) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = ((z ^ (z >> shift)) * factor) % 2**64
    return (z ^ (z >> 31)) >> 1


def seed_iteration(seed: int, device: torch.device) -> None:
    """Seed the CPU generator and, on a GPU, that device's own.

    torch.manual_seed would also queue a call with a stack trace for every CUDA device not in use: a millisecond each time.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def scheduled(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Remember each group's learning rate as `base_lr`, which schedules multiply; on a CPU, where torch's Adam loops over the parameters unless
    told otherwise, let it update all of a group in one pass."""
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
        here = all(p.device.type == "cpu" and p.is_floating_point() for p in group["params"])
        if isinstance(optimizer, torch.optim.Adam) and here and group["fused"] is None and not group["foreach"]:
            group["fused"] = True
    return optimizer


class Shell(L.LightningModule, ABC):
    """One trained network `student`, one optimiser. Subclasses write `loss`, and `evaluate` for validation.

    Args:
        student: the network (or denoiser, or generator) that is trained, averaged and saved.
        iterations: batches to train on; training stops there.
        optimizer: parameters -> optimizer; AdamW where not given. (With a class as the default, recipes that name another one would
            inherit its weight decay.)
        schedule: factor on its learning rate at each iteration.
        grad_clip: largest gradient norm.
        seed: run seed of the per-iteration randomness.
        accumulate: each batch is taken in this many parts, one after another: less memory, the same step.
    """

    iteration: Tensor

    def __init__(
        self,
        student: nn.Module,
        iterations: int,
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule | None = None,
        grad_clip: float = 1.0,
        seed: int = 0,
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        if iterations < 1 or accumulate < 1:
            raise ValueError(f"iterations and accumulate must be at least 1, not {iterations} and {accumulate}")
        self.accumulate = accumulate
        self.student, self.iterations, self.optimizer = student, iterations, optimizer or torch.optim.AdamW
        self.schedule, self.grad_clip, self.seed = schedule or Constant(), grad_clip, seed
        self.register_buffer("iteration", torch.zeros((), dtype=torch.long))
        self.done = 0  # the buffer as a plain integer
        self._log_every = 50
        self.latest: dict[str, float] = {}  # what the progress bar shows
        self.values: dict[str, Tensor | float] = {}  # the newest of each training figure
        self.averaged: nn.Module | None = None  # set by the EMA callback
        self.moved = True  # whether the last iteration changed the student

    def configure_model(self) -> None:
        """Under ModelParallelStrategy: shard networks and their averages, layer by layer (FSDP2)."""
        if self.device_mesh is None:
            return
        mesh = self.device_mesh["data_parallel"]
        for network in self.sharded():
            if not isinstance(network, FSDPModule):
                for layer in network.modules():
                    if layer is not network and any(True for _ in layer.parameters(recurse=False)):
                        fully_shard(layer, mesh=mesh)
                fully_shard(network, mesh=mesh)

    def on_fit_start(self) -> None:
        self._log_every = int(getattr(self.trainer, "log_every_n_steps", self._log_every))

    def on_train_start(self) -> None:
        if self.done >= self.iterations:  # a finished run resumed
            self.trainer.should_stop = True

    def sharded(self) -> list[nn.Module]:
        """What FSDP2 shards; the rest is whole on every process."""
        return [*self.children(), *([self.averaged] if self.averaged else [])]

    @abstractmethod
    def loss(self, batch: Batch) -> Terms:
        """Named scalars whose sum is minimised."""

    def trained(self) -> dict[str, nn.Module]:
        """The networks with an optimiser each, in the order of `configure_optimizers`; the student first."""
        return {"student": self.student}

    def turn(self, name: str) -> bool:
        """Whether this network is updated in this iteration."""
        return True

    def after_step(self) -> None:
        """What follows every optimiser step, before `done` counts it: target averages, stage changes."""

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Validation figures of one batch, each (B,), computed with `model` in place of the student."""
        return {}

    def preview(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Pictures to log at validation: name -> (3, H, W) in [0, 1]."""
        return {}

    def figures(self) -> dict[str, float]:
        """Further scalars for the log (gaps, margins): read when logging, not at every iteration."""
        return {}

    # --- training ---------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One step of every network whose turn it is, with the randomness of this iteration."""
        seed_iteration(iteration_seed(self.seed, self.global_rank, self.done), self.device)
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        terms = self.gradients(batch)
        self.values |= {f"train/{k}": v for k, v in terms.items()}
        self.moved = self.turn("student")
        for (name, network), optimizer in zip(self.trained().items(), optimizers, strict=True):
            if self.turn(name):
                norm = self.update(terms, cast(LightningOptimizer, optimizer), network.parameters())
                of = "" if name == "student" else f"_{name}"
                self.values |= {f"train/grad_norm{of}": norm, f"train/lr{of}": optimizer.param_groups[0]["lr"]}
        self.after_step()
        self.done += 1
        self.iteration += 1
        if self.done % self._log_every == 0 or self.done == self.iterations:
            self.record(self.values)
        if self.done >= self.iterations:
            self.trainer.should_stop = True

    def gradients(self, batch: Batch) -> Terms:
        """Add the gradients of a batch's loss, part after part; returns its terms."""
        terms: Terms = {}
        pieces = list(parts(batch, self.accumulate))
        for n, (part, share) in enumerate(pieces):
            own = {k: v * share for k, v in self.loss(part).items()}
            total = torch.stack(list(own.values())).sum()
            if not torch.isfinite(total):
                bad = [k for k, v in own.items() if not torch.isfinite(v)] or list(own)
                raise NonFiniteLoss(
                    f"loss `{', '.join(bad)}` is {total.item()} at iteration {self.done}: lower the learning rate or check the data"
                )
            with self._no_sync(n < len(pieces) - 1):
                self.manual_backward(total)
            terms = {k: v.detach() + terms[k] if k in terms else v.detach() for k, v in own.items()}
        return terms

    def update(self, terms: Iterable[str], optimizer: LightningOptimizer, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Clip, scheduled step; returns the gradient norm before clipping."""
        if self.device_mesh is not None:
            average_gradients(p for group in optimizer.param_groups for p in group["params"])
        norm = nn.utils.clip_grad_norm_(parameters, self.grad_clip)
        if not torch.isfinite(norm):
            raise NonFiniteLoss(
                f"the gradient of `{', '.join(terms)}` is {norm.item()} at iteration {self.done}: lower the learning rate"
            )
        factor = self.schedule(self.done, self.iterations)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def _no_sync(self, when: bool) -> AbstractContextManager[Any]:
        """Under DDP: without exchanging gradients, for all parts of a batch but the last."""
        wrapped = self.trainer.strategy.model if when else None
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else nullcontext()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return scheduled(self.optimizer([p for p in self.student.parameters() if p.requires_grad]))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.done = int(checkpoint["state_dict"]["iteration"])

    # --- logging and validation -------------------------------------------------------------------------------------

    def record(self, values: Mapping[str, Tensor | float]) -> None:
        """Send scalars to the loggers against the iteration, and to the progress bar."""
        numbers = {
            k: float(v.detach() if isinstance(v, Tensor) else v) for k, v in {**values, **self.figures()}.items()
        }
        self.latest |= numbers
        for logger in self.loggers:
            logger.log_metrics(numbers, step=self.done)

    def on_validation_epoch_start(self) -> None:
        self._sums: dict[str, list[Tensor]] = {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        # The same noise at every validation; training is not disturbed, since each of its iterations reseeds.
        seed_iteration(iteration_seed(self.seed, self.global_rank, -1 - batch_idx), self.device)
        model = self.averaged or self.student
        for name, values in self.evaluate(model, batch).items():
            self._sums.setdefault(name, []).append(values.detach().float().cpu().reshape(-1))
        if batch_idx == 0 and not self.trainer.sanity_checking:
            self._show(self.preview(model, batch))

    def on_validation_epoch_end(self) -> None:
        means = {f"val/{k}": torch.cat(v).mean() for k, v in self._sums.items()}
        for name, value in means.items():
            self.log(name, value, sync_dist=True, logger=False)
        if not self.trainer.sanity_checking:
            self.record(means)

    def _show(self, pictures: Mapping[str, Tensor]) -> None:
        for logger in self.loggers:
            board = getattr(logger, "experiment", None)
            if hasattr(board, "add_image"):
                for name, picture in pictures.items():
                    board.add_image(name, picture, global_step=self.done)  # pyright: ignore


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Over all processes, of those that FSDP2 has not sharded; its own are averaged by their backward."""
    for p in parameters:
        if p.grad is not None and not isinstance(p.grad, DTensor):
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()


def parts(batch: Batch, count: int) -> Iterator[tuple[Batch, float]]:
    """The batch in at most `count` parts along its first dimension, each with its share of the samples."""
    if count == 1:
        yield batch, 1.0
        return
    size = len(next(iter(batch.values())))
    columns = {k: v.chunk(count) for k, v in batch.items()}
    for n in range(len(next(iter(columns.values())))):
        part = {k: v[n] for k, v in columns.items()}
        yield part, len(next(iter(part.values()))) / size
