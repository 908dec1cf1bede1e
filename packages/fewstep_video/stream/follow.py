"""A stream of clips over another one: blocks of the input, noised, are made anew by a causal generator (StreamDiffusionV2, arXiv:2511.07399).

    x_nu = the path's noising of the input block to nu,   then the student's own steps below nu, given the cache of what it made before

nu is a fixed level or a `NoiseController`'s. The official code tells the network .1 less than the noise there is; here it is told what there is.
"""

import torch
from torch import Tensor

from fewstep.denoiser import Cond
from fewstep.sampling import sample
from fewstep_video.causal_video import CausalVideo
from fewstep_video.frame_noise import FrameNoise
from fewstep_video.stream.noise_controller import NoiseController


class Follow:
    """One stream, called with each block of the input: it gives the block made of it.

    Args:
        model: of states that are the input's pixels.
        value: label or text of the stream, (1, ...).
        level: nu, a share of the path's range in (0, 1], or what gives it for each block.
        steps: of the model, of which those below nu are taken; seed: of the noise.
    """

    latency = 1

    def __init__(
        self,
        model: CausalVideo,
        value: Tensor,
        level: float | NoiseController = 0.6,
        steps: int | None = None,
        seed: int = 0,
    ) -> None:
        self.model, self.seed = model, seed
        self.control = level if isinstance(level, NoiseController) else NoiseController(level, span=0.0)
        path = model.denoiser.path
        self.times = model.grid(path, model.steps if steps is None else steps)
        self.told: Cond = {model.condition.name: value}
        self.past: Tensor | None = None
        self.frames = 0

    def grid(self, nu: float) -> Tensor:
        """The times from nu down: nu itself, and the model's own that lie below it by more than a hundredth of the range."""
        path = self.model.denoiser.path
        span = path.t_max - path.t_min
        first = path.t_min + nu * span
        below = self.times[self.times < first - 0.01 * span]
        return torch.cat([torch.tensor([first], dtype=torch.float64), below])

    @torch.no_grad()
    def __call__(self, block: Tensor) -> Tensor:
        """(1, C, size, H, W) -> the same."""
        model, path = self.model, self.model.denoiser.path
        self.past = block[:, :, :0] if self.past is None else self.past
        self.told = model.continued(self.told, self.past)
        noise = FrameNoise(block.shape[1:], self.seed, [0], self.frames, block.device)
        times = self.grid(self.control(block))
        x = path.sample(block, noise.draw().to(block), times[:1].to(block.device))
        self.past = sample(model.denoiser.bind(self.told), x, path, model.solver, times, None, noise)
        self.frames += block.shape[2]
        return self.past

    def drain(self) -> list[Tensor]:
        """Nothing is in flight."""
        return []
