"""Run every case of a golden file through the public API: python tests/core/golden_cases.py FILE.json

Prints `family passed/total worst-error` per family (the worst |ours - official| / (atol + rtol |official|), at most 1 to pass)
and exits non-zero on any failure. Arrays are read from FILE.npz beside it. What a case means is read from its fields alone, by
the module of its family in golden_families/.
"""

import importlib
import json
import pkgutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(FilePath(__file__).parent))

import golden_families

from fewstep.paths import Path
from fewstep.sampling import sample
from fewstep.solvers import Solver
from fewstep.toy import Mixture

# What a family yields: (what, ours, official).
Checks = Iterator[tuple[str, torch.Tensor, torch.Tensor]]


class Golden:
    """A golden file: its description and its arrays."""

    def __init__(self, file: FilePath) -> None:
        self.description, self.arrays = json.loads(file.read_text()), np.load(file.with_suffix(".npz"))

    def cases(self) -> list["Case"]:
        return [Case(self, c) for c in self.description["cases"]]


class Case:
    """One case: `case["field"]`, `case.get("field", default)`, and its arrays as float64 tensors."""

    def __init__(self, file: Golden, fields: dict[str, Any]) -> None:
        self.file, self.fields = file, fields

    def __getitem__(self, field: str) -> Any:
        return self.fields[field]

    def __contains__(self, field: str) -> bool:
        return field in self.fields

    def get(self, field: str, default: Any = None) -> Any:
        return self.fields.get(field, default)

    def array(self, key: str) -> torch.Tensor:
        """The array of a field that holds a key, or of a key itself."""
        stored = self.file.arrays[self.fields.get(key, key)]
        return torch.tensor(stored, dtype=torch.float64 if stored.dtype.kind == "f" else None)

    def mixture(self, which: str, path: Path, y: torch.Tensor | None = None) -> Mixture:
        m = self.file.description["mixtures"][which]
        return Mixture(path, *(torch.tensor(m[k], dtype=torch.float64) for k in ("means", "covs", "weights")), y)


class Counting:
    """A denoiser that counts its calls."""

    def __init__(self, inner: Callable) -> None:
        self.inner, self.calls = inner, 0

    def __call__(self, x, t):
        self.calls += 1
        return self.inner(x, t)


def sampled(
    case: Case, denoise: Callable, x: torch.Tensor, path: Path, solver: Solver, grid: torch.Tensor, y=None, noise=None
) -> Checks:
    """sample() against the case's `out`, and the number of evaluations against its `nfe`."""
    counting = Counting(denoise)
    yield "out", sample(counting, x, path, solver, grid, y, noise), case.array("out")
    if "nfe" in case:
        yield counted(case, counting.calls)


def counted(case: Case, calls: int) -> tuple[str, torch.Tensor, torch.Tensor]:
    """The number of evaluations, which must be exact whatever the tolerance of the case."""
    return "nfe", torch.tensor(1e9 * calls), torch.tensor(1e9 * case["nfe"])


@cache
def families() -> dict[str, Callable[[Case], Checks]]:
    """family -> function of the case, from the FAMILIES of every module of golden_families/."""
    found: dict[str, Callable[[Case], Checks]] = {}
    for module in pkgutil.iter_modules(golden_families.__path__):
        found |= importlib.import_module(f"golden_families.{module.name}").FAMILIES
    return found


def error(case: Case) -> float:
    """The worst |ours - official| / (atol + rtol |official|) of the case; inf where a shape differs or ours is not finite."""
    worst = 0.0
    for _, ours, official in families()[case["family"]](case):
        if ours.shape != official.shape or not ours.isfinite().all():
            return float("inf")
        gap, allowed = (ours - official).abs(), case["atol"] + case["rtol"] * official.abs()
        worst = max(worst, torch.where(gap == 0, 0.0, gap / allowed).max().item())
    return worst


def run(file: FilePath, only: str | None = None) -> int:
    """Check all cases, print one line per family (and one per failure); the number of failures."""
    torch.set_num_threads(1)  # small tensors: threads would only wait for one another
    totals: dict[str, list[float]] = {}
    failures = 0
    for case in Golden(file).cases():
        family = case["family"]
        if only is not None and family != only:
            continue
        try:
            worst = error(case)
        except Exception as err:  # noqa: BLE001  a case that cannot be mapped is a failure of its family, with its reason
            worst = float("inf")
            print(f"{case['id']}: {type(err).__name__}: {' '.join(str(err).split())}", file=sys.stderr)
        if worst > 1:
            failures += 1
            print(f"{case['id']} ({family}): error {worst:.3g} of the tolerance", file=sys.stderr)
        totals.setdefault(family, []).append(worst)
    for family, errors in sorted(totals.items()):
        print(f"{family} {sum(e <= 1 for e in errors)}/{len(errors)} {max(errors):.3g}")
    return failures


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python tests/core/golden_cases.py FILE.json [FAMILY]")
    sys.exit(1 if run(FilePath(sys.argv[1]), *sys.argv[2:]) else 0)
