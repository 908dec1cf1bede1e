"""Family deis: qsh-zh/deis, on its own time nodes `ts`."""

from golden_cases import sampled

from fewstep.solvers import runge_kutta as rk
from fewstep.solvers.deis import DEIS
from fewstep.solvers.ipndm import IPNDM
from golden_families.paths import path_of
from golden_families.starts import start

TABLEAUS = {
    "1euler": rk.EULER,
    "2heun": rk.HEUN2,
    "3kutta": rk.KUTTA3,
    "3ral": rk.RALSTON3,
    "3heun": rk.HEUN3,
    "3vdh": rk.HOUWEN3,
    "3ssprk": rk.SSP3,
    "4rk": rk.RK4,
}


def solver_of(given):
    method, degree = given.get("method", "rho_rk").lower(), given.get("ab_order", 3)
    if method == "rho_rk":
        return rk.RungeKutta(TABLEAUS[given.get("rk_method", "3kutta")])
    return {"t_ab": DEIS(degree, "t"), "rho_ab": DEIS(degree, "rho"), "ipndm": IPNDM()}[method]


def deis(case):
    path = path_of(case)
    world, grid = case.mixture(case["mixture"], path), case.array("ts")
    yield from sampled(case, world, start(case), path, solver_of(case["sample_kwargs"]), grid)


FAMILIES = {"deis": deis}
