"""Text: what is said, symbols and blanks, phonemes, pieces."""

import re
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep_audio.text import Characters, Espeak, Gruut, TextError, pieces, spell_out
from fewstep_audio.text import espeak as espeak_module
from fewstep_audio.text.ipa import LETTERS, MARKS, PAUSES


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("731", "seven hundred and thirty-one"),
        ("1,234 dogs", "one thousand two hundred and thirty-four dogs"),
        ("pi is 3.14.", "pi is three point one four."),
        ("-5 or a-5", "minus five or a-five"),
        ("the 1st, 22nd and 103rd", "the first, twenty-second and one hundred and third"),
        ("$5", "five dollars"),
        ("$1", "one dollar"),
        ("$3.50 and £0.05", "three dollars and fifty cents and five pence"),
        ("$3.5", "three dollars and fifty cents"),
        ("€2.5 million", "two point five million euros"),
        ("in 1999 and 2024", "in nineteen ninety-nine and twenty twenty-four"),
        ("the 1920s", "the nineteen twenties"),
        ("1,999", "one thousand nine hundred and ninety-nine"),
        ("1999.5", "one thousand nine hundred and ninety-nine point five"),
        ("50%", "fifty per cent"),
        ("Dr. Li and Mrs. Po vs. Mr. X", "doctor Li and missus Po versus mister X"),
        ("No. 5, but no.", "number five, but no."),
        ("St. John", "saint John"),
        ("“It’s” – café & bar…", '"It\'s" - cafe and bar.'),
        ("a  b\n c ,d", "a b c,d"),
    ],
)
def test_text_is_spelt_out(written, said):
    assert spell_out(written) == said


def test_nothing_is_left_to_spell_out():
    text = "In 1850 the 2nd of 3 men paid $1,200.75, i.e. 10% of 12.5 million; -3 degrees at 4:30 No. 7."
    said = spell_out(text)
    assert not re.search(r"[\d$%]", said)
    assert spell_out(said) == said


def test_blanks_are_between_all_symbols():
    symbols = Characters("abc", " ")
    assert symbols.ids("a cb").tolist() == [3, 0, 3, 2, 3, 1, 3]
    assert symbols.count == 4


def test_unknown_symbols_are_listed_in_one_line():
    with pytest.raises(TextError, match=r"unknown symbols 'é' '漢'; allowed") as err:
        Characters().ids("漢 é abc")
    assert "\n" not in str(err.value)
    with pytest.raises(TextError, match="unknown symbols '漢'"):
        Gruut().ids("one 漢")


@pytest.mark.parametrize("text", ["", "   ", "(", '""'])
def test_silence_is_refused(text):
    with pytest.raises(TextError, match="nothing to say"):
        Characters("abc ", '("').ids(text)


def test_gruut_knows_words_and_guesses_others():
    ipa = Gruut().spell("Hello, world! The church's judge")
    assert ipa == "hɛlˈoʊ, wˈɚld! ðə t͡ʃˈɚt͡ʃɪz d͡ʒˈʌd͡ʒ"  # as the entries of its lexicon say
    assert Gruut().spell("zyzzyx")
    assert Gruut().ids("seven").max() < Gruut().count


def test_the_alphabet_holds_all_of_gruuts_lexicon():
    import gruut_lang_en

    with sqlite3.connect(Path(gruut_lang_en.__file__).parent / "lexicon.db") as db:
        used = {c for (p,) in db.execute("SELECT DISTINCT phonemes FROM word_phonemes") for c in p}
    assert used <= set(LETTERS + MARKS + " ")
    assert len(set(PAUSES + LETTERS + MARKS)) == len(PAUSES + LETTERS + MARKS)


def test_espeak_writes_in_the_same_alphabet():
    pytest.importorskip("phonemizer")
    symbols = Espeak()
    ipa = symbols.spell("The quick brown fox, a button and a bottle jumps over; roses, measure, boys!")
    assert "fˈɑːks" in ipa
    assert symbols.ids("seven").max() < symbols.count


def test_missing_espeak_names_extra_and_package(monkeypatch):
    espeak_module._backend.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "phonemizer.backend", None)
    with pytest.raises(TextError, match=r"fewstep\[espeak\].*espeak-ng"):
        Espeak().ids("one")


def test_pieces_end_at_sentences_then_commas_then_words():
    text = "One two. Three, four five six, seven! Eightnineten."
    assert pieces(text, 100) == ["One two.", "Three, four five six, seven!", "Eightnineten."]
    assert pieces(text, 20) == ["One two.", "Three,", "four five six,", "seven!", "Eightnineten."]
    assert pieces(text, 9) == ["One two.", "Three,", "four five", "six,", "seven!", "Eightnineten."]
    assert pieces("seven three one", 5) == ["seven", "three", "one"]
    assert pieces("... !", 5) == []


@given(st.text("ab ,.;!", max_size=80), st.integers(1, 30))
def test_pieces_lose_no_letter_and_fit(text, longest):
    parts = pieces(text, longest)
    assert re.findall("[ab]", "".join(parts)) == re.findall("[ab]", text)
    assert all(len(p) <= longest or " " not in p for p in parts)
