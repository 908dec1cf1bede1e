"""The solvers that benches and tests go through, by the names people know them under."""

from fewstep.solvers.ancestral import Ancestral, ExponentialAncestral, UnitGainAncestral
from fewstep.solvers.base import Solver
from fewstep.solvers.bdia import BDIA
from fewstep.solvers.ddim import DDIM
from fewstep.solvers.deis import DEIS
from fewstep.solvers.double_step import DoubleStep
from fewstep.solvers.dpm_fast import DPMFast
from fewstep.solvers.dpm_multistep import DPM2M, DPM3M, DPMMultistep, DPMpp3M
from fewstep.solvers.dpm_sde import DPMpp2MSDE, DPMpp3MSDE
from fewstep.solvers.dpm_singlestep import DPM2S, DPM3S, DPMpp2S, DPMpp3S
from fewstep.solvers.dpmpp_2m import DPMpp2M
from fewstep.solvers.euler_maruyama import EulerMaruyama
from fewstep.solvers.heavy_ball import GHVB, HeavyBall, Nesterov
from fewstep.solvers.heavy_ball_2m import HeavyBall2M
from fewstep.solvers.heun import Heun
from fewstep.solvers.ipndm import IPNDM
from fewstep.solvers.lms import LMS
from fewstep.solvers.pndm import PLMS, PNDM
from fewstep.solvers.runge_kutta import KUTTA3, MIDPOINT, RK4, RungeKutta
from fewstep.solvers.singlestep_sde import DPMpp2SAncestral, DPMppSDE
from fewstep.solvers.unipc import UniPC

DETERMINISTIC: dict[str, Solver] = {
    "DDIM": DDIM(),
    "DPM-Solver-2M": DPM2M(),
    "DPM-Solver-3M": DPM3M(),
    "DPM-Solver-3M exact": DPM3M(variant="exact"),
    "DPM-Solver++(2M)": DPMpp2M(),
    "DPM-Solver++(2M) taylor": DPMMultistep(rule="taylor"),
    "DPM-Solver++(3M)": DPMpp3M(),
    "DPM-Solver++(3M) exact": DPMpp3M(variant="exact"),
    "DPM-Solver-2S": DPM2S(),
    "DPM-Solver-3S": DPM3S(),
    "DPM-Solver++(2S)": DPMpp2S(),
    "DPM-Solver++(3S)": DPMpp3S(),
    "UniPC-1": UniPC(1, tail=False),
    "UniPC-2": UniPC(2, tail=False),
    "UniPC-2 vary": UniPC(2, b="vary", tail=False),
    "UniPC-3": UniPC(3, tail=False),
    "UniPC-3 eps": UniPC(3, uses="eps", tail=False),
    "UniP-2": UniPC(2, corrector=False, tail=False),
    "UniP-3": UniPC(3, corrector=False, tail=False),
    "DEIS t, 1": DEIS(1),
    "DEIS t, 2": DEIS(2),
    "DEIS t, 3": DEIS(3),
    "DEIS rho, 2": DEIS(2, "rho"),
    "DEIS lambda, 2": DEIS(2, "lambda"),
    "LMS-4": LMS(),
    "iPNDM": IPNDM(),
    "PNDM": PNDM(),
    "PLMS": PLMS(),
    "GHVB 1.5": GHVB(1.5),
    "heavy ball 1.5": HeavyBall(1.5),
    "Nesterov 1.5": Nesterov(1.5),
    "heavy ball 2M, 0.8": HeavyBall2M(),
    "BDIA 1": BDIA(1.0),
    "BDIA 0.5": BDIA(0.5),
    "Heun": Heun(),
    "midpoint": RungeKutta(MIDPOINT),
    "Kutta 3": RungeKutta(KUTTA3),
    "RK4": RungeKutta(RK4),
    "Heun in t": RungeKutta(variable="t"),
    "RK4 in t": RungeKutta(RK4, "t"),
}
# Deterministic too, but a step takes several times of the grid, and the last ones are shorter where their number asks for it.
SPANNING: dict[str, Solver] = {"DPM-Solver-fast 2": DPMFast(2), "DPM-Solver-fast 3": DPMFast()}
STOCHASTIC: dict[str, Solver] = {
    "ancestral": Ancestral(),
    "ancestral, eta 0.5": Ancestral(0.5),
    "ancestral, unit gain": UnitGainAncestral(),
    "ancestral, exponential": ExponentialAncestral(),
    "double step": DoubleStep(),
    "DPM-Solver++(2M) SDE": DPMpp2MSDE(),
    "DPM-Solver++(3M) SDE": DPMpp3MSDE(),
    "DPM-Solver++ SDE": DPMppSDE(),
    "DPM-Solver++(2S) ancestral": DPMpp2SAncestral(),
    "Euler-Maruyama": EulerMaruyama(),
}
SOLVERS: dict[str, Solver] = DETERMINISTIC | STOCHASTIC
# What people would choose between at few evaluations.
FIXED = {
    name: DETERMINISTIC[name]
    for name in (
        "DDIM",
        "DPM-Solver++(2M)",
        "DPM-Solver++(3M)",
        "DPM-Solver++(3M) exact",
        "DPM-Solver-2M",
        "DPM-Solver-3M exact",
        "DPM-Solver++(2S)",
        "DPM-Solver++(3S)",
        "UniPC-2",
        "UniPC-3",
        "UniPC-3 eps",
        "DEIS t, 2",
        "DEIS t, 3",
        "LMS-4",
        "iPNDM",
        "GHVB 1.5",
        "BDIA 1",
        "Heun",
        "RK4",
    )
}
REFERENCE: Solver = UniPC(3, b="vary", tail=False)
