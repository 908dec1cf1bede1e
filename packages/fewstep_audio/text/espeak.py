"""Phonemes by espeak-ng through phonemizer. espeak-ng is GPL-3, so it is no part of this package: extra `espeak`, or the system's own."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fewstep_audio.text.ipa import Phonemes
from fewstep_audio.text.symbols import TextError

_NEEDED = "the phonemes of this model need espeak-ng: pip install 'fewstep[espeak]' (or the system package espeak-ng)"


@dataclass(frozen=True)
class Espeak(Phonemes):
    """language: a voice of espeak-ng, as en-us.

    Raises:
        TextError: espeak-ng or phonemizer is missing; the line names the extra and the system package.
    """

    language: str = "en-us"

    def transcribe(self, text: str) -> str:
        [ipa] = _backend(self.language).phonemize([text], strip=True)
        return ipa.strip()


@lru_cache(maxsize=8)
def _backend(language: str) -> Any:
    """The library that espeakng-loader brings, else the system's."""
    try:
        from phonemizer.backend import EspeakBackend
        from phonemizer.backend.espeak.wrapper import EspeakWrapper
    except ImportError as err:
        raise TextError(_NEEDED) from err
    try:
        import espeakng_loader

        EspeakWrapper.set_library(espeakng_loader.get_library_path())
        EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
    except ImportError:
        pass  # the system's own
    try:
        return EspeakBackend(language, with_stress=True, preserve_punctuation=True)
    except RuntimeError as err:
        raise TextError(f"{_NEEDED}; {' '.join(str(err).split())}") from err
