from fewstep.solvers.ancestral import Ancestral as Ancestral
from fewstep.solvers.ancestral import UnitGainAncestral as UnitGainAncestral
from fewstep.solvers.base import LinearSolver as LinearSolver
from fewstep.solvers.base import Row as Row
from fewstep.solvers.base import Solver as Solver
from fewstep.solvers.base import Stage as Stage
from fewstep.solvers.base import State as State
from fewstep.solvers.base import advance as advance
from fewstep.solvers.ddim import DDIM as DDIM
from fewstep.solvers.dpmpp_2m import DPMpp2M as DPMpp2M
from fewstep.solvers.heun import Heun as Heun

# Names under which the same first-order step is known.
Euler = DDIM
DPMpp1 = DDIM
