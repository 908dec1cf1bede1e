"""Frames in flight: n steps of n frames in one evaluation (StreamDiffusion's stream batch, arXiv:2312.12491).

    slot k holds a frame at t_k;    a call takes a new one in at t_0, moves every one to t_{k+1}, and gives out the one that reaches the end
    x_{k+1} = the solver's step from x_k,    whose noise, where it has any, is the slot's and stays: eps_{k+1}

n frames of latency for the price of one batch a frame. Where all inputs are the same, so are the outputs, and each is what n steps one after the other
make of it. A frame keeps the conditions it came in with (the official code leaves those in flight at the old prompt too, of all slots at once).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.denoiser import Cond, Denoiser
from fewstep.grids import Explicit
from fewstep.solvers import DDIM
from fewstep.solvers.base import Solver
from fewstep.stepping import step
from fewstep_video.stream.guidance import StreamGuidance, Unguided


class StreamBatch:
    """One stream: called with a frame, it gives a frame, or None while it fills.

    Args:
        denoiser: of frames (B, ...): pictures, or clips of a few frames.
        times: n + 1 decreasing ones, t_0 the noise that frames are given, to the clean end.
        solver: of one evaluation a step.
        guidance: see guidance.py.
        seed: of the slots' noise.
    Raises:
        ValueError: times that do not decrease, or are outside of the path's.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        times: Sequence[float],
        solver: Solver = DDIM(),  # noqa: B008
        guidance: StreamGuidance = Unguided(),  # noqa: B008
        seed: int = 0,
    ) -> None:
        path = denoiser.path
        self.times = Explicit(tuple(times))(path, len(times) - 1)
        if not path.t_min <= times[-1] < times[0] <= path.t_max:
            raise ValueError(f"times of this path are in [{path.t_min:g}, {path.t_max:g}], not {[*times]}")
        self.denoiser, self.solver, self.guidance = denoiser, solver, guidance
        self.generator = torch.Generator().manual_seed(seed)
        self.noise: Tensor | None = None
        self.states: Tensor | None = None
        self.refs: Tensor | None = None
        self.cond: Cond = {}
        self.without: Cond = {}

    @property
    def latency(self) -> int:
        """Frames that come in before the first goes out."""
        return len(self.times) - 1

    @torch.no_grad()
    def __call__(self, frame: Tensor, cond: Cond | None = None, without: Cond | None = None) -> Tensor | None:
        """frame: (1, ...) clean; cond: its conditions, (1, ...) each; without: those of the unconditional branch, for guidance that needs them."""
        self.last = (frame, cond, without)
        self.admit(frame, cond or {}, without or {})
        assert self.states is not None and self.refs is not None and self.noise is not None
        n, path = len(self.states), self.denoiser.path
        t, s = (self.times[k : k + n].to(frame.device) for k in (0, 1))
        estimate, self.refs = self.guidance(self.denoiser, self.states, t, self.cond, self.without, self.refs)
        moved = step(path, self.solver, self.states, estimate, t, s, None, self.noise[1 : n + 1])
        if n < self.latency:
            self.states = moved
            return None
        self.states = moved[:-1]
        return moved[-1:]

    def admit(self, frame: Tensor, cond: Cond, without: Cond) -> None:
        """Put a frame into the first slot; that which went out makes room."""
        if self.noise is None:
            drawn = [torch.randn(frame.shape, generator=self.generator) for _ in range(self.latency + 1)]
            self.noise = torch.cat(drawn).to(frame)
        x = self.denoiser.path.sample(frame, self.noise[:1], self.times[:1].to(frame.device))
        if self.states is None or self.refs is None:
            self.states, self.refs, self.cond, self.without = x, frame, cond, without
            return
        kept = len(self.states)
        self.states, self.refs = torch.cat([x, self.states]), torch.cat([frame, self.refs[:kept]])
        self.cond = {k: torch.cat([v, self.cond[k][:kept]]) for k, v in cond.items()}
        self.without = {k: torch.cat([v, self.without[k][:kept]]) for k, v in without.items()}

    def drain(self) -> list[Tensor]:
        """The frames still in flight, finished, oldest first: (1, ...) each. The last one follows itself until they are out."""
        wanted, out = 0 if self.states is None else len(self.states), []
        while len(out) < wanted:
            frame = self(*self.last)
            out += [] if frame is None else [frame]
        return out
