"""Run by torchrun, or alone: trains on numbered samples and writes each rank's parameters to OUT/rank<r>.safetensors.

Noise and times are functions of the data, so that the batch alone decides the loss. METHOD: plain (denoising) or dmd2, whose student learns
in every second iteration, against a fake score and heads.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from fewstep.denoiser import Denoiser
from fewstep.discriminators import Adversary, GlobalHead
from fewstep.distill.dmd import DMD
from fewstep.generator import Generator
from fewstep.grids import Uniform
from fewstep.nets import MLP
from fewstep.paths import RectifiedFlow
from fewstep.prediction import U
from fewstep.solvers import DDIM
from fewstep.times import TimeSampler
from fewstep.train.checkpoints import Checkpoints
from fewstep.train.denoising import denoising_loss
from fewstep.train.ema import EMA
from fewstep.train.loader import StatefulLoader
from fewstep.train.shell import Shell


class Plain(Shell):
    def loss(self, batch):
        x0 = batch["x0"]
        return {
            "denoising": denoising_loss(self.student.denoiser, x0, 3 * x0.flip(1), x0[:, 0].sigmoid().double()).mean()
        }


@dataclass(frozen=True)
class Fixed(TimeSampler):
    """All samples at one time."""

    t: float = 0.6

    def __call__(self, n, path, generator=None):
        return torch.full((n,), self.t, dtype=torch.float64)


def noise_of(x, **kwargs):
    """In place of `torch.randn_like`."""
    return 3 * x.detach().flip(1)


def plain(net, accumulate):
    return Plain(net, 6, optimizer, accumulate=accumulate)


def dmd2(net, accumulate):
    torch.randn_like = noise_of
    adversary = Adversary(["rest.0"], GlobalHead(8), times=Fixed(0.3), weight=0.3)
    return DMD(
        net, 6, ratio=2, adversary=adversary, times=Fixed(), fake_times=Fixed(0.5), optimizer=optimizer, accumulate=accumulate
    )  # fmt: skip


def optimizer(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


class Numbered:
    """Sample i is drawn by seed i."""

    def __len__(self):
        return 64

    def draw(self, index, generator):
        return {"x0": torch.randn(2, generator=torch.Generator().manual_seed(index))}


class Data(L.LightningDataModule):
    def __init__(self, batch_size):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        return StatefulLoader(Numbered(), self.batch_size, 0, self.trainer.global_rank, self.trainer.world_size)


def main(out, batch_size, strategy, accumulate, method):
    torch.manual_seed(0)
    net = Generator(Denoiser(MLP(2, 32, 2), RectifiedFlow(), U()), DDIM(), Uniform())
    model = {"plain": plain, "dmd2": dmd2}[method](net, int(accumulate))
    devices = 1 if strategy == "auto" else 2
    sharded = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False)
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy=sharded if strategy == "fsdp" else strategy, max_epochs=-1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        callbacks=[EMA(0.5), Checkpoints(out, every=6)],
    )  # fmt: skip
    trainer.fit(model, Data(int(batch_size)))
    state = {
        f"{name}.{k}": v.full_tensor() if isinstance(v, DTensor) else v
        for name, net in (*model.trained().items(), ("average", model.averaged))
        for k, v in net.state_dict().items()
    }
    save_file(state, str(Path(out) / f"rank{trainer.global_rank}.safetensors"))
    if dist.is_initialized():
        dist.barrier()  # a process that ends while the other still gathers would take it down
        dist.destroy_process_group()
        # The mesh keeps gloo's threads alive all the same. One that drops its last tensor while the interpreter is being torn down aborts the
        # process (pytorch issue 190489), so there is no tearing down.
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
