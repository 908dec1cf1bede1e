"""Phonemes by gruut: a lexicon of 125 000 English words and a model for the others; MIT, nothing outside of Python."""

from dataclasses import dataclass

from fewstep_audio.text.ipa import PAUSES, Phonemes


@dataclass(frozen=True)
class Gruut(Phonemes):
    """language: one that gruut has data for, as en-us."""

    language: str = "en-us"

    def transcribe(self, text: str) -> str:
        """Words apart by spaces, pauses as they are written."""
        from gruut import sentences  # a second of CPU time

        said: list[str] = []
        for word in (w for sentence in sentences(text, lang=self.language) for w in sentence):
            if word.is_break:
                said.append("".join(c for c in word.text if c in PAUSES)[:1])
            elif word.phonemes:
                said.append(" " + "".join(word.phonemes))
        return "".join(said).strip()
