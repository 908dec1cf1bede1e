"""What a text encoder reads: symbols by number, with a blank between all of them (Glow-TTS, arXiv:2005.11129)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep_audio.text.english import spell_out


class TextError(ValueError):
    """A text that cannot be spoken; one line."""


@dataclass(frozen=True)
class Symbols(ABC):
    """Written text -> numbers of symbols. Symbol i is alphabet[i], the blank is len(alphabet)."""

    @property
    @abstractmethod
    def alphabet(self) -> str:
        """All symbols, one character each."""

    @property
    @abstractmethod
    def written(self) -> str:
        """The characters that `spell` reads, after `normalise`."""

    @abstractmethod
    def spell(self, text: str) -> str:
        """The symbols of a normalised text."""

    @property
    def count(self) -> int:
        """Of symbols, with the blank."""
        return len(self.alphabet) + 1

    def normalise(self, text: str) -> str:
        """As it is said, in words."""
        return spell_out(text)

    def check(self, texts: Sequence[str]) -> None:
        """Raise TextError unless all characters of these normalised texts can be read; the line lists those that cannot."""
        allowed = set(self.written) | {" "}
        unknown = sorted({c for text in texts for c in text if c not in allowed})
        if unknown:
            listed = " ".join(repr(c) for c in unknown[:20])
            raise TextError(f"unknown symbols {listed}; allowed after numbers are spelt out: {self.written!r}")

    def ids(self, text: str) -> Tensor:
        """A normalised text of n symbols -> (2 n + 1,) int64: blank s1 blank s2 ... blank.

        Raises:
            TextError: characters that cannot be read, or nothing to say.
        """
        self.check([text])
        spelt, blank = self.spell(text), len(self.alphabet)
        if not spelt.strip():
            raise TextError(f"nothing to say in {text!r}")
        ids = torch.full((2 * len(spelt) + 1,), blank)
        ids[1::2] = torch.tensor([self.alphabet.index(c) for c in spelt])
        return ids


@dataclass(frozen=True)
class Characters(Symbols):
    """The letters themselves, in lower case.

    Args:
        letters: the alphabet.
        silent: characters that are read and not said.
    """

    letters: str = "abcdefghijklmnopqrstuvwxyz' ,.;:!?-"
    silent: str = '"()[]'

    @property
    def alphabet(self) -> str:
        return self.letters

    @property
    def written(self) -> str:
        return self.letters + self.silent

    def normalise(self, text: str) -> str:
        return spell_out(text).lower()

    def spell(self, text: str) -> str:
        kept = "".join(c for c in text if c in self.letters)
        return " ".join(kept.split()) if " " in self.letters else kept
