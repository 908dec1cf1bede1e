"""StoRM: predict, then regenerate what the prediction lost (arXiv:2212.11851).

    y' = D(y),   x_t on OUVE with the anchor y',   the score network sees [x_t, y, y'] (or one of y, y': its `conditions`)

Sampled without corrector: `MeanAtEnd(EulerMaruyama())`. The training of both networks together is `training.StormTraining`.
"""

import torch
from torch import Tensor

from fewstep.denoiser import Cond, Denoiser
from fewstep.grids import Grid
from fewstep.solvers import Solver
from fewstep_audio.enhancement.enhancer import Enhancer
from fewstep_audio.files import AudioError
from fewstep_audio.spectrogram import ComplexSpectrogram


class Storm(Enhancer):
    """An enhancer whose anchor is the output of another; its network is given the conditions `noisy` and `denoised`.

    Args:
        predictor: D, with its own path and steps, usually one step of SBVE; the same front end.
        denoiser, solver, grid, steps, spectrogram, rate: of the second stage, see `Enhancer`.
    Raises:
        AudioError: the front ends of the stages differ.
    """

    def __init__(
        self,
        predictor: Enhancer,
        denoiser: Denoiser,
        solver: Solver,
        grid: Grid,
        steps: int = 10,
        spectrogram: ComplexSpectrogram | None = None,
        rate: int = 16000,
    ) -> None:
        super().__init__(denoiser, solver, grid, steps, spectrogram, rate)
        if (predictor.spectrogram, predictor.rate) != (self.spectrogram, rate):
            raise AudioError(
                f"the predictor works on {predictor.spectrogram} at {predictor.rate} Hz, the second stage on {self.spectrogram} at {rate} Hz"
            )
        self.predictor = predictor

    @property
    def stride(self) -> int:
        """Of both networks, powers of 2."""
        return max(super().stride, self.predictor.stride)

    def evaluations(self, steps: int | None = None) -> int:
        """Network calls of one sample, those of the predictor included."""
        return super().evaluations(steps) + self.predictor.evaluations()

    def predict(self, y: Tensor) -> Tensor:
        """D(y): (B, 2, F, T)."""
        return self.predictor.generate(torch.zeros_like(y), *self.predictor.condition(y))

    def condition(self, y: Tensor) -> tuple[Cond, Tensor]:
        """(y and y', y') of noisy speech y."""
        denoised = self.predict(y)
        return {"noisy": y, "denoised": denoised}, denoised
