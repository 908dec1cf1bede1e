from fewstep.distill.base import Distiller as Distiller
from fewstep.distill.trajectory import TrajectoryRegression as TrajectoryRegression
