"""Mels on disk, so that a long corpus is analysed once: one safetensors file per recording, in a folder per mel preset."""

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.whole_file import whole
from fewstep_audio.data.recordings import Recording
from fewstep_audio.mels import Mel


class MelCache:
    """Mels of recordings under `folder/FINGERPRINT/`; another preset, or a changed audio file, is another entry.

    Args:
        folder: made where it is absent; None keeps nothing.
        mel: the front end.
    """

    def __init__(self, folder: str | Path | None, mel: Mel) -> None:
        self.folder = None if folder is None else Path(folder) / mel.fingerprint
        self.mel = mel
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, recording: Recording) -> Tensor:
        """(bands, T). An entry that is damaged is made anew; entries appear whole or not at all."""
        if self.folder is None:
            return self._analyse(recording)
        entry = self.folder / f"{self._key(recording)}.safetensors"
        try:
            return load_file(entry)["mel"]
        except (FileNotFoundError, SafetensorError, KeyError):
            mel = self._analyse(recording)
        with whole(entry) as part:
            save_file({"mel": mel.contiguous()}, part)
        return mel

    def _analyse(self, recording: Recording) -> Tensor:
        return self.mel(recording.wave[None])[0]

    def _key(self, recording: Recording) -> str:
        path = recording.utterance.path
        state = path.stat()
        facts = f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}"
        return hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()
