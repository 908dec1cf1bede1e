"""The waves of utterances, mono and at one rate. What cannot be used is named and skipped."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep_audio.data.utterance import Utterance
from fewstep_audio.files import AudioError, read_audio
from fewstep_audio.resample import resample
from fewstep_audio.streams import audio_info

KEPT_SECONDS = 7200
"""Corpora up to this length are decoded at once and kept in memory (0.5 GB at 16 kHz); of longer ones the headers are read."""

SILENT = 1e-4
"""Peaks below this (-80 dB) are silence."""


class Recording(NamedTuple):
    utterance: Utterance
    wave: Tensor  # (N,)


class Recordings:
    """Utterances with their waves.

    Unreadable, silent, too short and too long files are skipped, with one warning each that names the file and the reason. In corpora
    of more than two hours silence and damage show only when a file is drawn; the next good one then takes its place.

    Args:
        utterances: of a corpus.
        rate: in Hz, to which all are resampled.
        shortest, longest: in seconds.

    Raises:
        AudioError: none is usable.
    """

    def __init__(
        self, utterances: Sequence[Utterance], rate: int, shortest: float = 0.05, longest: float = float("inf")
    ) -> None:
        self.rate, self.shortest, self.longest = rate, shortest, longest
        self._waves: dict[int, Tensor] = {}
        self.utterances, total = [], 0.0
        for utterance in utterances:
            try:
                total += self._seconds(utterance)
                self.utterances.append(utterance)
            except AudioError as error:
                warnings.warn(f"skipped: {error}", stacklevel=2)
        self._in_memory = total <= KEPT_SECONDS
        if self._in_memory:
            self._decode_all()
        if not self.utterances:
            first = f", the first is {utterances[0].path}" if utterances else ""
            raise AudioError(f"none of {len(utterances)} recordings is usable{first}; allowed: {self._allowed}")

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> Recording:
        """Recording `index`, or the next that can be used."""
        for i in (*range(index, len(self)), *range(index)):
            if i in self._waves:
                return Recording(self.utterances[i], self._waves[i])
            try:
                return Recording(self.utterances[i], self._decode(self.utterances[i]))
            except AudioError as error:
                warnings.warn(f"skipped: {error}", stacklevel=2)
        raise AudioError(f"none of {len(self)} recordings is usable; allowed: {self._allowed}")

    @property
    def _allowed(self) -> str:
        return f"readable, not silent, from {self.shortest:g} to {self.longest:g} seconds"

    def _decode_all(self) -> None:
        good = []
        for utterance in self.utterances:
            try:
                self._waves[len(good)] = self._decode(utterance)
                good.append(utterance)
            except AudioError as error:
                warnings.warn(f"skipped: {error}", stacklevel=3)
        self.utterances = good

    def _seconds(self, utterance: Utterance) -> float:
        info = audio_info(utterance.path)
        seconds = info.samples / info.rate
        if not self.shortest <= seconds <= self.longest:
            raise AudioError(f"{utterance.path}: {seconds:.3f} seconds; allowed: {self._allowed}")
        return seconds

    def _decode(self, utterance: Utterance) -> Tensor:
        audio = read_audio(utterance.path)
        wave = audio.mono()
        if wave.abs().max() < SILENT:
            raise AudioError(f"{utterance.path}: silent; allowed: {self._allowed}")
        return resample(wave, audio.rate, self.rate)


def crop(wave: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """A random stretch (samples,) of a wave (N,) at least as long. One without any sound is moved to the loudest sample."""
    spare = len(wave) - samples
    start = int(torch.randint(spare + 1, (), generator=generator))
    if wave[start : start + samples].abs().max() < SILENT:
        start = min(max(int(wave.abs().argmax()) - samples // 2, 0), spare)
    return wave[start : start + samples]


def fill(
    recordings: Recordings, index: int, samples: int, generator: torch.Generator, without: int | None = None
) -> Tensor:
    """(samples,): a random stretch of recording `index`; where it is shorter, others drawn at random follow it, but never `without`."""
    wave = recordings[index].wave
    if len(wave) >= samples:
        return crop(wave, samples, generator)
    parts, total = [wave], len(wave)
    while total < samples:
        parts.append(recordings[another(recordings, without, generator)].wave)
        total += len(parts[-1])
    return torch.cat(parts)[:samples]


def another(recordings: Recordings, without: int | None, generator: torch.Generator) -> int:
    """A random number of a recording other than `without`; that one where there is no other."""
    n = len(recordings)
    if without is None or n == 1:
        return int(torch.randint(n, (), generator=generator))
    return (without + 1 + int(torch.randint(n - 1, (), generator=generator))) % n
