"""Run by torchrun: draws three batches from a `PairPool`, holds rows in an `Experience`, and writes what each rank has to OUT/rank<r>.safetensors."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from fewstep.denoiser import Denoiser
from fewstep.distill.pool import PairPool
from fewstep.generator import Generator, Prepared
from fewstep.grids import Uniform
from fewstep.nets import MLP
from fewstep.paths import RectifiedFlow
from fewstep.prediction import U
from fewstep.preference.experience import Experience
from fewstep.solvers import DDIM

torch.set_num_threads(1)
dist.init_process_group("gloo")
torch.manual_seed(0)
teacher = Generator(Denoiser(MLP(2, 8, 2), RectifiedFlow(), U()), DDIM(), Uniform(), 2)
torch.manual_seed(1 + dist.get_rank())
pool = PairPool(14, fresh=1)
for _ in range(3):
    drawn = pool.draw(teacher, Prepared(torch.randn(4, 2), {}, None))
held = Experience()
for n in range(3):
    held.add({"z": torch.full((2, 1), 10.0 * dist.get_rank() + n)}, 4)
again = Experience()
again.load_state_dict(held.state_dict())
columns = {k: v.clone() for k, v in pool.state_dict().items()} | {"drawn": drawn.noise.clone()}
columns |= {"experience": held.held_z.clone(), "rows": again.rows()["z"].clone()}
save_file(columns, Path(sys.argv[1]) / f"rank{dist.get_rank()}.safetensors")
dist.destroy_process_group()
