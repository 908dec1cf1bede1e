"""Family superdiff: AND and OR of two mixtures with the Ito density estimate, on the notebook's path."""

import re
from dataclasses import dataclass
from itertools import count, takewhile

import torch
from golden_cases import Case, Counting, counted

from fewstep.guidance.superdiff import And, Or, superdiff
from fewstep.likelihood import sde
from fewstep.paths import Path
from golden_families.starts import start


@dataclass(frozen=True)
class Notebook(Path):
    """log a = -curve t^2 - slope t, s = t; not variance preserving."""

    curve: float
    slope: float

    def schedule(self, t):
        return torch.exp(-self.curve * t**2 - self.slope * t), torch.zeros_like(t), t


def path_of(case: Case) -> Notebook:
    """`log a_t=-Q t^2 (B1-B0) - L t, s_t=t ...`."""
    number = r"([\d.]+)"
    found = re.match(rf"log a_t=-{number} t\^2 \({number}-{number}\) - {number} t, s_t=t", case["path"])
    assert found, case["path"]
    q, b1, b0, slope = map(float, found.groups())
    return Notebook(q * (b1 - b0), slope)


def superposition(case):
    kwargs, path = case["sample_kwargs"], path_of(case)
    names = takewhile(lambda name: name in case, (f"mixture_{i}" for i in count(1)))
    models = [Counting(case.mixture(case[name], path)) for name in names]
    steps = kwargs.get("performed_steps", kwargs["n"] - 1)
    grid = 1 - torch.arange(steps + 1, dtype=torch.float64) / kwargs["n"]
    mixing = And() if kwargs["mode"] == "AND" else Or(kwargs.get("T", 1.0), (kwargs.get("l", 0.0), 0.0))
    noise, x = case.array("noise"), start(case)
    assert x is not None
    done = superdiff(models, x, path, grid, mixing, lambda n: noise[n])
    yield "out", done.x, case.array("out")
    yield "kappa of model 1", done.kappa[:, 0], case.array("kappa")
    # The notebook adds D f dt to each of the D coordinates before it sums them: D times the constant all models share.
    d, f = done.x.shape[1], sum(sde(path, t.item()).f / kwargs["n"] for t in grid[:-1])
    yield "log densities", done.log_q + (d - 1) * d * f, case.array("ll")
    yield counted(case, sum(model.calls for model in models))


FAMILIES = {"superdiff": superposition}
