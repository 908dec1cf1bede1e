"""Mels of spoken digits with their labels: batches for the recogniser."""

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader

from fewstep_audio.data.fsdd import SpokenDigits
from fewstep_audio.data.module import Fixed, SpeechData, divide
from fewstep_audio.data.recordings import Recordings
from fewstep_audio.mels import PRESETS
from fewstep_audio.recogniser import FRAMES, fit_frames

MEL = PRESETS["digits_8k"]


class LabelledMels:
    """A `Drawable` of {"x0": (bands, 64), "label": ()}: `digits_8k` mels, begun up to `shift` frames late, so that the place in the window
    tells nothing."""

    def __init__(self, recordings: Recordings, shift: int) -> None:
        self.shift = shift
        found = [recordings[i] for i in range(len(recordings))]
        self.mels = [MEL(recording.wave[None]) for recording in found]
        self.labels = [recording.utterance.label for recording in found]

    def __len__(self) -> int:
        return len(self.mels)

    def draw(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        mel = self.mels[index]
        late = int(torch.randint(min(self.shift, max(FRAMES - mel.shape[2], 0)) + 1, (), generator=generator))
        return {"x0": fit_frames(pad(mel, (late, 0), value=MEL.floor))[0], "label": torch.tensor(self.labels[index])}


class DigitMels(SpeechData):
    """Batches {"x0": (B, 40, 64), "label": (B,)}; the official test takes validate, in one batch.

    Args:
        folder: of the Free Spoken Digit Dataset's recordings.
        shift: see `LabelledMels`, of training.
        batch_size, workers, seed: as in `SpeechData`.
    """

    def __init__(self, folder: str, shift: int = 8, batch_size: int = 64, workers: int = 0, seed: int = 0) -> None:
        super().__init__(batch_size, workers, seed)
        self.folder, self.shift = folder, shift

    def setup(self, stage: str | None = None) -> None:
        """Raises AudioError where there are no recordings."""
        if hasattr(self, "train"):
            return
        train, test = (Recordings(part, MEL.rate) for part in divide(SpokenDigits(self.folder)))
        self.train, self.val = LabelledMels(train, self.shift), Fixed(LabelledMels(test, 0))

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=len(self.val))
