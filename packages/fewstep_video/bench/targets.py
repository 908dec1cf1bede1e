"""The targets that rows of a bench are held to, and rows that are kept in files."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

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
