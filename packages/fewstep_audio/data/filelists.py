"""Lists of recordings as speech repositories write them: LJSpeech's metadata.csv, and lines with pipes.

    LJSpeech    id|raw text|normalised text     audio in wavs/id.wav beside it; the third column may be missing or empty
    filelists   path|text     path|speaker|text     path|text|speaker     path

Both orders of three columns are in use (Matcha-TTS, CoMoSpeech); which one it is shows in the columns. No quoting: quotes are text.
"""

import re
import warnings
from collections import Counter
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from fewstep_audio.data.utterance import Utterance
from fewstep_audio.files import AudioError


class Filelist(NamedTuple):
    utterances: list[Utterance]
    layout: str


def read_filelist(path: str | Path) -> Filelist:
    """Read any of the layouts; paths are relative to the list's folder, or else to the working folder.

    UTF-8 with or without byte order mark, lines ended by LF or CRLF, backslashes in paths. Lines with another number of columns than
    most are named and skipped. Whether the audio exists is not looked at.

    Raises:
        AudioError: missing or empty list, not UTF-8, more than three columns, or three whose order does not show.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise AudioError(f"{path}: cannot be read ({reason}); allowed: a list of recordings in UTF-8") from error
    rows = [(n, [field.strip() for field in line.split("|")]) for n, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise AudioError(f"{path}: the list is empty; allowed: one recording per line")
    if path.name == "metadata.csv" and (path.parent / "wavs").is_dir():
        return _ljspeech(path, rows)
    columns = Counter(len(row) for _, row in rows).most_common(1)[0][0]
    if columns > 3:
        raise AudioError(f"{path}: {columns} columns; allowed: path, path|text, path|speaker|text, path|text|speaker")
    rows = _keep(path, rows, columns, columns)
    speaker = _speaker_column(path, [row for _, row in rows]) if columns == 3 else None
    text = {1: None, 2: 1, 3: 3 - (speaker or 0)}[columns]
    found = [
        Utterance(
            _resolve(path.parent, row[0]), "" if text is None else row[text], "" if speaker is None else row[speaker]
        )
        for _, row in rows
    ]
    names = {None: "path|text" if columns == 2 else "path", 1: "path|speaker|text", 2: "path|text|speaker"}
    return Filelist(found, f"{path.name}: {len(found)} lines of {names[speaker]}")


def _ljspeech(path: Path, rows: list[tuple[int, list[str]]]) -> Filelist:
    found = []
    for _, row in _keep(path, rows, 2, 3):
        name = row[0] if row[0].lower().endswith(".wav") else f"{row[0]}.wav"
        found.append(Utterance(path.parent / "wavs" / name, (row[2] if len(row) > 2 else "") or row[1]))
    return Filelist(found, f"{path.name}: {len(found)} lines of LJSpeech's layout")


def _keep(path: Path, rows: list[tuple[int, list[str]]], least: int, most: int) -> list[tuple[int, list[str]]]:
    kept = []
    for number, row in rows:
        if least <= len(row) <= most and all(row[: min(least, 2)]):
            kept.append((number, row))
        else:
            what = "|".join(row)[:60]
            warnings.warn(f"skipped: {path}, line {number}: {what!r}; allowed: {least} to {most} columns", stacklevel=4)
    if not kept:
        raise AudioError(f"{path}: none of {len(rows)} lines has {least} to {most} columns")
    return kept


def _speaker_column(path: Path, rows: list[list[str]]) -> int:
    """1 or 2: the speakers' column is that whose entries are single words (or numbers) which repeat, against texts."""

    def looks_like_text(column: int) -> tuple[float, float]:
        entries = [row[column] for row in rows]
        return sum(bool(re.search(r"\s", e)) for e in entries) / len(rows), len(set(entries)) / len(rows)

    first, second = looks_like_text(1), looks_like_text(2)
    if first == second:
        raise AudioError(
            f"{path}: cannot tell texts from speakers in three columns; allowed: speakers that repeat, or path|text"
        )
    return 1 if first < second else 2


def _resolve(folder: Path, name: str) -> Path:
    """A path of the list; Windows' separators are understood where the name as it stands does not exist."""
    for candidate in (name, PureWindowsPath(name).as_posix()):
        for base in (folder, Path()):
            if (base / candidate).is_file():
                return base / candidate
    return folder / PureWindowsPath(name).as_posix()
