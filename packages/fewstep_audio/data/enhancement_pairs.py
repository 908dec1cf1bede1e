"""Recorded pairs of clean and noisy speech: batches for enhancement."""

from pathlib import Path

from fewstep_audio.data.module import Fixed, SpeechData
from fewstep_audio.data.pairs import NoisyPairs, match_folders, sgmse_parts
from fewstep_audio.files import AudioError


class EnhancementPairs(SpeechData):
    """Batches {"clean", "noisy"}: (B, samples) each; crops of the validation pairs, always the same, validate.

    Args:
        root: of the layout train|valid|test / clean|noisy (VoiceBank-DEMAND as sp-uhh/sgmse has it), or of two folders clean and noisy.
        noisy: where the clean folder is `root` and the noisy one lies elsewhere; every tenth pair is then held out.
        rate: in Hz, to which all are resampled.
        samples: of a crop; 32640 are the 256 frames of SGMSE+.
        batch_size, workers, seed: as in `SpeechData`.
        validate_on: at most this many pairs.
    """

    def __init__(
        self,
        root: str,
        noisy: str | None = None,
        rate: int = 16000,
        samples: int = 32640,
        batch_size: int = 8,
        workers: int = 0,
        validate_on: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, workers, seed)
        self.root, self.noisy, self.rate, self.samples, self.validate_on = root, noisy, rate, samples, validate_on

    def setup(self, stage: str | None = None) -> None:
        """Raises AudioError where there are no pairs."""
        if hasattr(self, "train"):
            return
        if self.noisy is None:
            train, held_out = sgmse_parts(Path(self.root))
        else:
            pairs = match_folders(self.root, self.noisy)
            train, held_out = [p for i, p in enumerate(pairs) if i % 10], pairs[::10]
            if not train:
                raise AudioError(f"{self.root}: one pair; allowed: at least two")
        self.train = NoisyPairs(train, self.rate, self.samples)
        self.val = Fixed(NoisyPairs(held_out, self.rate, self.samples), self.seed, self.validate_on)
