"""Sampling with some frames given: the replacement method (arXiv:2011.13456, section 5; for video arXiv:2204.03458, section 3.1).

    at every step, where a frame is known:   x0 <- known,   eps <- (x_t - a known)/s

so its states run straight into the known frame, and the network sees it, as noisy as the others, beside those it makes. No training and no
further network; the price is that the others follow it only as far as the steps let them: with one step they cannot, since at the noisy end there is
nothing to see.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fewstep.estimate import Estimate
from fewstep.paths import Path
from fewstep.sampling import Callback, sample
from fewstep.solvers.base import Row
from fewstep_video.frame_noise import FrameNoise
from fewstep_video.video_generator import VideoGenerator


class GivenFrames(Callback):
    """Replaces the estimate of the first k frames of states (B, C, F, H, W).

    Args:
        known: (B, C, k, H, W); path: of the sampling.
    """

    def __init__(self, known: Tensor, path: Path) -> None:
        self.known, self.path = known, path

    def on_estimate(self, x: Tensor, estimate: Estimate, row: Row) -> Estimate:
        k = self.known.shape[2]
        a, _, s = (v.to(x) for v in self.path.schedule(torch.tensor(row.t, dtype=torch.float64)))
        x0, eps = estimate.x0.clone(), estimate.eps.clone()
        x0[:, :, :k] = self.known
        if s > 0:
            eps[:, :, :k] = (x[:, :, :k] - a * self.known) / s
        return Estimate(x0, eps)


def windows(
    model: VideoGenerator,
    value: Tensor,
    given: Tensor,
    frames: int,
    overlap: int = 1,
    steps: int | None = None,
    cfg: float = 1.0,
    seed: int = 0,
) -> Iterator[Tensor]:
    """The frames that follow the given ones, block by block, in all `frames` less the given ones; memory holds one window.

    Args:
        value: the condition (1, ...).
        given: (1, C, k, H, W) in [-1, 1], pixels of the model's size; the last `overlap` of them are what is gone on from.
        frames: of the whole clip; overlap: frames that every further window is given of the one before.
    Raises:
        ValueError: fewer than 2 steps, an overlap that leaves no new frame.
    """
    assert model.shape is not None
    taken = model.steps if steps is None else steps
    if taken < 2:
        raise ValueError(f"to go on from given frames takes at least 2 steps, not {taken}: give --steps")
    known, done, number = given[:, :, -overlap:], given.shape[2], 0
    while done < frames:
        clip = window(model, value, known, taken, cfg, seed, number)
        fresh = clip[:, :, known.shape[2] :][:, :, : frames - done]
        if fresh.shape[2] == 0:
            raise ValueError(f"a window of {clip.shape[2]} frames has none to make beside {known.shape[2]} given ones")
        yield fresh
        done, number, known = done + fresh.shape[2], number + 1, clip[:, :, -overlap:]


@torch.no_grad()
def window(
    model: VideoGenerator, value: Tensor, known: Tensor, steps: int, cfg: float, seed: int, number: int
) -> Tensor:
    """One window of the model's own length that begins with the known pixels, (1, C, F, H, W) in [-1, 1]."""
    assert model.shape is not None
    path, cond = model.denoiser.path, {model.condition.name: value}
    noise = FrameNoise(model.shape, seed, [number], device=value.device)
    grid = model.grid(path, steps)
    start, states = model.begin(noise.draw(), None, float(grid[0])), model.encoded(known)
    x0 = sample(model.bind(cond, None, cfg), start, path, model.solver, grid, None, noise, [GivenFrames(states, path)])
    clip = model.decoded(x0)
    clip[:, :, : known.shape[2]] = known
    return clip


def null_condition(model: VideoGenerator, device: torch.device | str) -> Tensor:
    """The condition that stands for none, (1, ...)."""
    drawn = model.draw_conditions(torch.Generator().manual_seed(0))
    value: Tensor = drawn[model.condition.name][None].to(device)
    return model.condition.null(value)
