"""What a corpus says about one recording, and what a corpus is."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple


class Utterance(NamedTuple):
    """One line of a corpus: an audio file, and what is known of it.

    Attributes:
        text: what is said, "" where unknown.
        speaker: a name, "" where unknown.
        label: class of a classified recording (the digit of a spoken digit).
    """

    path: Path
    text: str = ""
    speaker: str = ""
    label: int | None = None


class Corpus(ABC):
    """A source of utterances, divided into those for training and those held out."""

    @abstractmethod
    def division(self) -> tuple[list[Utterance], list[Utterance]]:
        """Training utterances and held-out ones. Raises AudioError where there are none."""

    @property
    @abstractmethod
    def layout(self) -> str:
        """In words, what was found: told once at the start of a training."""
