"""Run by torchrun, or alone: trains `Plain` on numbered samples and writes each rank's parameters to OUT/rank<r>.safetensors."""

import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from fewstep.denoiser import Denoiser
from fewstep.generator import Generator
from fewstep.grids import Uniform
from fewstep.nets import MLP
from fewstep.paths import RectifiedFlow
from fewstep.prediction import U
from fewstep.solvers import DDIM
from fewstep.train.checkpoints import Checkpoints
from fewstep.train.denoising import denoising_loss
from fewstep.train.ema import EMA
from fewstep.train.loader import StatefulLoader
from fewstep.train.shell import Shell


class Plain(Shell):
    """Denoising whose noise and times are functions of the data, so that the batch alone decides the loss."""

    def loss(self, batch):
        x0 = batch["x0"]
        return {
            "denoising": denoising_loss(self.student.denoiser, x0, 3 * x0.flip(1), x0[:, 0].sigmoid().double()).mean()
        }


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


def main(out, batch_size, strategy, accumulate):
    torch.manual_seed(0)
    net = Generator(Denoiser(MLP(2, 32, 2), RectifiedFlow(), U()), DDIM(), Uniform())
    model = Plain(net, 6, lambda p: torch.optim.SGD(p, lr=0.1), accumulate=int(accumulate))
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
        for name, net in (("student", model.student), ("average", model.averaged))
        for k, v in net.state_dict().items()
    }
    save_file(state, str(Path(out) / f"rank{trainer.global_rank}.safetensors"))


if __name__ == "__main__":
    main(*sys.argv[1:])
