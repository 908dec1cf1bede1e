"""How much memory a training will take on each device, before it runs.

One step is made at a quarter and one at half of the recipe's batch, with all that is allocated recorded. What a step works with
(activations, gradients, temporaries) is linear in the batch, so the recipe's own batch follows; what stands is counted.

    one device      parameters + optimizer + averages + frozen networks + working
    ddp             the same + the buckets of the gradients, as large as the parameters
    fsdp on N       (parameters + optimizer + averages)/N + frozen networks + two layers gathered + working
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from fewstep.train.ema import EMA
from fewstep.train.fit import instantiate
from fewstep.train.shell import Batch, Shell, parts, seed_iteration

Strategy = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class Plan:
    """Numbers of parameters, the batch of a device, and bytes on it."""

    trained: int
    frozen: int
    batch: int
    parameters_bytes: int
    optimizer_bytes: int
    averages_bytes: int
    frozen_bytes: int
    strategy_bytes: int
    working_bytes: int

    @property
    def total_bytes(self) -> int:
        """The most that is allocated at any moment of a step."""
        standing = self.parameters_bytes + self.optimizer_bytes + self.averages_bytes + self.frozen_bytes
        return standing + self.strategy_bytes + self.working_bytes


def plan(recipe: Path, overrides: Sequence[str] = (), devices: int = 1, strategy: Strategy = "ddp") -> Plan:
    """The plan of a recipe with these overrides, for each of `devices` devices.

    Raises:
        ValueError: devices < 1.
        RecipeError: an unusable recipe.
    """
    if devices < 1:
        raise ValueError(f"a plan is for at least 1 device, not {devices}")
    cli = instantiate(recipe, overrides)
    model, data = cli.model, cli.datamodule
    data.setup("fit")
    model.done = next((n for n in range(model.iterations) if _full(model, n)), 0)
    optimizers = model.configure_optimizers()
    optimizers = optimizers if isinstance(optimizers, list | tuple) else [optimizers]
    batch = data.batch_size
    sizes = max(1, batch // 4), max(2, batch // 2)
    low, high = (_working(model, optimizers, _batch_of(data, n), _precision(cli.trainer)) for n in sizes)
    slope = (high - low) / (sizes[1] - sizes[0])
    own = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in _all_parameters(model) if not p.requires_grad]
    size, share = _bytes(own), devices if strategy == "fsdp" else 1
    state = _bytes(v for o in optimizers for s in o.state.values() for v in s.values() if isinstance(v, Tensor))
    callbacks: list[Any] = cli.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    averages = sum(isinstance(c, EMA) for c in callbacks) * _bytes(model.student.parameters())
    layer = max((_bytes(m.parameters(recurse=False)) for m in model.modules()), default=0)
    extra = 0 if devices == 1 else size if strategy == "ddp" else 2 * layer
    return Plan(
        trained=sum(p.numel() for p in own),
        frozen=sum(p.numel() for p in frozen),
        batch=batch,
        parameters_bytes=size // share,
        optimizer_bytes=state // share,
        averages_bytes=averages // share,
        frozen_bytes=_bytes(frozen),
        strategy_bytes=extra,
        working_bytes=max(round(high + slope * (batch - sizes[1])), size // share),
    )


def _full(model: Shell, done: int) -> bool:
    """Whether the student is trained in this iteration."""
    model.done = done
    return model.turn("student")


def step(model: Shell, optimizers: Iterable[torch.optim.Optimizer], batch: Batch, precision: torch.dtype) -> None:
    """One training step as the shell makes it, without a trainer."""
    seed_iteration(0, model.device)
    for part, share in parts(batch, model.accumulate):
        with torch.autocast(model.device.type, precision, enabled=precision != torch.float32):
            terms = model.loss(part)
        (torch.stack(list(terms.values())).sum() * share).backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _working(model: Shell, optimizers: Sequence[torch.optim.Optimizer], batch: Batch, precision: torch.dtype) -> int:
    """Bytes at the peak of a step besides parameters, buffers and the optimizer's state."""
    step(model, optimizers, batch, precision)  # makes the optimizer's state, and fills pools and caches
    return peak(lambda: step(model, optimizers, batch, precision), model.device)


def peak(work: Callable[[], None], device: torch.device) -> int:
    """The most bytes allocated at any moment of `work`, beyond those allocated before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    assert profiled.profiler is not None and profiled.profiler.kineto_results is not None
    events: list[Any] = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    ordered = sorted(events, key=lambda e: e.start_ns())
    return max(itertools.accumulate((e.nbytes() for e in ordered), initial=0))


def _batch_of(data: Any, n: int) -> Batch:
    whole, data.batch_size = data.batch_size, n
    try:
        return next(iter(data.train_dataloader()))
    finally:
        data.batch_size = whole


def _precision(trainer: Any) -> torch.dtype:
    return torch.bfloat16 if str(trainer.precision) == "bf16-mixed" else torch.float32


def _all_parameters(model: nn.Module) -> Iterator[Tensor]:
    """Those of the module and of the teacher that it keeps out of its state."""
    yield from model.parameters()
    for hidden in getattr(model, "_teacher", ()):
        yield from hidden.parameters()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
