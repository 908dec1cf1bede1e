"""Clean speech and what became of it: batches for enhancement, degraded on the fly."""

import torch
from torch import Tensor

from fewstep_audio.data.degradation import AddedNoise, Degradation
from fewstep_audio.data.module import Fixed, SpeechData, divide
from fewstep_audio.data.recordings import Recordings, fill
from fewstep_audio.data.utterance import Corpus


class DegradedCrops:
    """A `Drawable` of {"clean", "noisy"}: (samples,) each; short recordings are followed by others."""

    def __init__(self, recordings: Recordings, samples: int, degradation: Degradation) -> None:
        self.recordings, self.samples, self.degradation = recordings, samples, degradation

    def __len__(self) -> int:
        return len(self.recordings)

    def draw(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        clean = fill(self.recordings, index, self.samples, generator)
        return {"clean": clean, "noisy": self.degradation(clean, self.recordings, index, generator)}


class EnhancementCrops(SpeechData):
    """Batches {"clean", "noisy"}: (B, samples) each; held-out recordings validate, always with the same noise.

    Args:
        corpus: of clean recordings.
        rate: in Hz, to which all are resampled.
        samples: of a training crop.
        validation_samples: of a held-out one.
        degradation: of training crops; noise at -2 to 12 dB where not given.
        validation: of held-out ones; noise at 0 to 10 dB where not given.
        batch_size, workers, seed: as in `SpeechData`.
        validate_on: at most this many held-out crops.
    """

    def __init__(
        self,
        corpus: Corpus,
        rate: int,
        samples: int = 32640,
        validation_samples: int = 32640,
        degradation: Degradation | None = None,
        validation: Degradation | None = None,
        batch_size: int = 8,
        workers: int = 0,
        validate_on: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, workers, seed)
        self.corpus, self.rate, self.samples, self.validation_samples = corpus, rate, samples, validation_samples
        self.degradation, self.validation, self.validate_on = degradation, validation, validate_on

    def setup(self, stage: str | None = None) -> None:
        """Raises AudioError where nothing is usable."""
        if hasattr(self, "train"):
            return
        train, held_out = (Recordings(part, self.rate) for part in divide(self.corpus))
        self.train = DegradedCrops(train, self.samples, self.degradation or AddedNoise())
        val = DegradedCrops(held_out, self.validation_samples, self.validation or AddedNoise(0, 10))
        self.val = Fixed(val, self.seed, self.validate_on)
