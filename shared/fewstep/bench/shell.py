"""`fewstep bench shell`: what the training shell costs per iteration over a bare loop doing the same work, on a tiny network."""

import copy
import tempfile
import time

import lightning as L
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fewstep.bench.timing import machine, write
from fewstep.denoiser import Denoiser
from fewstep.generator import Generator
from fewstep.grids import Uniform
from fewstep.nets import MLP
from fewstep.paths import RectifiedFlow
from fewstep.prediction import U
from fewstep.solvers import DDIM
from fewstep.toy_data import RingData
from fewstep.train.denoising import Denoising
from fewstep.train.ema import EMA
from fewstep.train.fit import quiet
from fewstep.train.shell import iteration_seed, scheduled, seed_iteration

ITERATIONS = 1000


def main(threads: int, out: str | None) -> int:
    """Milliseconds per iteration of the same training, bare and in the shell with averaging, logging and seeding."""
    torch.set_num_threads(threads)
    quiet()
    rounds = [(_bare(), _shell()) for _ in range(3)]
    bare, shell = (min(r[k] for r in rounds) for k in (0, 1))
    write(
        {
            "bench": "shell",
            "iterations": ITERATIONS,
            **machine(),
            "bare_ms": bare,
            "shell_ms": shell,
            "overhead_ms": shell - bare,
        },
        out,
    )
    return 0


def _training() -> tuple[Denoising, RingData]:
    path = RectifiedFlow()
    student = Generator(Denoiser(MLP(dim=2, hidden=32), path, U()), DDIM(), Uniform(), 4)
    return Denoising(student, ITERATIONS), RingData(batch_size=16)


def _bare() -> float:
    """The same mathematics, averaging included, in a plain loop; CPU milliseconds per iteration."""
    module, data = _training()
    data.setup("fit")
    student = module.student
    average = copy.deepcopy(student).requires_grad_(False)
    averaged, current = ([p.data for p in m.parameters()] for m in (average, student))
    average_into = get_ema_multi_avg_fn(0.999)
    optimizer = scheduled(torch.optim.AdamW(student.parameters()))
    batches = iter(data.train_dataloader())
    start = time.process_time()
    for k in range(ITERATIONS):
        seed_iteration(iteration_seed(0, 0, k), module.device)
        module.loss(next(batches))["denoising"].backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            average_into(averaged, current, k)
    return (time.process_time() - start) / ITERATIONS * 1e3


def _shell() -> float:
    module, data = _training()
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            default_root_dir=folder,
            accelerator="cpu",
            max_epochs=-1,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
            log_every_n_steps=50,
            callbacks=[EMA(0.999), clock],
        )
        trainer.fit(module, datamodule=data)
    return (clock.end - clock.start) / ITERATIONS * 1e3


class _Clock(L.Callback):
    """CPU time of the loop alone, without the trainer's start and end."""

    start = end = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start = time.process_time()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.end = time.process_time()
