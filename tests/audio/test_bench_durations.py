"""The bench of durations: stretching of symbols, the choice of takes, and all of it on an untrained model."""

import json

import pytest
import torch
from small_tts import small

import fewstep
from fewstep_audio.bench.durations import balanced, main, warped
from fewstep_audio.data.utterance import Utterance
from fewstep_audio.files import Audio, write_audio
from fewstep_audio.mels import PRESETS
from fewstep_audio.text import Characters


def test_symbols_are_stretched_each_by_itself():
    mel = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(warped(mel, [2, 0, 4, 3], [2, 5, 4, 3]), mel)
    # Constant within symbols, it stays constant within them.
    values = torch.tensor([[1.0, 2.0, 3.0]])
    steps = values.repeat_interleave(torch.tensor([2, 4, 3]), 1)
    assert torch.equal(warped(steps, [2, 4, 3], [5, 1, 3]), values.repeat_interleave(torch.tensor([5, 1, 3]), 1))


def test_takes_of_all_voices_and_digits_equally_often(tmp_path):
    part = [Utterance(tmp_path / f"{k}{d}{s}", "one", s, d) for k in range(4) for d in range(10) for s in "ba"]
    chosen = balanced(part, 60)
    assert [(u.speaker, u.label) for u in chosen] == [(s, d) for s in "ab" for d in range(10) for _ in range(3)]
    assert [u.path.name[0] for u in chosen[:3]] == ["0", "1", "2"]
    with pytest.raises(ValueError, match="5 takes of every voice and digit"):
        balanced(part, 100)


def test_all_rows_on_an_untrained_model(tmp_path, capsys):
    (tmp_path / "recordings").mkdir()
    t = torch.arange(4000) / 8000
    for digit in range(10):
        for take in range(5, 11):
            tone = 0.3 * (2 * torch.pi * (200 + 90 * digit + 20 * take) * t).sin() * (torch.pi * t * 2).sin() ** 2
            write_audio(tmp_path / f"recordings/{digit}_ann_{take}.wav", Audio(tone[None], 8000))
    symbols = Characters("efghinorstuvwxz", silent=" ,.")
    fewstep.save(small(speakers=("ann",), symbols=symbols, mel=PRESETS["digits_8k"], longest=5), tmp_path / "model")
    args = ["--recordings", str(tmp_path / "recordings"), "--model", str(tmp_path / "model"), "--seeds", "0"]
    assert main([*args, "--samples", "10"]) == 0
    rows = json.loads(capsys.readouterr().out)["seeds"][0]["rows"]
    # With one take of each digit, each other's durations are one's own.
    assert rows["recordings, each other's durations"] == rows["recordings"]
    other = [rows[k]["frechet"] for k in ("recordings, the model's durations", "model, recorded durations", "model")]
    assert len({rows["recordings"]["frechet"], *other}) == 4
    for wrong, told in (("15", "multiple of 10"), ("0", "multiple of 10"), ("30", "takes of every voice and digit")):
        with pytest.raises(SystemExit):
            main([*args, "--samples", wrong])
        assert told in capsys.readouterr().err
