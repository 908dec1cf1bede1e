"""`fewstep demo video` on few clips: the report folder is whole, and misuse is one line."""

import json

import pytest

from fewstep import cli
from fewstep_video import demo


def test_the_demo_leaves_a_whole_report(tmp_path, monkeypatch):
    few = ["--data.init_args.held_out=16", "--data.init_args.batch_size=2"]
    short = [*few, "--model.init_args.student.init_args.steps=1"]
    monkeypatch.setattr(demo, "source", lambda args: ("shapes", {"teacher": short, "student": few}))
    with pytest.raises(SystemExit) as end:
        cli.main(["demo", "video", "--minutes", "0.001", "--out", str(tmp_path / "report")])
    assert end.value.code == 0
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert set(metrics["methods"]) == {"real", "teacher 50", "teacher 4", "teacher 1", "student 4", "student 1"}
    names = {p.relative_to(tmp_path / "report").as_posix() for p in (tmp_path / "report").rglob("*") if p.is_file()}
    assert {
        "index.html",
        "clips/student-4.mp4",
        "clips/teacher-50.webp",
        "pictures/real.png",
        "student/config.json",
    } <= names
    assert [p.name for p in tmp_path.iterdir()] == ["report"]


def test_misuse_is_one_line(tmp_path, capsys):
    for args, message in ((["--data", "nothing"], "no such folder"), (["--held-out", "x"], "holds out clips itself")):
        with pytest.raises(SystemExit) as end:
            cli.main(["demo", "video", *args, "--out", str(tmp_path / "report")])
        assert end.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
