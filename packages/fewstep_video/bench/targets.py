"""What benches of video share: options, rows that are kept in files, the targets that they are held to, the table."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from fewstep.bench.timing import machine, write

# The rows of one seed, by system.
Table = Mapping[str, Mapping[str, float]]


def kept(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The row in a file, made unless it is there."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        found = make()
        file.write_text(json.dumps(found, indent=2))
    return json.loads(file.read_text())


class Target(NamedTuple):
    """value(rows of one seed by system) within bounds."""

    name: str
    value: Callable[[Table], float]
    at_most: float | None = None
    at_least: float | None = None

    def reached(self, value: float) -> bool:
        """Whether it is within the bounds."""
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)


def ratio(figure: str, one: str, other: str) -> Callable[[Table], float]:
    """figure of one system over that of another."""
    return lambda rows: rows[one][figure] / rows[other][figure]


def figure(name: str, system: str) -> Callable[[Table], float]:
    """One figure of a system."""
    return lambda rows: rows[system][name]


def judged(targets: Sequence[Target], found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every target with its value for each seed, the median, and whether that reaches it; targets of missing systems are left out."""
    table: dict[int, dict[str, Mapping[str, Any]]] = {}
    for row in found:
        table.setdefault(row["seed"], {})[row["system"]] = row
    results = []
    for target in targets:
        try:
            values = [target.value(of_seed) for of_seed in table.values()]
        except KeyError:
            continue
        middle = median(values)
        bounds = {k: v for k in ("at_most", "at_least") if (v := getattr(target, k)) is not None}
        told = {"values": [round(v, 4) for v in values], "median": round(middle, 4)}
        results.append({"target": target.name, **bounds, **told, "reached": target.reached(middle)})
    return results


def options(name: str, description: str | None, clips: int = 512) -> argparse.ArgumentParser:
    """Of `python -m fewstep_video.bench.NAME`: seeds, numbers of clips, where trainings lie, changes to all of them, the file to write."""
    parser = argparse.ArgumentParser(prog=f"python -m fewstep_video.bench.{name}", description=description)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clips", type=int, default=clips)
    parser.add_argument("--real", type=int, default=1024)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench_video"), metavar="DIR")
    parser.add_argument(
        "--set", action="append", default=[], metavar="--OPTION=VALUE", help="a further option of all trainings"
    )
    parser.add_argument("--out", metavar="FILE")
    return parser


def table(
    about: Mapping[str, Any], args: argparse.Namespace, rows: Iterable[dict[str, Any]], targets: Sequence[Target]
) -> int:
    """Tell every row as it is made, and write all of them with their targets as JSON."""
    found = []
    for row in rows:
        found.append(row)
        told = ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "seed" and isinstance(v, float))
        sys.stderr.write(f"seed {row['seed']} {row['system']}: {told}\n")
    head = {**about, **machine(), "clips": args.clips, "real": args.real}
    write(head | {"targets": judged(targets, found), "rows": found}, args.out)
    return 0
