"""Long text in pieces that a model was trained for: split at the ends of sentences, else at commas, else between words."""

import re
from collections.abc import Iterator

_SENTENCES, _CLAUSES, _WORDS = (re.compile(p) for p in (r"(?<=[.!?;])\s+", r"(?<=[,:])\s+", r"\s+"))


def pieces(text: str, longest: int) -> list[str]:
    """Pieces of at most `longest` characters, in order; a single longer word stays whole.

    Sentences are never joined to one another; clauses and words are, as long as they fit. What has no letter is left out.
    """
    if longest < 1:
        raise ValueError(f"pieces have at least 1 character, not {longest}")
    return [p for s in _SENTENCES.split(text.strip()) for p in _fit(s, longest) if re.search(r"\w", p)]


def _fit(sentence: str, longest: int) -> Iterator[str]:
    if len(sentence) <= longest:
        yield sentence
        return
    for clause in _packed(_CLAUSES.split(sentence), longest):
        yield from [clause] if len(clause) <= longest else _packed(_WORDS.split(clause), longest)


def _packed(parts: list[str], longest: int) -> Iterator[str]:
    """Neighbours joined while they fit."""
    line = parts[0]
    for part in parts[1:]:
        if len(line) + 1 + len(part) <= longest:
            line = f"{line} {part}"
        else:
            yield line
            line = part
    yield line
