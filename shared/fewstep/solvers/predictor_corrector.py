"""Predictor-corrector sampling (Score-SDE arXiv:2011.13456; SGMSE+ arXiv:2208.05830): corrections at t, then t -> s.

Annealed Langevin dynamics with step = 2 (r s_t)^2, r = snr:

    x' = x + step score + sqrt(2 step) xi      =>      z' = (1 - 2 r^2) z + 2 r^2 a_t x0 + 2 r s_t xi

The published SGMSE+ sampler (30 steps, 60 NFE) is `MeanAtEnd(PredictorCorrector(EulerMaruyama(), snr=0.5))` from
y + s_1 xi on the grid linspace(1, 0.03, 30) followed by 0: its last step has length t_eps and returns the mean. StoRM
leaves out the corrector and takes the output of a predictive network as y.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from fewstep.paths import Path
from fewstep.solvers.base import Solver, Stage
from fewstep.solvers.euler_maruyama import EulerMaruyama


@dataclass(frozen=True)
class PredictorCorrector(Solver):
    """`corrections` Langevin steps before every step of `predictor`; NFE per step: theirs plus the predictor's.

    snr: r above; the Langevin chain has the marginal of t as its limit for r -> 0. The enhancement script of SGMSE+
        uses 0.5, its sampling function defaults to 0.1.
    Steps that the predictor replaces by DDIM are taken without correction.
    """

    predictor: Solver = field(default_factory=EulerMaruyama)
    snr: float = 0.5
    corrections: int = 1

    def __post_init__(self) -> None:
        if self.predictor.past:
            raise ValueError(
                f"a predictor looks at the current step alone, {type(self.predictor).__name__} at earlier ones"
            )
        if self.corrections < 0 or self.snr < 0:
            raise ValueError(f"snr and corrections are {self.snr} and {self.corrections}; allowed: both >= 0")

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The predictor's: the deterministic limit is r = 0."""
        return self.predictor.order

    def stages(self, path: Path, t: Tensor, s: Tensor, past: Sequence[Tensor]) -> tuple[Stage, ...]:
        a, _, st = path.schedule(t)
        pull = 2 * self.snr**2
        correct = Stage(t, (1 - pull + 0 * a,), (pull * a,), 2 * self.snr * st)
        # z is x - b y in every stage of a step, so the corrector has no weight of y.
        return *[correct] * self.corrections, *self.predictor.stages(path, t, s, past)

    def regular(self, path: Path, t: Tensor, s: Tensor, stages: int) -> Tensor:
        return self.predictor.regular(path, t, s, stages - self.corrections)
