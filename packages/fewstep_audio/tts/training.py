"""Teachers of speech synthesis: durations, prior and diffusion, learnt together (Grad-TTS, arXiv:2105.06337, eq. 13-15).

    L_dur   = sum (log d_hat - log d)^2 / sum (symbols)
    L_prior = mean ((x0 - mu)^2 + log 2 pi) / 2
    L_diff  = mean w(t) (D(x_t, t, mu) - x0)^2

Means are over valid frames and bands of the whole batch; public code multiplies by the mask and then averages over the padding too.
The weight of EDM's lambda = (sigma^2 + sd^2)/(sigma sd)^2 is `InverseOutputScale(2, sd)`, that of the squared velocity of a rectified
flow `InverseNoise(2)`. The decoder's gradient reaches the encoder through mu.
"""

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from fewstep.denoiser import Cond, Denoiser
from fewstep.distill.weighting import InverseOutputScale, Weighting
from fewstep.paths import expand
from fewstep.times import LogNormalTimes, TimeSampler
from fewstep.train.shell import Batch, Shell, Terms
from fewstep_audio.tts.masks import masked_mean
from fewstep_audio.tts.text_to_speech import TextToSpeech


def duration_loss(log_durations: Tensor, durations: Tensor, text_mask: Tensor) -> Tensor:
    """L_dur, (); both (B, Tx), text_mask (B, 1, Tx)."""
    wanted = durations.clamp(min=1).log()
    return masked_mean((log_durations - wanted).square()[:, None], text_mask)


def prior_loss(x0: Tensor, mu: Tensor, mask: Tensor) -> Tensor:
    """L_prior, (); (B, bands, T), mask (B, 1, T)."""
    return 0.5 * masked_mean((x0 - mu).square() + math.log(2 * math.pi), mask)


def diffusion_loss(
    denoiser: Denoiser, x0: Tensor, eps: Tensor, t: Tensor, weight: Tensor, cond: Cond, y: Tensor | None
) -> Tensor:
    """L_diff, (); t, weight (B,)."""
    error = denoiser(denoiser.path.sample(x0, eps, t, y), t, cond, y).x0 - x0
    return masked_mean(expand(weight, x0) * error.square(), cond["mask"])


class TextToSpeechTraining(Shell):
    """Train encoder and decoder of a text-to-speech model.

    Args:
        student: the model.
        times: of the diffusion loss.
        weighting: w of the diffusion loss.
    """

    student: TextToSpeech

    def __init__(
        self,
        student: TextToSpeech,
        iterations: int,
        times: TimeSampler | None = None,
        weighting: Weighting | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(student, iterations, **kwargs)
        self.times, self.weighting = times or LogNormalTimes(), weighting or InverseOutputScale(2.0, 0.5)

    def train(self, mode: bool = True) -> Self:
        """The encoder too."""
        super().train(mode)
        self.student.encoder.train(mode)
        return self

    def loss(self, batch: Batch) -> Terms:
        """The three terms, each of weight 1."""
        return self.terms(self.student, batch)

    def terms(self, model: TextToSpeech, batch: Batch) -> Terms:
        """The three losses of a model on a batch."""
        aligned = model.align(batch)
        x0, cond, y = model.prepared(aligned)
        path = model.denoiser.path
        t = self.times(len(x0), path).to(x0.device)
        weight = self.weighting(t, torch.full_like(t, path.t_min), path)
        eps = torch.randn_like(x0)
        return {
            "duration": duration_loss(aligned.log_durations, aligned.durations, aligned.text_mask),
            "prior": prior_loss(x0, aligned.mu, aligned.mask),
            "diffusion": diffusion_loss(model.denoiser, x0, eps, t, weight, cond, y),
        }

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The losses on held-out data, each (1,), and the model's own figures."""
        assert isinstance(model, TextToSpeech)
        losses = {k: v.reshape(1) for k, v in self.terms(model, batch).items()}
        return losses | model.scores(batch)

    def preview(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(model, TextToSpeech)
        return model.preview(batch)
