"""Texts with the mels of their recordings: batches for text to speech."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from fewstep.train.tell import tell
from fewstep_audio.data.mel_cache import MelCache
from fewstep_audio.data.module import SpeechData, divide
from fewstep_audio.data.recordings import Recordings
from fewstep_audio.data.utterance import Corpus, Utterance
from fewstep_audio.files import AudioError
from fewstep_audio.mels import Mel


class Spelling(Protocol):
    """Texts as numbers."""

    def normalise(self, text: str) -> str:
        """As it is said, in words."""
        ...

    def ids(self, text: str) -> Tensor:
        """Normalised text -> (L,) int64. Raises ValueError where it cannot be read."""
        ...


class Spoken(NamedTuple):
    """One item.

    Attributes:
        ids: (L,) symbols; mel: (bands, T).
    """

    ids: Tensor
    mel: Tensor
    utterance: Utterance


class SpokenTexts:
    """Utterances as (symbols, mel); a `Table` whose rows are padded to the longest among them.

    An utterance without text, with symbols that cannot be read, or with more symbols than frames (no alignment exists) is named and
    skipped.

    Args:
        recordings: at the rate of the mel.
        spelling: of the texts.
        mels: gives the mel of a recording.
        speakers: names that may occur, in the order of their numbers; none: no speakers in the batches.

    Raises:
        AudioError: no item is usable.
    """

    def __init__(
        self, recordings: Recordings, spelling: Spelling, mels: MelCache, speakers: Sequence[str] = ()
    ) -> None:
        self.recordings, self.spelling, self.mels, self.speakers = recordings, spelling, mels, list(speakers)
        self.items: list[tuple[int, Tensor]] = []
        for i, utterance in enumerate(recordings.utterances):
            try:
                self.items.append((i, self._ids(utterance)))
            except ValueError as error:
                warnings.warn(f"skipped: {utterance.path}: {error}", stacklevel=2)
        if not self.items:
            raise AudioError(f"none of {len(recordings)} recordings has a text that can be read")

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Spoken:
        """Item `index`, or the next with as many frames as symbols."""
        for k in range(len(self)):
            i, ids = self.items[(index + k) % len(self)]
            recording = self.recordings[i]
            if recording.utterance is not self.recordings.utterances[i]:  # another took its place
                continue
            mel = self.mels(recording)
            if mel.shape[1] >= len(ids):
                return Spoken(ids, mel, recording.utterance)
            what = f"{mel.shape[1]} frames for {len(ids)} symbols"
            warnings.warn(
                f"skipped: {recording.utterance.path}: {what}; allowed: at least as many frames", stacklevel=2
            )
        raise AudioError("no recording has as many frames as its text has symbols")

    def rows(self, index: list[int]) -> dict[str, Tensor]:
        """text (B, L) int64 padded with 0, symbols (B,) their numbers; mel (B, bands, T) padded with the mel's floor, frames (B,);
        speaker (B,) where there are speakers; label (B,) where all have one."""
        items = [self[i] for i in index]
        out = {
            "text": pad_sequence([item.ids for item in items], batch_first=True),
            "symbols": torch.tensor([len(item.ids) for item in items]),
            "mel": pad_sequence([item.mel.T for item in items], True, self.mels.mel.floor).mT.contiguous(),
            "frames": torch.tensor([item.mel.shape[1] for item in items]),
        }
        if self.speakers:
            out["speaker"] = torch.tensor([self.speakers.index(item.utterance.speaker) for item in items])
        labels = [item.utterance.label for item in items]
        return out if None in labels else {**out, "label": torch.tensor(labels)}

    def _ids(self, utterance: Utterance) -> Tensor:
        if not utterance.text:
            raise ValueError("no text")
        if self.speakers and utterance.speaker not in self.speakers:
            raise ValueError(f"speaker {utterance.speaker!r}; allowed: {', '.join(self.speakers)}")
        return self.spelling.ids(self.spelling.normalise(utterance.text))


class SpokenText(SpeechData):
    """Batches of `SpokenTexts.rows`; the held-out utterances validate.

    Args:
        corpus: of recordings with texts.
        spelling: of the texts, that of the model.
        mel: front end, that of the model.
        speakers: names in the order of their numbers, as in the model; none for one voice.
        longest: in seconds; longer utterances are skipped.
        cache: folder for mels; analysed at every use where not given.
        batch_size, workers, seed: as in `SpeechData`.
        validate_on: at most this many held-out utterances.
    """

    def __init__(
        self,
        corpus: Corpus,
        spelling: Spelling,
        mel: Mel,
        speakers: list[str] | None = None,
        longest: float = 15.0,
        cache: str | None = None,
        batch_size: int = 32,
        workers: int = 0,
        validate_on: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, workers, seed)
        self.corpus, self.spelling, self.mel, self.speakers = corpus, spelling, mel, speakers
        self.longest, self.cache, self.validate_on = longest, cache, validate_on

    def setup(self, stage: str | None = None) -> None:
        """Raises AudioError where nothing is usable."""
        if hasattr(self, "train"):
            return
        train, val = divide(self.corpus)
        if missing := sorted(set(self.speakers or ()) - {u.speaker for u in train}):
            tell(f"speech: no recording to train the voice of {', '.join(missing)}")
        self.train, self.val = self._texts(train), self._texts(val)

    def val_dataloader(self) -> DataLoader:
        # Spread over the held-out utterances, which may be sorted by digit or speaker.
        count = min(self.validate_on, len(self.val))
        chosen = [i * len(self.val) // count for i in range(count)]
        batches = [chosen[k : k + self.batch_size] for k in range(0, count, self.batch_size)]
        return DataLoader(batches, batch_size=None, collate_fn=self.val.rows)  # pyright: ignore[reportArgumentType]

    def _texts(self, part: list[Utterance]) -> SpokenTexts:
        recordings = Recordings(part, self.mel.rate, longest=self.longest)
        return SpokenTexts(recordings, self.spelling, MelCache(self.cache, self.mel), self.speakers or ())
