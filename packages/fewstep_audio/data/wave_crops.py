"""Stretches of recordings: batches for vocoders, which make mels of them as they need."""

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader

from fewstep_audio.data.module import Fixed, SpeechData, divide
from fewstep_audio.data.recordings import Recordings, crop
from fewstep_audio.data.utterance import Corpus


class Crops:
    """A `Drawable` of {"wave": (samples,)}: a random stretch of each recording; shorter ones are followed by zeros."""

    def __init__(self, recordings: Recordings, samples: int) -> None:
        self.recordings, self.samples = recordings, samples

    def __len__(self) -> int:
        return len(self.recordings)

    def draw(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        wave = self.recordings[index].wave
        return {"wave": crop(pad(wave, (0, max(self.samples - len(wave), 0))), self.samples, generator)}


class WaveCrops(SpeechData):
    """Batches {"wave": (B, samples)}; the same length of held-out recordings validates.

    Args:
        corpus: of recordings.
        rate: in Hz, to which all are resampled.
        samples: of a training crop, a multiple of the mel's hop.
        validation_samples: of a held-out one.
        shortest: recordings below so many seconds are skipped.
        batch_size, workers, seed: as in `SpeechData`.
        validate_on: at most this many held-out recordings.
    """

    def __init__(
        self,
        corpus: Corpus,
        rate: int,
        samples: int = 8192,
        validation_samples: int = 32768,
        shortest: float = 0.1,
        batch_size: int = 16,
        workers: int = 0,
        validate_on: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, workers, seed)
        self.corpus, self.rate, self.samples, self.validation_samples = corpus, rate, samples, validation_samples
        self.shortest, self.validate_on = shortest, validate_on

    def setup(self, stage: str | None = None) -> None:
        """Raises AudioError where nothing is usable."""
        if hasattr(self, "train"):
            return
        train, held_out = (Recordings(part, self.rate, self.shortest) for part in divide(self.corpus))
        self.train = Crops(train, self.samples)
        self.val = Fixed(Crops(held_out, self.validation_samples), self.seed, self.validate_on)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=1)  # long ones, one by one
