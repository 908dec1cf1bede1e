"""The verb `speak`: pieces, order, seeds, memory, errors of one line."""

import argparse
import io
import json
import re

import pytest
import torch
from PIL import Image
from small_tts import MEL, small

from fewstep.artifacts import load, save
from fewstep.command import Parser, UsageError
from fewstep_audio import speak as module
from fewstep_audio.commands_speak import DEFAULT_MODEL, SPEAK
from fewstep_audio.data.fsdd import WORDS
from fewstep_audio.files import AudioError, read_audio
from fewstep_audio.griffin_lim import GriffinLim
from fewstep_audio.item_noise import item_generator
from fewstep_audio.mels import PRESETS, Mel
from fewstep_audio.recogniser import recognise
from fewstep_audio.speak import FALL, half_pause, rested, speak, split
from fewstep_audio.text import TextError


def arguments(*given):
    parser = Parser(prog="fewstep speak")
    SPEAK.arguments(parser)
    return parser.parse_args([str(v) for v in given])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a small model with pieces of at most 12 characters."""
    return save(small("flow", longest=12, steps=2), tmp_path_factory.mktemp("model") / "small")


def spoken(model, parts, **kwargs):
    return list(speak(model, GriffinLim(MEL, 2), parts, **kwargs))


def test_the_shipped_model_is_heard_right():
    """Each speaker's ten digits in one evaluation, as the shipped recogniser hears them."""
    model, right = load(DEFAULT_MODEL), 0
    for speaker in range(len(model.speakers)):
        said = model([model.symbols.ids(w) for w in WORDS], [item_generator(7, i) for i in range(10)], speaker)
        right += int((recognise(said.mel, said.frames) == torch.arange(10)).sum())
    assert right >= 48  # of 50; over 600 it is heard right 599 times


def test_a_piece_sounds_the_same_alone_in_batches_and_in_a_stream(monkeypatch):
    model, parts = small("flow"), ["abc de", "a", "face bed fig", "hij", "bad"]
    together = spoken(model, parts)
    assert [p.text for p in together] == parts
    alone = spoken(model, parts, batch=1)
    monkeypatch.setattr(module, "AHEAD", 2)
    stream = spoken(model, parts, batch=2)
    for a, b, c in zip(together, alone, stream, strict=True):
        assert a.mel.shape == b.mel.shape == c.mel.shape
        for other in (b, c):
            assert torch.allclose(a.mel, other.mel, atol=2e-5)
            assert (a.wave - other.wave).abs().max() < 1e-3 * a.wave.abs().max()
    monkeypatch.undo()
    assert all(torch.equal(a.wave, b.wave) for a, b in zip(together, spoken(model, parts), strict=True))
    assert torch.allclose(together[0].mel, spoken(model, parts[:1])[0].mel, atol=2e-5)
    assert (together[0].mel - spoken(model, parts, seed=1)[0].mel).abs().max() > 0.01
    twice = spoken(model, ["abc", "abc"])
    assert (twice[0].mel - twice[1].mel).abs().max() > 0.01  # each piece has noise of its own


def test_memory_is_that_of_the_pieces_ahead(monkeypatch):
    """No more texts than AHEAD are spoken before the first of them are handed on."""
    model, seen = small("flow"), []
    monkeypatch.setattr(module, "AHEAD", 4)
    model.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    stream = speak(model, GriffinLim(MEL, 1), ["abc"] * 40, batch=3)
    for n, _ in enumerate(stream):
        assert sum(seen) <= 4 * (n // 4 + 1)
    assert sum(seen) == 40


def test_pieces_rest_at_both_ends():
    """The mel falls by equal steps to the least it has and stays there; the vocoder makes noise of it, neither silence nor a click."""
    mel = torch.randn(4, 30)
    own, quiet = rested(mel, 6), mel.amin().expand(4)
    assert own.shape == (4, 42)
    assert torch.equal(own[:, 6:36], mel)
    for far, edge in ((own[:, :6].flip(1), mel[:, 0]), (own[:, 36:], mel[:, -1])):
        assert torch.allclose(far[:, FALL:], quiet[:, None].expand(-1, 6 - FALL))
        steps = torch.cat([edge[:, None], far[:, : FALL + 1]], 1).diff(dim=1)
        assert torch.allclose(steps, ((quiet - edge) / (FALL + 1))[:, None].expand_as(steps), atol=1e-6)
    pieces = spoken(small("flow"), ["abc", "bad"])
    samples = half_pause(MEL) * MEL.hop
    joined = torch.cat([p.wave for p in pieces])
    seam = len(pieces[0].wave)
    around = joined[seam - samples : seam + samples]
    assert (around.abs() > 0).all()
    assert around[samples - 8 : samples + 8].abs().max() < 2 * around.abs().max()


def test_the_verb_writes_sound_picture_and_report(model, tmp_path, capsys):
    out, png = tmp_path / "said.wav", tmp_path / "said.png"
    text = "a bad face. fade, each bed cab; hid. " * 10
    args = arguments(
        text, out, "--model", model, "--json", "--plot", png, "--seed", 3, "--speaker", "bob", "--speed", 1.5
    )
    assert SPEAK.run(args) == 0
    report, audio = json.loads(capsys.readouterr().out), read_audio(out)
    assert audio.rate == 8000
    assert audio.seconds == pytest.approx(report["seconds"], abs=1e-3)
    assert report["pieces"] == 50
    assert report["steps"] == 2
    assert report["speaker"] == "bob"
    assert report["mel"]["fingerprint"] == MEL.fingerprint
    assert Image.open(png).size[0] > 500
    again = tmp_path / "again.wav"
    SPEAK.run(arguments(text, again, "--model", model, "--seed", 3, "--speaker", "bob", "--speed", 1.5))
    assert again.read_bytes() == out.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.wav", "said.png", "said.wav"]


def test_text_comes_from_files_and_stdin_too(model, tmp_path, monkeypatch):
    script = tmp_path / "script.txt"
    script.write_text("\ufeffa bad face.\n", encoding="utf-8")
    names = [tmp_path / f"{n}.wav" for n in range(3)]
    SPEAK.run(arguments("a bad face.", names[0], "--model", model))
    SPEAK.run(arguments("--file", script, names[1], "--model", model))
    monkeypatch.setattr("sys.stdin", io.StringIO("a bad face."))
    SPEAK.run(arguments("-", names[2], "--model", model))
    assert names[0].read_bytes() == names[1].read_bytes() == names[2].read_bytes()


@pytest.mark.parametrize(
    ("given", "error", "line"),
    [
        (["", "o.wav"], TextError, "the text is empty"),
        (["...", "o.wav"], TextError, "nothing to say"),
        (["bad xyz 漢", "o.wav"], TextError, "unknown symbols 'x' 'y' 'z' '漢'"),
        (["bad", "o.wav", "--speaker", "carl"], TextError, "unknown speaker 'carl'; the model has ann, bob"),
        (["bad", "o.xyz"], AudioError, "cannot write .xyz"),
        (["bad", "none/o.wav"], AudioError, "does not exist"),
        (["bad", "o.wav", "--plot", "none/o.png"], UsageError, "folder none does not exist"),
        (["bad", "o.wav", "--plot", "o.jpg"], UsageError, "--plot writes a .png"),
        (["bad", "o.wav", "--steps", "0"], UsageError, "--steps must be at least 1"),
        (["bad", "o.wav", "--speed", "0"], UsageError, "--speed is a factor"),
        (["bad", "o.wav", "--seed", "-1"], UsageError, "--seed is 0 or more"),
        (["--file", "none.txt", "o.wav"], TextError, "none.txt is not a text file"),
        (["bad", "o.wav", "--model", "nowhere"], ValueError, "no model: nowhere"),
        (["bad", "o.wav", "--vocoder", "nowhere"], ValueError, "no model: nowhere"),
    ],
)
def test_bad_input_gives_one_line_and_no_file(model, tmp_path, monkeypatch, given, error, line):
    monkeypatch.chdir(tmp_path)
    args = arguments(*given) if "--model" in given else arguments(*given, "--model", model)
    with pytest.raises(error, match=re.escape(line)) as raised:
        SPEAK.run(args)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_vocoder_of_another_mel_is_refused():
    with pytest.raises(AudioError, match=r"speak: mel custom .* does not fit mel digits_8k"):
        next(speak(small(), GriffinLim(PRESETS["digits_8k"]), ["bad"]))


def test_what_makes_no_waves_is_no_vocoder(model, tmp_path):
    with pytest.raises(ValueError, match="holds a TextToSpeech; needed: Vocoder"):
        SPEAK.run(arguments("bad", tmp_path / "o.wav", "--model", model, "--vocoder", model))


def test_words_are_the_pieces_of_a_model_of_words():
    model = small(longest=4)
    assert split(model, "bad, face.  A cab") == ["bad,", "face.", "a", "cab"]


def test_the_verb_is_light():
    assert isinstance(arguments("a", "b.wav"), argparse.Namespace)


@pytest.mark.parametrize("preset", ["digits_8k", "hifigan_22k", "vocos_24k"])
def test_griffin_lim_gives_back_the_mel(preset):
    """Of a harmonic sound with silence around it: the mel of the result is the mel it came from, at the same frames."""
    mel: Mel = PRESETS[preset]
    time = torch.arange(round(0.6 * mel.rate)) / mel.rate
    voice = sum(torch.sin(2 * torch.pi * 140 * k * time + k) / k for k in range(1, 12))
    wave = 0.1 * (
        voice * ((time > 0.2) & (time < 0.4))
        + 0.01 * torch.randn(len(time), generator=torch.Generator().manual_seed(0))
    )
    target = mel(wave[None])
    again = GriffinLim(mel).vocode(target)
    assert again.shape[1] == len(wave) // mel.hop * mel.hop
    found = mel(again)
    error, late = (found - target).abs().mean(), (found[..., 1:] - target[..., :-1]).abs().mean()
    assert error < 0.1 * target.std()
    assert late > 1.5 * error
    assert GriffinLim(mel).vocode(target[..., :1]).shape[1] == mel.hop * (mel.framing == "same")
    assert torch.equal(again, GriffinLim(mel).vocode(target))
