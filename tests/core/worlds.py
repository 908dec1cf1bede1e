"""What the tests of the core share: every path, prediction and solver, seeded draws, and the golden vectors."""

import json
from functools import cache
from pathlib import Path as FilePath

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fewstep.paths import DDPM, EDM, VE, VP, Coeffs, Cosine, Path, RectifiedFlow, ResidualShift, Trig
from fewstep.precondition import AnchoredPrecondition, ConsistencyPrecondition, EDMPrecondition
from fewstep.prediction import X0, Eps, Residual, Score, U, V
from fewstep.solvers import DDIM, Ancestral, DPMpp2M, Heun, UnitGainAncestral
from fewstep.solvers.unipc import UniPC
from fewstep.toy import Mixture
from fewstep.train.loader import StatefulLoader

GOLDEN = FilePath(__file__).parents[2].parent / "shared/golden"

PATHS = {
    "vp": VP(),
    "cosine": Cosine(),
    "ddpm": DDPM(),
    "ddpm_scaled": DDPM(beta_start=0.00085, beta_end=0.012, scaled=True),
    "edm": EDM(),
    "ve": VE(),
    "rf": RectifiedFlow(),
    "trig": Trig(),
    "resshift15": ResidualShift(),
    "resshift4": ResidualShift(steps=4, min_noise=0.2),
    "resshift4_capped": ResidualShift(steps=4, min_noise=0.2, q0_cap=0.001**0.5),
    "resshift1": ResidualShift(steps=1),
}
PREDICTIONS = {
    "x0": X0(),
    "eps": Eps(),
    "v": V(),
    "u": U(),
    "score": Score(),
    "residual": Residual(),
    "edm": EDMPrecondition(0.5),
    "consistency": ConsistencyPrecondition(0.5, 0.002),
    "anchored": AnchoredPrecondition(0.3),
}
# One of each kind; bench/catalogue.py has them all.
DETERMINISTIC = [DDIM(), DPMpp2M(), UniPC(3), Heun()]
STOCHASTIC = [Ancestral(), UnitGainAncestral()]
SOLVERS = [*DETERMINISTIC, *STOCHASTIC]


def over(table):
    """Parametrisation over the values of a table, named by its keys."""
    return [pytest.param(value, id=key) for key, value in table.items()]


def name(obj):
    return type(obj).__name__


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape, seed=0, low=0.0, high=1.0):
    return low + (high - low) * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def interior(path: Path, n: int, seed: int = 0) -> torch.Tensor:
    """n random times inside the path, a hundredth away from its ends (and, almost surely, from its knots)."""
    margin = 0.01 * (path.t_max - path.t_min)
    return uniform(n, seed=seed, low=path.t_min + margin, high=path.t_max - margin)


def coeffs(path: Path, t: torch.Tensor) -> Coeffs:
    """Coefficients as columns (B, 1)."""
    return path.coeffs(t, t[:, None])


def time_at(path: Path, lam: float) -> float:
    return path.time_of_log_snr(torch.tensor(lam, dtype=torch.float64)).item()


@cache
def golden(stem: str):
    """(arrays, description) of NAME.npz and NAME.json; skips where the golden vectors are absent."""
    if not (GOLDEN / f"{stem}.npz").is_file():
        pytest.skip(f"no golden vectors at {GOLDEN}")
    return np.load(GOLDEN / f"{stem}.npz"), json.loads((GOLDEN / f"{stem}.json").read_text())


def golden_case(case_id: str):
    """(case, key -> float64 tensor) of solvers_dev."""
    arrays, description = golden("solvers_dev")
    case = next(c for c in description["cases"] if c["id"] == case_id)
    return case, lambda key: torch.tensor(arrays[case[key]] if key in case else arrays[key], dtype=torch.float64)


def golden_ids(family: str) -> list[str]:
    """Case ids of one family; none where the golden vectors are absent (pytest then shows the test as skipped)."""
    file = GOLDEN / "solvers_dev.json"
    return [c["id"] for c in json.loads(file.read_text())["cases"] if c["family"] == family] if file.is_file() else []


def golden_mixture(which: str, path: Path, y: torch.Tensor | None = None) -> Mixture:
    m = golden("solvers_dev")[1]["mixtures"][which]
    return Mixture(path, *(torch.tensor(m[k], dtype=torch.float64) for k in ("means", "covs", "weights")), y)


def assert_golden(ours: torch.Tensor, case: dict, expected: torch.Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=case["rtol"], atol=case["atol"])


def correlated(path: Path, y: torch.Tensor | None = None) -> Mixture:
    """Three correlated Gaussians in three dimensions."""
    root = normal(3, 3, 3, seed=1) * 0.5
    covs = root @ root.mT + 0.05 * torch.eye(3, dtype=torch.float64)
    return Mixture(path, normal(3, 3, seed=2), covs, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), y)


class Batches(L.LightningDataModule):
    """Endless batches of 16 normal points in the plane."""

    def batch(self, n, generator):
        return {"x0": torch.randn(n, 2, generator=generator)}

    def train_dataloader(self):
        return StatefulLoader(self, 16)

    def val_dataloader(self):
        return DataLoader([], batch_size=None)
