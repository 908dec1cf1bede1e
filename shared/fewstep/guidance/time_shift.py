"""Time-Shift sampler (arXiv:2305.15583): ask the network at the time whose noise level the state really has.

    tau = argmin over |tau - t| <= window/2 of  (V - (a_tau^2 var_data + s_tau^2))^2,    V = variance of one sample
    eps = eps(x_t, tau),    x0 = (x_t - b_t y - s_t eps)/a_t

Few-step trajectories lag behind or run ahead of the marginals (exposure bias); the label follows the state and the grid
stays. This is the paper's rule, in which the shifted label feeds the next evaluation; its PNM code shifts the target
level of the transfer instead.
"""

import torch
from torch import Tensor

from fewstep.denoiser import Denoise
from fewstep.estimate import Estimate
from fewstep.paths import Path, expand


class TimeShift:
    """Denoiser in, denoiser out; one evaluation, at per-sample times.

    Args:
        denoise: the bound denoiser.
        path: the path of the states.
        window: width of the interval of labels around the grid's time, in the unit of t.
        cutoff: labels are shifted at times above it only; the paper tunes window and cutoff per data set and number of
            steps.
        spacing: distance of the candidate labels; 1 on paths of step indices.
        var_data: variance of the elements of x0 (the paper, with a^2 + s^2 = 1, compares with s^2: 0 here).
        y: (B, ...) the anchor on anchored paths.
    The start of a trajectory, t = t_max, keeps its label: only steps make states that are off their level.
    """

    def __init__(
        self,
        denoise: Denoise,
        path: Path,
        window: float,
        cutoff: float,
        spacing: float = 1.0,
        var_data: float = 0.0,
        y: Tensor | None = None,
    ) -> None:
        if not window >= 0 < spacing:
            raise ValueError(f"window and spacing are {window} and {spacing}; allowed: window >= 0, spacing > 0")
        self.denoise, self.path, self.window, self.cutoff = denoise, path, window, cutoff
        self.spacing, self.var_data, self.y = spacing, var_data, y

    def prepare(self, times: tuple[float, ...], x: Tensor) -> None:
        """Pass the grid on to the denoiser inside."""
        if hasattr(self.denoise, "prepare"):
            self.denoise.prepare(times, x)  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]

    def label(self, z: Tensor, t: Tensor) -> Tensor:
        """The times (B,) within the window whose level is nearest to the variance of each centred state z: (B, ...)."""
        n = int(self.window / 2 / self.spacing)
        offsets = torch.arange(-n, n + 1, dtype=torch.float64, device=z.device) * self.spacing
        candidates = (t[:, None] + offsets).clamp(self.path.t_min, self.path.t_max)
        a, _, s = self.path.schedule(candidates)
        gap = (z.flatten(1).var(1).double()[:, None] - (a**2 * self.var_data + s**2)) ** 2
        # Among equally good labels (clamped ones repeat) the one nearest to t.
        gap = torch.where(gap == gap.min(1, keepdim=True).values, offsets.abs(), torch.inf)
        tau = candidates.gather(1, gap.argmin(1, keepdim=True))[:, 0]
        return torch.where((t > self.cutoff) & (t < self.path.t_max), tau, t)

    def __call__(self, x: Tensor, t: float | Tensor) -> Estimate:
        if not isinstance(t, Tensor) and not self.cutoff < t < self.path.t_max:
            return self.denoise(x, t)
        at = torch.as_tensor(t, dtype=torch.float64, device=x.device).expand(len(x))
        a, b, s = (expand(v, x) for v in self.path.schedule(at))
        z = x if self.y is None else x - b * self.y
        eps = self.denoise(x, self.label(z, at)).eps
        return Estimate(lambda: (z - s * eps) / a, eps)
