"""English as it is said: "Dr. Li paid $3.50 in 1999" -> "doctor Li paid three dollars and fifty cents in nineteen ninety-nine".

Number words are num2words' (which comes with gruut); here is what has to be said in which way.
"""

import re
import unicodedata
from collections.abc import Callable

from num2words import num2words

_PLAIN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": ",", "…": ".", "&": " and "})

_ABBREVIATIONS = {
    "mr": "mister",
    "mrs": "missus",
    "ms": "miz",
    "dr": "doctor",
    "prof": "professor",
    "st": "saint",
    "jr": "junior",
    "sr": "senior",
    "capt": "captain",
    "col": "colonel",
    "gen": "general",
    "lt": "lieutenant",
    "sgt": "sergeant",
    "hon": "honorable",
    "rev": "reverend",
    "maj": "major",
    "gov": "governor",
    "co": "company",
    "ltd": "limited",
    "vs": "versus",
    "etc": "et cetera",
}
_UNITS = {"$": ("dollar", "cent"), "€": ("euro", "cent"), "£": ("pound", "pence")}
_NUMBER = r"\d+(?:,\d{3})*"


def spell_out(text: str) -> str:
    """The text with numbers, ordinals, currency, per cent, years and abbreviations in words; plain quotes, no accents, single spaces.

    1100 to 2099 without a comma are years, and so are their plurals ("the 1920s").
    """
    text = text.translate(_PLAIN)
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    for pattern, say in _RULES:
        text = pattern.sub(say, text)
    return " ".join(text.split())


def _words(number: str | int, to: str = "cardinal") -> str:
    """num2words without its commas, which would be read as pauses."""
    return num2words(number, to=to).replace(",", "")


def _digits(written: str) -> str:
    return written.replace(",", "")


def _abbreviation(m: re.Match[str]) -> str:
    return _ABBREVIATIONS[m[1].lower()]


def _currency(m: re.Match[str]) -> str:
    unit, part = _UNITS[m["sign"]]
    whole, fraction, scale = int(_digits(m["whole"])), m["fraction"], m["scale"]
    if scale:
        return f"{_words(_digits(m['whole']) + (f'.{fraction}' if fraction else ''))} {scale} {unit}s"
    said = f"{_words(whole)} {unit}{'' if whole == 1 else 's'}"
    cents = int(f"{fraction:<02}"[:2]) if fraction else 0
    if not cents:
        return said
    said_cents = f"{_words(cents)} {part}{'' if cents == 1 or part == 'pence' else 's'}"
    return f"{said} and {said_cents}" if whole else said_cents


def _year(m: re.Match[str]) -> str:
    said = _words(int(m[1]), to="year")
    if not m[2]:
        return said
    return f"{said[:-1]}ies" if said.endswith("y") else f"{said}s"


def _cardinal(m: re.Match[str]) -> str:
    return f"{'minus ' if m['minus'] else ''}{_words(_digits(m['number']))}"


_Rule = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]
_RULES: tuple[_Rule, ...] = (
    (re.compile(rf"\b({'|'.join(_ABBREVIATIONS)})\.(?=\s|,|$)", re.IGNORECASE), _abbreviation),
    (re.compile(r"\bno\.\s*(?=\d)", re.IGNORECASE), "number "),
    (
        re.compile(
            rf"(?P<sign>[$€£])\s?(?P<whole>{_NUMBER})(?:\.(?P<fraction>\d+))?(?:\s(?P<scale>thousand|million|billion|trillion)\b)?"
        ),
        _currency,
    ),
    (re.compile(rf"\b({_NUMBER})(?:st|nd|rd|th)\b"), lambda m: _words(int(_digits(m[1])), to="ordinal")),
    (re.compile(r"(?<=\d)\s?%"), " per cent"),
    (re.compile(r"(?<![\d.,-])\b(1[1-9]\d\d|20\d\d)('?s)?\b(?![.,]?\d)"), _year),
    (re.compile(rf"(?P<minus>(?<!\w)-)?(?P<number>{_NUMBER}(?:\.\d+)?)"), _cardinal),
    (re.compile(r"\s+([,.;:!?])"), r"\1"),
)
