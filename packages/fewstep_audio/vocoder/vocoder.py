"""A vocoder is a generator of waves from mels: the flow's states live in a `Space`, whose prior the mel gives.

    training   wave -> mel -> std;  x0 = encode(wave) / std, cond = (mel, level)
    sampling   temperature eps -> solver -> x0 -> wave = decode(std x0)

The network is told frames of the mel as they are, or (mel - mean) / deviation.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fewstep.denoiser import Cond, Denoiser
from fewstep.generator import Generator, Prepared
from fewstep.grids import Grid
from fewstep.paths.shaped import Diagonal
from fewstep.sampling import Callback
from fewstep.solvers import Solver
from fewstep_audio.mels import Mel
from fewstep_audio.metrics import MultiScaleMel
from fewstep_audio.vocoder.frame_noise import frame_noise
from fewstep_audio.vocoder.spaces import Space, linear


class Vocoder(Generator):
    """mel (B, bands, T) -> wave (B, N) at the mel's rate; N = T hop, or (T - 1) hop for presets with centred frames.

    Args:
        denoiser: a `ConditionedDenoiser`, whose network encodes `mel` (B, bands, T') and what else `space` tells, T' frames of the state.
        solver, grid, steps: how it is sampled.
        mel: the preset that it was trained on.
        space: what states are.
        temperature: factor of the noise that sampling begins with; .667 for PeriodWave's teacher, 1 for students.
        mean, deviation: of the mel, for the network.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        solver: Solver,
        grid: Grid,
        mel: Mel,
        space: Space,
        steps: int = 16,
        temperature: float = 1.0,
        mean: float = 0.0,
        deviation: float = 1.0,
    ) -> None:
        super().__init__(denoiser, solver, grid, steps)
        self.mel, self.space, self.temperature = mel, space, temperature
        self.mean, self.deviation = mean, deviation

    def prepare(self, batch: Mapping[str, Tensor]) -> Prepared:
        """{"wave": (B, N)}, N a multiple of hop -> x0, its `conditions`."""
        wave = batch["wave"]
        cond = self.conditions(self.mel(wave))
        return Prepared(self.shaper(cond).white(self.space.encode(self.mel, wave)), cond, None)

    def conditions(self, mel: Tensor) -> dict[str, Tensor]:
        """mel (B, bands, T) -> {"mel": (B, bands, T'), "std": (B, 1, T'), what else the space tells}."""
        mel = self.space.align(self.mel, mel)
        return {"mel": (mel - self.mean) / self.deviation} | self.space.conditions(self.mel, linear(self.mel, mel))

    def shaper(self, cond: Cond) -> Diagonal:
        """The prior's standard deviations, of conditions."""
        return self.space.shaper(self.mel, linear(self.mel, cond["mel"] * self.deviation + self.mean))

    def decode(self, x0: Tensor, cond: Cond) -> Tensor:
        """States in units of std -> waves (B, N)."""
        return self.space.decode(self.shaper(cond).shape(x0), self.samples(cond["mel"].shape[2]))

    def samples(self, frames: int) -> int:
        """N of T' frames of a state."""
        return self.mel.hop * (frames - self.space.extra)

    @property
    def unit(self) -> int:
        """Samples at whose multiples parts of a wave may begin and be what they are inside of the whole."""
        return math.lcm(self.mel.hop, int(getattr(self.denoiser.net, "unit", 1)))

    def begin(self, noise: Tensor, y: Tensor | None = None, t: float | None = None) -> Tensor:
        return super().begin(self.temperature * noise, y, t)

    def noise(self, cond: Cond, seed: int = 0, first: int = 0, items: Iterable[int] | None = None) -> Tensor:
        """Standard normal noise of utterances from frame `first` on, each of its own number, 0, 1, ... unless given: a state (B, ...)."""
        mel = cond["mel"]
        items = range(len(mel)) if items is None else items
        drawn = torch.stack([frame_noise(seed, i, first, mel.shape[2], self.mel.hop) for i in items])
        return self.space.from_frames(drawn.to(mel))

    def forward(
        self,
        mel: Tensor,
        frames: Tensor | None = None,
        steps: int | None = None,
        solver: Solver | None = None,
        seed: int = 0,
        first: int = 0,
        callbacks: Iterable[Callback] = (),
    ) -> Tensor:
        """Vocode.

        Args:
            mel: (B, bands, T).
            frames: (B,) how many of each are meant, where some are padded; beyond their ends waves are 0, and each is what it is alone.
            steps, solver: in place of the vocoder's own.
            seed: of the noise; first: which frame of a longer utterance the mel begins with.
        Raises:
            ValueError: other numbers of bands than the preset's, mels that are not finite, no frames.
        """
        if mel.ndim != 3 or mel.shape[1] != self.mel.bands or not mel.shape[2]:
            raise ValueError(f"the mel is (B, {self.mel.bands}, frames), not {tuple(mel.shape)}")
        if not mel.isfinite().all():
            raise ValueError("the mel holds numbers that are not finite")
        lengths = [mel.shape[2]] * len(mel) if frames is None else frames.tolist()
        waves = mel.new_zeros(len(mel), 0)
        for length in sorted(set(lengths), reverse=True):
            rows = [i for i, n in enumerate(lengths) if n == length]
            cond = self.conditions(mel[rows, :, :length])
            x0 = self.generate(self.noise(cond, seed, first, rows), cond, None, steps, solver, None, callbacks)
            own = self.decode(x0, cond)
            if not waves.shape[1]:
                waves = mel.new_zeros(len(mel), own.shape[1])
            waves[rows, : own.shape[1]] = own
        return waves

    @torch.no_grad()
    def vocode(self, mel: Tensor, steps: int | None = None, seed: int = 0, first: int = 0) -> Tensor:
        """As called, without gradients: mel (B, bands, T) -> (B, N), what whoever has a mel asks of a vocoder."""
        return self(mel, steps=steps, seed=seed, first=first)

    def scores(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """mel: the multi-scale mel distance of copies of the recordings, (B,)."""
        wave = batch["wave"]
        return {"mel": MultiScaleMel(self.mel.rate)(self(self.mel(wave))[:, : wave.shape[1]], wave)}

    def preview(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The first recording: mels of the copy and of itself, one above the other, (3, 2 bands, T)."""
        mel = self.mel(batch["wave"][:1])
        copy = self.mel(self(mel))
        rows = torch.cat([copy[0].flip(0), mel[0, :, : copy.shape[2]].flip(0)])
        low, high = mel.min(), mel.max()
        return {"copy_original": ((rows - low) / (high - low + 1e-9)).clamp(0, 1).expand(3, -1, -1)}
