"""`fewstep bench forgetting`: what a student that unlearns a class of the ring still makes of it (score forgetting, arXiv:2409.11219).

The student of ring_forgetting.yaml and its teacher are asked for every label alike often. A sample belongs to the nearest mode, and to
none beyond three deviations from it. One row per seed:

    forgotten         share of what was asked for as the forgotten class that lies in its mode;  forgotten_of_all, of all samples
    override          share of it that lies in the mode of the class that replaces it
    kept, kept_teacher    for every other class, share of what was asked for it that lies in its mode, of student and of teacher
    worst_change      the largest |kept/kept_teacher - 1|
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from fewstep.bench import distill, trainings
from fewstep.bench.distill_worlds import Ring
from fewstep.bench.timing import machine, write
from fewstep.generator import Generator, pretrained

RECIPE, TEACHER = "ring_forgetting", "ring_classes"
SAMPLES = 40_000


@torch.no_grad()
def confusion(model: Generator, world: Ring, seed: int) -> Tensor:
    """(K, K): of what is asked for as one class, the share that lies in each mode."""
    means = world.mixture.means
    label = torch.arange(SAMPLES) % len(means)
    noise = torch.randn(SAMPLES, 2, generator=torch.Generator().manual_seed(1000 + seed))
    torch.manual_seed(0)  # stochastic samplers draw more
    near, mode = torch.cdist(model.generate(noise, {"label": label}).double(), means).min(1)
    counts = torch.zeros(len(means), len(means), dtype=torch.float64)
    ones = (near <= world.radius).double()
    counts.index_put_((label, mode), ones, accumulate=True)
    return counts / torch.bincount(label)[:, None]


def measured(seed: int, folder: Path) -> dict[str, Any]:
    """The row of one seed; trained where it is not yet."""
    world = Ring()
    spent = distill.trained(RECIPE, world, seed, folder)
    place = folder / world.name / str(seed)
    args = yaml.safe_load((place / RECIPE / "recipe.yaml").read_text())["model"]["init_args"]
    gone, instead = args["forget"], args["override"]
    student, teacher = (confusion(pretrained(str(place / n / "last")), world, seed) for n in (RECIPE, TEACHER))
    others = [k for k in range(len(student)) if k != gone]
    kept, before = student.diagonal()[others], teacher.diagonal()[others]
    return {
        "seed": seed,
        **spent,
        "forgotten": student[gone, gone].item(),
        "forgotten_of_all": student[:, gone].mean().item(),
        "override": student[gone, instead].item(),
        "kept": kept.tolist(),
        "kept_teacher": before.tolist(),
        "worst_change": (kept / before - 1).abs().max().item(),
        "samples": SAMPLES,
    }


def main(threads: int = 1, out: str | None = None, argv: Sequence[str] = ()) -> int:
    """One row per seed."""
    parser = trainings.parser("forgetting", __doc__, out)
    args = parser.parse_args(argv)
    torch.set_num_threads(threads)
    rows = []
    for seed in args.seeds:
        rows.append(measured(seed, args.folder))
        shown = {k: round(rows[-1][k], 4) for k in ("forgotten", "forgotten_of_all", "override", "worst_change")}
        sys.stderr.write(f"seed {seed}: {shown}\n")
    write({"bench": "forgetting", **machine(), "rows": rows}, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(argv=sys.argv[1:]))
