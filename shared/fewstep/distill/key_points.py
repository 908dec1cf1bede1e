"""Key points: chord regression on the teacher's own states at a few fixed times (trajectory guidance of AccVideo, arXiv:2503.19462).

    k ~ U{0 .. K-1},   x_k, x_{k+1} the teacher's states at t_k > t_{k+1}
    L = d( u(x_k, t_k), (x_{k+1} - x_k)/(t_{k+1} - t_k) )

The input is a stored state, never a datum with new noise: between pairs of noise and data that do not belong together lie states that
the teacher never visits. The student then walks the stored states with K Euler steps. With AccVideo's adversary: key_points_gan.py.

On any path the chord is DDIM's line through both states (distill/line.py), and velocities are those of the path.
"""

from torch import Tensor

from fewstep.denoiser import Cond, Denoise
from fewstep.distances import Distance
from fewstep.distill.line import secant
from fewstep.distill.trajectory import StateRegression, pick
from fewstep.paths import Path
from fewstep.solvers import DDIM
from fewstep.train.shell import Batch, Terms


def chord_loss(
    f: Denoise, path: Path, x_t: Tensor, t: Tensor, x_s: Tensor, s: Tensor, distance: Distance, y: Tensor | None = None
) -> Tensor:
    """d(f's velocity at x_t, that of the chord from x_t to x_s), (B,); states (B, ...), times (B,)."""
    chord = secant(path, x_t, t, x_s, s, y)
    wanted = path.velocity(chord.x0, chord.eps, t)
    e = f(x_t, t)
    return distance(path.velocity(e.x0, e.eps, t), wanted)


class KeyPoints(StateRegression):
    """Chord regression between the student's own times, given by its `grid` and `steps`."""

    sampler = DDIM()

    def loss(self, batch: Batch) -> Terms:
        """The chord from a random one of the states to the next."""
        return {"chord": self.chord(*self.trajectories(batch)).mean()}

    def chord(self, states: Tensor, cond: Cond, y: Tensor | None) -> Tensor:
        """chord_loss at a random step of each of the trajectories (B, n + 1, ...), (B,)."""
        path, times = self.student.denoiser.path, self.times.to(states.device)
        k, rows = pick(states)
        f, x_t, x_s = self.student.denoiser.bind(cond, y), states[rows, k], states[rows, k + 1]
        return chord_loss(f, path, x_t, times[k], x_s, times[k + 1], self.distance, y)
