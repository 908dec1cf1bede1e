"""PeriodWave-Turbo: a vocoder's own sampler of N fixed steps, tuned through all of them against discriminators (arXiv:2408.08019).

    wave'     N Euler steps from the prior's noise, at temperature 1
    student   45 d_mel(wave', wave) + sum_k [ (C_k(wave') - 1)^2 + 2 L_fm(C_k; wave, wave') ]
    critics   sum_k [ (C_k(wave) - 1)^2 + C_k(wave')^2 ]

One step at temperature 0 is the network called once without noise: the single-pass GAN vocoder that it is compared with, from the same losses.
"""

from typing import Any, cast

from torch import Tensor, nn

from fewstep.denoiser import Cond
from fewstep.distill.adversarial_flow import AdversarialFlow
from fewstep.generator import Generator
from fewstep.train.shell import Batch
from fewstep_audio.vocoder.vocoder import Vocoder


class Turbo(AdversarialFlow):
    """Args: see `AdversarialFlow`; teacher: a `Vocoder`; temperature: of the student, whatever the teacher's is.

    Raises:
        TypeError: other generators.
    """

    student: Vocoder

    def __init__(self, teacher: Generator, iterations: int, temperature: float = 1.0, **kwargs: Any) -> None:
        if not isinstance(teacher, Vocoder):
            raise TypeError(f"Turbo tunes vocoders, not a {type(teacher).__name__}")
        super().__init__(teacher, iterations, **kwargs)
        self.student.temperature = temperature

    def seen(self, x0: Tensor, cond: Cond) -> Tensor:
        """Waves."""
        return self.student.decode(x0, cond)

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The vocoder's figures against the recordings; teachers of 32 evaluations are not sampled beside."""
        return cast(Vocoder, model).scores(batch)
