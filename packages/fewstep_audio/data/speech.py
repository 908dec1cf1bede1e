"""A corpus in any of the layouts in use: LJSpeech's folder, a filelist, or a plain folder of audio with optional sidecars."""

from pathlib import Path

from fewstep_audio.data.filelists import Filelist, read_filelist
from fewstep_audio.data.utterance import Corpus, Utterance
from fewstep_audio.files import AudioError, list_audio

SIDECARS = (".txt", ".lab")


class Speech(Corpus):
    """Recordings with what is known of them.

    Args:
        source: a folder with metadata.csv and wavs (LJSpeech), a filelist, or a folder of audio files, searched recursively, whose
            texts may lie beside them as `.txt` or `.lab`.
        held_out: another source for validation. Where not given, every tenth utterance (at least one) is held out.
    """

    def __init__(self, source: str, held_out: str | None = None) -> None:
        self.source, self.held_out = source, held_out
        self._layout = ""

    def division(self) -> tuple[list[Utterance], list[Utterance]]:
        """Raises AudioError where a source is missing or empty, or too small to hold anything out."""
        found, self._layout = read_source(self.source)
        if self.held_out is not None:
            held, layout = read_source(self.held_out)
            self._layout += f"; held out {layout}"
            return found, held
        if len(found) < 2:
            raise AudioError(f"{self.source}: one recording; allowed: at least two, or another source as held_out")
        return [u for i, u in enumerate(found) if i % 10], found[::10]

    @property
    def layout(self) -> str:
        """Known once `division` has looked."""
        return self._layout


def read_source(source: str | Path) -> Filelist:
    """The utterances of a folder or filelist. Raises AudioError as `read_filelist` and `list_audio`."""
    source = Path(source)
    if (source / "metadata.csv").is_file() and (source / "wavs").is_dir():
        return read_filelist(source / "metadata.csv")
    if source.is_file():
        return read_filelist(source)
    found = [Utterance(p, _sidecar(p)) for p in list_audio(source, recursive=True)]
    texts = sum(bool(u.text) for u in found)
    return Filelist(found, f"{source.name}: {len(found)} audio files, {texts} with texts beside them")


def _sidecar(path: Path) -> str:
    for suffix in SIDECARS:
        beside = path.with_suffix(suffix)
        if beside.is_file():
            return " ".join(beside.read_text(encoding="utf-8-sig").split())
    return ""
