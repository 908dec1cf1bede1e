"""The phonemic alphabet that gruut and espeak-ng write English in: IPA, one symbol a character, marks of stress and length among them."""

from abc import abstractmethod
from dataclasses import dataclass

from fewstep_audio.text.symbols import Symbols, TextError

LETTERS = "abdefhijklmnoprstuvwzæðŋɐɑɒɔəɚɛɜɝɡɪɫɬɹɾʃʊʌʒʔθᵻ"
MARKS = "ˈˌː̩͡"
PAUSES = " ,.;:!?-"


@dataclass(frozen=True)
class Phonemes(Symbols):
    """English as phonemes."""

    @property
    def alphabet(self) -> str:
        return PAUSES + LETTERS + MARKS

    @property
    def written(self) -> str:
        return "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ' ,.;:!?-\"()[]"

    @abstractmethod
    def transcribe(self, text: str) -> str:
        """IPA of a normalised text."""

    def spell(self, text: str) -> str:
        """The phonemes.

        Raises:
            TextError: phonemes outside of the alphabet, which foreign words may have.
        """
        ipa = self.transcribe(text)
        unknown = sorted(set(ipa) - set(self.alphabet))
        if unknown:
            raise TextError(
                f"{type(self).__name__} writes {' '.join(unknown)} in {text!r}; the model knows {self.alphabet!r}"
            )
        return ipa
