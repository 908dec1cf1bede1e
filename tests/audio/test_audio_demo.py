"""`fewstep demo audio` on few clips: the report folder is whole, and misuse is one line."""

import base64
import json
import re

import pytest

from fewstep import cli
from fewstep_audio import demo
from fewstep_audio.files import read_audio


def test_the_demo_leaves_a_whole_report(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "TAKES", 1)
    monkeypatch.setattr(demo, "CLIPS", 2)
    monkeypatch.setattr(demo, "SECONDS", 0.5)
    with pytest.raises(SystemExit) as end:
        cli.main(["demo", "audio", "--minutes", "0.001", "--out", str(tmp_path / "report")])
    assert end.value.code == 0
    report = tmp_path / "report"
    metrics = json.loads((report / "metrics.json").read_text())
    assert set(metrics["methods"]) == {"noisy", *demo.WAYS}
    assert all(stage["iterations"] == 20 for stage in metrics["training"].values())
    names = {p.relative_to(report).as_posix() for p in report.rglob("*") if p.is_file()}
    assert {"index.html", "sounds/0-student-1.wav", "sounds/1-clean.wav", "student/config.json"} <= names
    assert len(list((report / "speech").iterdir())) == 50
    assert [p.name for p in tmp_path.iterdir()] == ["report"]
    heard = re.findall(r'src="data:audio/wav;base64,([^"]+)"', (report / "index.html").read_text())
    assert len(heard) == 2 * (2 + len(demo.WAYS))
    (tmp_path / "first.wav").write_bytes(base64.b64decode(heard[0]))
    noisy = read_audio(report / "sounds" / "0-noisy.wav")
    assert (read_audio(tmp_path / "first.wav").data - noisy.data).abs().max() < 1e-4


def test_misuse_is_one_line(tmp_path, capsys):
    for option in ("--data", "--held-out"):
        with pytest.raises(SystemExit) as end:
            cli.main(["demo", "audio", option, "nothing", "--out", str(tmp_path / "report")])
        assert end.value.code == 2 and f"{option} nothing: no such folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
