"""Free Spoken Digit Dataset (Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0): `{digit}_{speaker}_{take}.wav`, 8 kHz.

The official split: takes 0 to 4 of every digit and speaker are the test set.
"""

import re

from fewstep_audio.data.utterance import Corpus, Utterance
from fewstep_audio.files import AudioError, list_audio

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEST_TAKES = 5

_NAME = re.compile(r"([0-9])_(.+)_(\d+)")


class SpokenDigits(Corpus):
    """Utterances with the digit's word as text and the digit as label.

    Args:
        folder: of the recordings.
        speakers: these alone, in this order; all, by name, where not given.
    """

    def __init__(self, folder: str, speakers: list[str] | None = None) -> None:
        self.folder, self.speakers = folder, speakers

    def division(self) -> tuple[list[Utterance], list[Utterance]]:
        """Takes 5 and above, takes 0 to 4; in the order digit, speaker, take.

        Raises:
            AudioError: no folder, no file of that name pattern, or no recording of one of the speakers.
        """
        found = [(_NAME.fullmatch(p.stem), p) for p in list_audio(self.folder)]
        named = [(int(m[1]), m[2], int(m[3]), p) for m, p in found if m]
        known = {speaker for _, speaker, _, _ in named}
        unknown = [s for s in self.speakers or () if s not in known]
        if not named or unknown:
            what = f"no recording of {', '.join(unknown)}" if named else "no file named digit_speaker_take"
            raise AudioError(
                f"{self.folder}: {what}; allowed: {', '.join(sorted(known)) or 'such as 7_jackson_12.wav'}"
            )
        chosen = sorted(item for item in named if item[1] in (self.speakers or known))
        parts: tuple[list[Utterance], list[Utterance]] = [], []
        for digit, speaker, take, path in chosen:
            parts[take < TEST_TAKES].append(Utterance(path, WORDS[digit], speaker, digit))
        return parts

    @property
    def layout(self) -> str:
        return "spoken digits, test takes 0 to 4"
