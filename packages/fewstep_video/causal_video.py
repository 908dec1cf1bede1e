"""Clips made block by block, without an end: the generator of causal networks (CausVid, arXiv:2412.07772; Self-Forcing, 2506.08009).

    x_k = the sampler's end from noise_k, given the cache of x_<k;    then the cache takes in x_k, shown clean

A block costs the same whatever came before it. Noise belongs to the frame, so that a longer clip begins as a shorter one, bit for bit.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice
from typing import Any, cast

import torch
from torch import Tensor

from fewstep.causal import CausalGenerator
from fewstep.class_generator import Judge
from fewstep.denoiser import Cond, Denoiser
from fewstep.generator import Generator
from fewstep.grids import Grid
from fewstep.sampling import Callback
from fewstep.solvers.base import Solver
from fewstep_video.codecs import Codec
from fewstep_video.frame_noise import FrameNoise
from fewstep_video.nets.block_attention import Positions
from fewstep_video.nets.causal_wan import CausalWan
from fewstep_video.nets.wan import Wan
from fewstep_video.video_generator import VideoGenerator


class CausalVideo(CausalGenerator, VideoGenerator):
    """(noise, label or text) -> clip, in blocks. Arguments are those of `VideoGenerator`; the network is a `CausalWan`, which says the size of a block.

    Raises:
        ValueError: a shape that is not made of blocks, a network that keeps no cache.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        solver: Solver,
        grid: Grid,
        steps: int = 4,
        shape: Sequence[int] = (3, 8, 16, 16),
        fps: float = 8.0,
        names: Sequence[str] = (),
        judge: Judge | None = None,
        codec: Codec | None = None,
    ) -> None:
        if not hasattr(denoiser.net, "remembered"):
            raise ValueError(
                f"a CausalVideo needs a network with a cache, such as CausalWan, not {type(denoiser.net).__name__}"
            )
        VideoGenerator.__init__(self, denoiser, solver, grid, steps, shape, fps, names, judge, codec)
        self.axis = 2

    @property
    def size(self) -> int:
        """Frames of a block."""
        return int(self.denoiser.net.size)  # pyright: ignore

    @classmethod
    def of(cls, teacher: VideoGenerator, **about: Any) -> "CausalVideo":
        """The same generator made causal, with a copy of its weights; about: the further arguments of `CausalWan`."""
        d = copy.deepcopy(teacher.denoiser)
        denoiser = Denoiser(CausalWan(cast(Wan, d.net), **about), d.path, d.prediction, d.told)
        assert teacher.shape is not None
        given = (teacher.shape, teacher.fps, teacher.names, teacher.judge, copy.deepcopy(teacher.codec))
        return cls(denoiser, teacher.solver, teacher.grid, teacher.steps, *given)

    def check_size(self, frames: int, height: int, width: int) -> None:
        """As of a `VideoGenerator`, and frames are whole blocks, in any number."""
        if frames < self.size or frames % self.size:
            nearest = max(round(frames / self.size), 1) * self.size
            raise ValueError(
                f"{frames} frames are not made of blocks of {self.size}; the nearest number that is: {nearest}"
            )
        super().check_size(self.size, height, width)

    def continued(self, cond: Cond, past: Tensor) -> Cond:
        """cond with the cache that has taken in the last block of past: (B, C, F, H, W); an empty one of no frames."""
        net: Any = self.denoiser.net
        if not past.shape[2]:
            return {**cond, **net.empty(past)}
        return {**cond, **net.remembered(past[:, :, -self.size :], **cond)}

    @torch.no_grad()
    def stream(
        self,
        value: Tensor,
        seed: int = 0,
        steps: int | None = None,
        solver: Solver | None = None,
        clips: Sequence[int] | None = None,
        area: tuple[int, int] | None = None,
        callbacks: Iterable[Callback] = (),
    ) -> Iterator[Tensor]:
        """States (B, C, size, H, W), block after block without an end; arguments as of `forward`. area: (H, W) other than the trained one."""
        assert self.shape is not None
        height, width = area or self.shape[2:]
        self.check_size(self.size, height, width)
        numbers, callbacks = range(len(value)) if clips is None else clips, [*callbacks]
        told: Cond = {self.condition.name: value}
        like = next(self.parameters())
        past = torch.zeros(len(value), self.shape[0], 0, height, width, dtype=like.dtype, device=value.device)
        for n in count():
            noise = FrameNoise((self.shape[0], self.size, height, width), seed, numbers, n * self.size, value.device)
            told = self.continued(told, past)
            past = Generator.generate(self, noise.draw().to(past), told, None, steps, solver, noise, callbacks)
            yield past

    def forward(
        self,
        value: Tensor,
        frames: int | None = None,
        seed: int = 0,
        steps: int | None = None,
        solver: Solver | None = None,
        cfg: float = 1.0,
        clips: Sequence[int] | None = None,
        callbacks: Iterable[Callback] = (),
    ) -> Tensor:
        """As of a `VideoGenerator`, of any number of blocks.

        Raises:
            ValueError: guidance, for which both branches would need caches of their own.
        """
        if cfg != 1.0:
            raise ValueError(f"a CausalVideo is not guided when it samples, cfg is 1 and not {cfg}")
        assert self.shape is not None
        frames = self.shape[1] if frames is None else frames
        self.check_size(frames, *self.shape[2:])
        blocks = self.stream(value, seed, steps, solver, clips, None, callbacks)
        return self.decoded(torch.cat([*islice(blocks, frames // self.size)], 2))


def causal(
    teacher: Generator, size: int = 2, window: int = 12, sink: int = 2, positions: Positions = "rebased"
) -> CausalVideo:
    """`CausalVideo.of` for recipes.

    Raises:
        ValueError: a teacher that is no generator of clips.
    """
    if not isinstance(teacher, VideoGenerator):
        raise ValueError(f"a {type(teacher).__name__} makes no clips, so it has nothing to make causal")  # noqa: TRY004
    return CausalVideo.of(teacher, size=size, window=window, sink=sink, positions=positions)
