"""`fewstep bench preference`: what alignment gains on the ring, against the exact optimum.

Every method raises the mean of r(x) = x_1 on the ring of eight Gaussians, from a few-step student of its own seed (or from the
teacher's sampler, where the method is of flows). One row each:

    reward_before, reward   of the reference and of the student, both sampled alike
    kl                      of the student from the reference, by nearest neighbours (metrics/knn_divergence.py)
    kl_from_world           of the student from the exact ring; kl_before, of the reference from it
    share                   (reward - reward_before) / (E_p* r - E_p r), p* the tilt of the ring whose divergence is `kl`
    near                    share of samples within three deviations of a mode

`best_of_n` is the reference without training, of n samples the best. A method is its recipe; Distillation-DPO, whose reward is the log
density of the ring, has its own reward in its row and no share. Recipes are trained in DIR/<seed>/<recipe>, and finished rows are kept.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import recipes
from fewstep.bench import distill, trainings
from fewstep.bench.distill_worlds import Ring
from fewstep.bench.timing import machine, write
from fewstep.generator import Generator, pretrained
from fewstep.metrics.knn_divergence import knn_divergence, knn_divergence_from
from fewstep.preference.rewards import QuadraticForm, Reward, best_of
from fewstep.preference.tilted import share

# Method -> the recipe whose artifact it begins as.
METHODS = {
    "pso": "ring_cd",
    "dpo": "ring_cd",
    "mix_grpo": "ring_flow",
    "refl": "ring_cd",
    "r0": "ring_cd",
    "find": "ring_cd",
    "distillation_dpo": "ring_flow",
}
SAMPLES = 20_000


def trained(method: str, seed: int, folder: Path) -> tuple[Generator, Generator, Reward, float]:
    """(student, reference sampled alike, reward, CPU seconds of the training), trained where it is not yet."""
    from fewstep.train.fit import instantiate

    place = folder / "ring" / str(seed) / f"ring_{method}"
    distill.trained(METHODS[method], Ring(), seed, folder)
    text = (recipes.folder() / f"toy/ring_{method}.yaml").read_text().replace("runs/", f"{place.parent}/")
    done = place / "training.json"
    place.mkdir(parents=True, exist_ok=True)
    (place / "recipe.yaml").write_text(text)
    run = instantiate(place / "recipe.yaml", trainings.seeded(seed))
    if not done.is_file():
        start = time.process_time()
        run.trainer.fit(run.model, run.datamodule)
        done.write_text(json.dumps({"cpu_seconds": round(time.process_time() - start, 1)}))
    student, reference = pretrained(str(place / "last")), pretrained(str(place.parent / METHODS[method] / "last"))
    if method != "distillation_dpo":  # whose teacher is slow
        reference.steps, reference.solver, reference.grid = student.steps, student.solver, student.grid
    return student, reference, run.model.reward, json.loads(done.read_text())["cpu_seconds"]


@torch.no_grad()
def figures(x: Tensor, before: Tensor, reward: Reward, world: Ring) -> dict[str, Any]:
    """The row of samples x: (N, 2) of the student and of those of the reference, each from noise of its own."""
    mixture, x, before = world.mixture, x.double(), before.double()
    kl = knn_divergence(x, before)
    first, now = (reward(v, {}).mean().item() for v in (before, x))
    row: dict[str, Any] = {"reward_before": first, "reward": now, "kl": kl}
    row["kl_from_world"] = knn_divergence_from(x, mixture.log_density(x, 0.0))
    row["kl_before"] = knn_divergence_from(before, mixture.log_density(before, 0.0))
    row["share"] = None
    if isinstance(reward, QuadraticForm) and kl > 0:
        row["share"] = share(mixture, reward, now - first, kl)
    row["near"] = (torch.cdist(x, mixture.means).min(1).values <= world.radius).double().mean().item()
    return {k: v if v is None else round(v, 4) for k, v in row.items()}


def measured(method: str, seed: int, folder: Path) -> dict[str, Any]:
    """The row of one method."""
    kept = folder / "ring" / str(seed) / f"ring_{method}" / "row.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    student, reference, reward, seconds = trained(method, seed, folder)
    torch.manual_seed(1000 + seed)
    x, before = (g.generate(torch.randn(SAMPLES, 2)) for g in (student, reference))
    row = {"method": method, "seed": seed, "steps": student.steps, "cpu_seconds": seconds}
    row |= figures(x.detach(), before.detach(), reward, Ring())
    kept.write_text(json.dumps(row, indent=2))
    return row


def chosen(n: int, seed: int, folder: Path) -> dict[str, Any]:
    """The row of the best of n samples of the reference of PSO."""
    student, reference, reward, _ = trained("pso", seed, folder)
    torch.manual_seed(1000 + seed)
    x = best_of(reference, reward, [torch.randn(SAMPLES, 2) for _ in range(n)])
    before = reference.generate(torch.randn(SAMPLES, 2)).detach()
    row = {"method": f"best_of_{n}", "seed": seed, "steps": student.steps, "cpu_seconds": 0.0}
    return row | figures(x, before, reward, Ring())


def main(threads: int = 1, out: str | None = None, argv: Sequence[str] = ()) -> int:
    """Make what is missing of the rows asked for, and write all of them."""
    parser = trainings.parser("preference", __doc__, out)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--best-of", type=int, nargs="*", default=[2, 4])
    args = parser.parse_args(argv)
    torch.set_num_threads(threads)
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        for method in args.methods:
            rows.append(measured(method, seed, args.folder))
            sys.stderr.write(f"{json.dumps(rows[-1])}\n")
        rows += [chosen(n, seed, args.folder) for n in args.best_of if "pso" in args.methods]
    write({"bench": "preference", **machine(), "samples": SAMPLES, "rows": rows}, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(argv=sys.argv[1:]))
