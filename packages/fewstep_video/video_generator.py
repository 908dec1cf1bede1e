"""The generator of clips: noise and a class or text -> video.

batch {"video": (B, C, F, H, W) in [-1, 1], "label": (B,) or "text": (B, L, D)}         states x0: the video, or a codec's latents of it
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from fewstep.class_generator import Judge
from fewstep.denoiser import Cond, Denoiser
from fewstep.generator import Generator, Prepared
from fewstep.grids import Grid
from fewstep.sampling import Callback, sample
from fewstep.solvers.base import Solver
from fewstep_video.codecs import Codec
from fewstep_video.frame_noise import FrameNoise
from fewstep_video.nets.conditions import Conditions
from fewstep_video.sheet import contact_sheet


class VideoGenerator(Generator):
    """Clips of a class or a text, in pixels or in a codec's latents.

    Args:
        denoiser: its network has `condition`, as `nets.VideoNetwork` does.
        solver, grid, steps: how it is sampled.
        shape: (C, F, H, W) of the states it was trained on.
        fps: frames per second of its clips.
        names: of the classes, in the order of the labels; needed only to ask for a class by its name.
        judge: gives the figures that are logged at validation, of samples (B, C, F, H, W) beside the batch's video.
        codec: batches hold pixels, states are its latents; without one states are the pixels, or latents that batches hold.
    Raises:
        ValueError: a shape that the network cannot take, names that are not as many as the classes.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        solver: Solver,
        grid: Grid,
        steps: int = 50,
        shape: Sequence[int] = (3, 8, 16, 16),
        fps: float = 8.0,
        names: Sequence[str] = (),
        judge: Judge | None = None,
        codec: Codec | None = None,
    ) -> None:
        super().__init__(denoiser, solver, grid, steps)
        if len(shape) != 4:
            raise ValueError(f"the shape of a clip is (C, F, H, W), not {tuple(shape)}")
        self.shape, self.fps, self.names, self.judge = tuple(shape), fps, tuple(names), judge
        self.codec = codec
        if names and len(names) != self.classes:
            raise ValueError(f"{len(names)} names for a network of {self.classes} classes")
        self.check_size(*self.shape[1:])

    @property
    def condition(self) -> Conditions:
        """Of the network."""
        return cast(Conditions, self.denoiser.net.condition)

    @property
    def classes(self) -> int:
        """How many the network knows; also the null label; 0 where it is conditioned on text."""
        return int(getattr(self.denoiser.net, "classes", 0))

    def check_size(self, frames: int, height: int, width: int) -> None:
        """Raise ValueError, with the nearest sizes, where the network cannot take states of this size."""
        fits = getattr(self.denoiser.net, "fits", None)
        if fits is not None and (why := fits(frames, height, width)) is not None:
            raise ValueError(why)

    def prepare(self, batch: Mapping[str, Tensor]) -> Prepared:
        """{"video", "label" or "text"} -> x0, the network's condition."""
        return Prepared(self.encoded(batch["video"]), {self.condition.name: batch[self.condition.name]}, None)

    @torch.no_grad()
    def encoded(self, video: Tensor) -> Tensor:
        """States (B, C, F, H, W) of clips."""
        return video if self.codec is None else self.codec.encode(video)

    @torch.no_grad()
    def decoded(self, x0: Tensor) -> Tensor:
        """Clips (B, C, F, H, W) in [-1, 1] of states."""
        return (x0 if self.codec is None else self.codec.decode(x0)).clamp(-1, 1)

    def unconditional(self, cond: Cond) -> Cond:
        """The same with the null label or text."""
        name = self.condition.name
        return {**cond, name: self.condition.null(cond[name])}

    def draw_conditions(self, generator: torch.Generator) -> Cond:
        """A label, each equally likely; or a random text."""
        return {self.condition.name: self.condition.draw(generator)}

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
        """Clips in [-1, 1] of labels (B,) or texts (B, L, D).

        Noise belongs to (seed, clip, frame): clip i is the same whatever it is generated beside.

        Args:
            frames: of the states; those it was trained on unless given.
            cfg: guidance scale, 1 is none.
            clips: the numbers of the clips, 0, 1, ... unless given.
        """
        assert self.shape is not None
        channels, trained, height, width = self.shape
        frames = trained if frames is None else frames
        self.check_size(frames, height, width)
        numbers = range(len(value)) if clips is None else clips
        noise = FrameNoise((channels, frames, height, width), seed, numbers, device=value.device)
        cond, start = {self.condition.name: value}, noise.draw()
        if cfg == 1.0:
            return self.decoded(self.generate(start, cond, None, steps, solver, noise, callbacks))
        path = self.denoiser.path
        grid = self.grid(path, self.steps if steps is None else steps)
        denoise = self.bind(cond, None, cfg)
        begun = self.begin(start, None, float(grid[0]))
        return self.decoded(sample(denoise, begun, path, solver or self.solver, grid, None, noise, callbacks))

    def scores(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the judge says of samples with the conditions of the batch."""
        if self.judge is None:
            return {}
        x0, cond, _ = self.prepare(batch)
        return self.judge(self.decoded(self.generate(torch.randn_like(x0), cond)), batch)

    def preview(self, batch: Mapping[str, Tensor], rows: int = 8) -> dict[str, Tensor]:
        """A contact sheet of samples, one row a clip: the classes in turn, or the first texts of the batch."""
        given = batch[self.condition.name]
        value = torch.arange(rows, device=given.device) % self.classes if self.classes else given[:rows]
        video = self(value)
        return {"samples": contact_sheet(video)} if video.shape[1] in (1, 3) else {}
