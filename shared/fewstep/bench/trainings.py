"""What benches that train recipes have in common: their options, and how a seed reaches all of a training."""

import argparse
from pathlib import Path


def parser(name: str, description: str | None, out: str | None) -> argparse.ArgumentParser:
    """Of `python -m fewstep.bench.NAME`: --seeds, --folder where trainings lie (shared by all these benches), --out."""
    found = argparse.ArgumentParser(prog=f"python -m fewstep.bench.{name}", description=description)
    found.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    found.add_argument("--folder", type=Path, default=Path("runs/bench_distill"), metavar="DIR")
    found.add_argument("--out", metavar="FILE", default=out)
    return found


def seeded(seed: int) -> list[str]:
    """Options of a training: one seed for its networks, its randomness and its data, and no log."""
    given = ("--seed_everything", "--model.init_args.seed", "--data.init_args.seed")
    return [*(f"{name}={seed}" for name in given), "--trainer.logger=false"]
