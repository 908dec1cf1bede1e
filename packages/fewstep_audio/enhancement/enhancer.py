"""The speech enhancer: an anchored path over complex spectrograms, from noisy speech y to clean speech x0.

    g = max|noisy|,   y = X(noisy / g),   x0 = X(clean / g),   x_1 = start(eps, y),   enhanced = g X^-1(x_0)

    OUVE                       SGMSE+ (arXiv:2208.05830), sampled by `MeanAtEnd(PredictorCorrector())`, 2 evaluations per step
    SBVE                       Schroedinger bridge (arXiv:2409.10753); starts at y itself, any number of steps by `DDIM()`
    SBVE in one step           is a predictive network, x_hat(y, y, 1); trained at t = 1 alone it is the predictive baseline

A bin is held as two real channels, and eps has unit variance in each. The papers' complex noise has variance 1/2 per part, so a path
here has 1/sqrt 2 of the paper's standard deviation: `OUVE(sigma_min=0.05 / sqrt 2, sigma_max=0.5 / sqrt 2)` and `SBVE(c=0.4 / 2)`.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from fewstep.artifacts import load_as
from fewstep.denoiser import Cond, Denoiser
from fewstep.generator import Generator, Prepared
from fewstep.grids import Grid
from fewstep.sampling import Callback
from fewstep.solvers import Solver
from fewstep_audio.item_noise import ItemNoise
from fewstep_audio.metrics import si_sdr
from fewstep_audio.spectrogram import ComplexSpectrogram


class Enhancer(Generator):
    """noisy (B, N) -> enhanced (B, N) at `rate` Hz, at the level of the input.

    Args:
        denoiser: its network sees (B, 2, F, T), is given the condition `noisy` (B, 2, F, T), and may declare a `stride`.
        solver, grid, steps: how it is sampled.
        spectrogram: the front end.
        rate: samples per second of what it was trained on.
    Raises:
        ValueError: the network's stride does not divide the number of bins.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        solver: Solver,
        grid: Grid,
        steps: int = 1,
        spectrogram: ComplexSpectrogram | None = None,
        rate: int = 16000,
    ) -> None:
        super().__init__(denoiser, solver, grid, steps)
        self.spectrogram, self.rate = spectrogram or ComplexSpectrogram(), rate
        bins, stride = self.spectrogram.n_fft // 2 + 1, _stride(denoiser)
        if bins % stride:
            raise ValueError(
                f"{bins} bins (n_fft {self.spectrogram.n_fft}) are no multiple of the network's stride {stride}"
            )

    @property
    def stride(self) -> int:
        """Frames come in multiples of it."""
        return _stride(self.denoiser)

    def evaluations(self, steps: int | None = None) -> int:
        """Network calls of one sample."""
        path = self.denoiser.path
        plan = self.solver.plan(path, self.grid(path, self.steps if steps is None else steps))
        return sum(bool(row.e) for row in plan)

    def encode(self, wave: Tensor) -> Tensor:
        """(B, N) -> (B, 2, F, T), followed by silent frames up to a multiple of the stride."""
        x = self.spectrogram.forward(wave)
        return pad(x, (0, -x.shape[-1] % self.stride))

    def decode(self, x: Tensor, length: int) -> Tensor:
        """(B, 2, F, T) -> (B, length), the inverse of `encode`."""
        frames = max(length, self.spectrogram.n_fft // 2 + 1) // self.spectrogram.hop + 1
        return self.spectrogram.inverse(x[..., :frames], length)

    def prepare(self, batch: Mapping[str, Tensor]) -> Prepared:
        """{"clean": (B, N), "noisy": (B, N)} -> x0, {"noisy"}, y, each (B, 2, F, T)."""
        level = peak(batch["noisy"])
        return Prepared(self.encode(batch["clean"] / level), *self.condition(self.encode(batch["noisy"] / level)))

    def condition(self, y: Tensor) -> tuple[Cond, Tensor]:
        """(conditions, anchor) of noisy speech y: (B, 2, F, T)."""
        return {"noisy": y}, y

    def example(self) -> Prepared:
        """Two silent clips of eight strides."""
        like = next(self.parameters())
        wave = torch.zeros(2, (8 * self.stride - 1) * self.spectrogram.hop, dtype=like.dtype, device=like.device)
        return self.prepare({"clean": wave, "noisy": wave})

    def forward(
        self,
        noisy: Tensor,
        seed: int = 0,
        items: Sequence[int] | None = None,
        lengths: Sequence[int] | None = None,
        level: Tensor | None = None,
        steps: int | None = None,
        solver: Solver | None = None,
        callbacks: Iterable[Callback] = (),
    ) -> Tensor:
        """Enhance; an item gives the same alone and in a batch.

        Args:
            noisy: (B, N).
            seed, items: the noise of an item is that of (seed, its index); 0 to B - 1 unless given.
            lengths: (B,) samples that are not padding; the rest of the output is 0.
            level: (B, 1), what the input is divided by; its own peak unless given (the whole recording's, for parts of it).
            steps, solver: in place of the enhancer's own.
        """
        items = range(len(noisy)) if items is None else items
        level = peak(noisy) if level is None else level
        out = torch.zeros_like(noisy)
        # Networks with statistics over all frames (group normalisation) would see the padding: each length runs for itself.
        each = [noisy.shape[1]] * len(noisy) if lengths is None else list(lengths)
        for n in sorted(set(each)):
            rows = [i for i, own in enumerate(each) if own == n]
            cond, y = self.condition(self.encode(noisy[rows, :n] / level[rows]))
            noise = ItemNoise(y, seed, [items[i] for i in rows])
            x = self.generate(noise.draw(), cond, y, steps, solver, noise, callbacks)
            out[rows, :n] = self.decode(x, n) * level[rows]
        return torch.where(noisy.abs().amax(1, keepdim=True) > 0, out, 0.0)  # silence stays silent

    def scores(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """si_sdr of the enhanced speech in dB, and what it gains over the noisy speech."""
        clean, noisy = batch["clean"], batch["noisy"]
        own = si_sdr(self(noisy), clean)
        return {"si_sdr": own, "si_sdr_gain": own - si_sdr(noisy, clean)}

    def preview(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The compressed magnitudes of the first item: noisy, enhanced, clean, from left to right; low frequencies at the bottom."""
        noisy, clean = batch["noisy"][:1], batch["clean"][:1]
        row = torch.cat([self.encode(wave / peak(noisy))[0].norm(dim=0) for wave in (noisy, self(noisy), clean)], 1)
        return {"noisy_enhanced_clean": (row / row.max().clamp_min(1e-8)).flip(0).expand(3, -1, -1)}


def _stride(denoiser: Denoiser) -> int:
    return int(getattr(denoiser.net, "stride", 1))


def peak(wave: Tensor) -> Tensor:
    """(B, N) -> (B, 1): the largest magnitude of each item, 1 for silence."""
    largest = wave.abs().amax(1, keepdim=True)
    return torch.where(largest > 0, largest, 1.0)


def pretrained_enhancer(source: str) -> Enhancer:
    """The enhancer of an artifact folder or hub id, for recipes that build on one.

    Raises:
        ArtifactError: see `fewstep.generator.pretrained`; also where the artifact holds another kind of generator.
    """
    return load_as(source, Enhancer)
