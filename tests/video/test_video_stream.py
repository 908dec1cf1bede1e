"""`fewstep video stream`: files, folders and bytes in and out, the report, what it refuses."""

import io
import json
import sys
from itertools import islice
from pathlib import Path

import cv2
import pytest
import torch
from small import causal, teacher

from fewstep.artifacts import save
from fewstep.cli import main
from fewstep_video.files import VideoError, read_video, to_bytes, write_video
from fewstep_video.stream.sources import blocks, fitted, raw_frames


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save(causal(shape=(3, 8, 16, 16)), folder / "causal")
    save(teacher(shape=(3, 4, 16, 16)), folder / "clips")
    return folder


@pytest.fixture
def clip(tmp_path):
    video = torch.linspace(-1, 1, 11)[None, :, None, None].expand(3, 11, 24, 32)
    write_video(tmp_path / "in.mp4", video, 12)
    return tmp_path / "in.mp4"


def run(*args):
    with pytest.raises(SystemExit) as end:
        main(["video", "stream", *map(str, args)])
    return end.value.code


def refused(capsys, *args):
    """The one line; before it there may be the bar of a stream that had begun."""
    code, told = run(*args), capsys.readouterr().err
    lines = [line for line in told.splitlines() if not line.startswith("frames ")]
    assert code in (1, 2) and len(lines) == 1, told
    return lines[0]


class Bytes:
    def __init__(self, data=b""):
        self.buffer = io.BytesIO(data)

    def write(self, text):
        return len(text)

    def flush(self):
        pass

    def fileno(self):
        raise OSError


# --- out ----------------------------------------------------------------------------------------------------------


def test_frames_from_noise_and_a_report(models, tmp_path, capsys):
    out = tmp_path / "a.mkv"
    assert (
        run(out, "--model", models / "causal", "--frames", 9, "--seed", 4, "--json", "--report", tmp_path / "r.json")
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "r.json").read_text())
    assert found["frames"] == 9 and found["fps"] > 0 and found["deadline"]["fps"] == 8.0
    assert read_video(out).shape == (3, 9, 16, 16)


def test_a_folder_of_pictures_and_raw_bytes_hold_the_same(models, tmp_path, monkeypatch):
    assert run(tmp_path / "out", "--model", models / "causal", "--frames", 5, "--zoom", 2) == 0
    files = sorted((tmp_path / "out").iterdir())
    assert [f.name for f in files] == [f"{k:06d}.png" for k in range(5)]
    pictures = [torch.from_numpy(cv2.imread(str(f))[..., ::-1].copy()) for f in files]
    monkeypatch.setattr(sys, "stdout", Bytes())
    assert run("-", "--model", models / "causal", "--frames", 5, "--zoom", 2) == 0
    raw = torch.frombuffer(bytearray(sys.stdout.buffer.getvalue()), dtype=torch.uint8).reshape(5, 32, 32, 3)
    assert torch.equal(torch.stack(pictures), raw)
    wanted = to_bytes(causal(shape=(3, 8, 16, 16))(torch.tensor([0]), 6)[0, :, :5]).permute(1, 2, 3, 0)
    assert torch.equal(raw[:, ::2, ::2], wanted)


# --- over a video -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["causal", "clips"])
@pytest.mark.parametrize("more", [(), ("--similar", "0.98"), ("--steps", "3")])
def test_as_many_frames_come_out_as_went_in(models, clip, tmp_path, model, more):
    assert (
        run(tmp_path / "out.mp4", "--input", clip, "--model", models / model, *more, "--report", tmp_path / "r.json")
        == 0
    )
    found = json.loads((tmp_path / "r.json").read_text())
    assert read_video(tmp_path / "out.mp4").shape == (3, 11, 16, 16)
    assert found["frames"] == 11 and found["deadline"]["fps"] == 12
    assert found["latency_ms"]["most"] >= found["latency_ms"]["median"] > 0


def test_bytes_on_stdin_are_a_stream_too(models, tmp_path, monkeypatch):
    data = to_bytes(torch.rand(7, 12, 20, 3) * 2 - 1)
    monkeypatch.setattr(sys, "stdin", Bytes(data.numpy().tobytes()))
    assert run(tmp_path / "out", "--input", "-", "--size", "20x12", "--adaptive", "--model", models / "causal") == 0
    assert len([*(tmp_path / "out").iterdir()]) == 7


@pytest.mark.parametrize("guidance", ["self", "onetime", "full"])
def test_clips_in_flight_are_guided(models, clip, tmp_path, guidance):
    common = ("--input", clip, "--model", models / "clips", "--guidance", guidance)
    assert run(tmp_path / "one", *common, "--cfg", 1) == 0 and run(tmp_path / "two", *common, "--cfg", 3) == 0
    one, two = (cv2.imread(str(tmp_path / k / "000004.png")).astype(int) for k in ("one", "two"))
    assert abs(one - two).max() > 0


def test_still_input_is_mostly_skipped(models, tmp_path):
    write_video(tmp_path / "still.mp4", torch.full((3, 96, 16, 16), 0.5), 12)
    args = ("--input", tmp_path / "still.mp4", "--model", models / "causal", "--similar", 0.98)
    assert run(tmp_path / "out.mp4", *args, "--report", tmp_path / "r.json") == 0
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["frames"] == 96 and found["skipped"] >= 0.89 * 96


def test_an_interrupted_stream_keeps_what_was_written(models, tmp_path, monkeypatch):
    import fewstep_video.stream.run as module

    own = module.made

    def stopped(*args):
        yield from islice(own(*args), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "made", stopped)
    assert run(tmp_path / "out.mp4", "--model", models / "causal") == 0
    assert read_video(tmp_path / "out.mp4").shape[1] == 6


# --- sources ------------------------------------------------------------------------------------------------------


def test_raw_frames_are_whole():
    data = bytes(range(48)) * 2
    frames = [*raw_frames(io.BytesIO(data), 4, 4)]
    assert len(frames) == 2 and frames[0].shape == (3, 4, 4) and frames[0][:, 0, 1].tolist() == [3, 4, 5]
    with pytest.raises(VideoError, match="frame 1 has 47 of 48 bytes"):
        [*raw_frames(io.BytesIO(data[:-1]), 4, 4)]
    with pytest.raises(VideoError, match="no frames"):
        next(raw_frames(io.BytesIO(b""), 4, 4))


def test_blocks_repeat_the_last_frame_and_say_how_many_are_real():
    found = [*blocks(iter(torch.arange(5.0).reshape(5, 1, 1, 1)), 2)]
    assert [b.count for b in found] == [2, 2, 1] and found[2].frames.flatten().tolist() == [4, 4]
    assert [b.count for b in blocks(iter(torch.zeros(9, 1, 1, 1)), 4, 6)] == [4, 2]


def test_frames_are_cut_around_their_middle():
    wide = torch.zeros(3, 8, 16, dtype=torch.uint8)
    wide[:, :, 4:12] = 255
    assert (fitted(wide, 3, 4, 4) == 1).all() and fitted(wide, 1, 16, 16).shape == (1, 16, 16)
    assert (fitted(wide, 3, 8, 16)[:, :, :4] == -1).all()


# --- what it refuses ----------------------------------------------------------------------------------------------


def test_one_line_for_what_cannot_be(models, clip, tmp_path, capsys, monkeypatch):
    ours = ("--model", models / "causal")
    for args, told in (
        ((tmp_path / "a.mp4", *ours, "--frames", 0), "--frames is at least 1, not 0"),
        ((tmp_path / "a.avi", *ours, "--frames", 2), "cannot write .avi"),
        ((tmp_path / "no" / "a.mp4", *ours), "does not exist"),
        ((tmp_path / "a.mp4", "--input", tmp_path / "none.mp4", *ours), "no such file"),
        ((tmp_path / "a.mp4", "--input", "-", *ours), "--size WxH belongs to --input -"),
        ((tmp_path / "a.mp4", "--input", "-", "--size", "3", *ours), "--size is WxH of at least 2x2"),
        ((tmp_path / "a.mp4", "--input", clip, "--noise", 0, *ours), "--noise is above 0"),
        ((tmp_path / "a.mp4", "--input", clip, "--similar", 1, *ours), "--similar is a cosine"),
        ((clip, "--input", clip, *ours), "would be written over"),
        ((tmp_path / "a.mp4", "--input", clip, "--guidance", "self", *ours), "not causal"),
        ((tmp_path / "a.mp4", "--input", clip, "--adaptive", "--model", models / "clips"), "--adaptive is for causal"),
        ((tmp_path / "a.mp4", "--model", models / "clips"), "a stream from noise needs a causal model"),
        ((tmp_path / "a.mp4", "--similar", 0.9, *ours), "--similar is for streams over another video"),
        ((tmp_path / "a.mp4", "--class", "cat", *ours), "--class cat"),
        ((tmp_path / "a.mp4", "--model", tmp_path), "no model"),
        ((tmp_path, *ours, "--frames", 2, "--zoom", -1), "--zoom"),
    ):
        assert told in refused(capsys, *args)
    cut = clip.with_name("cut.mp4")
    cut.write_bytes(clip.read_bytes()[:-400])
    assert "cut.mp4" in refused(capsys, tmp_path / "a.mp4", "--input", cut, *ours)
    monkeypatch.setattr(sys, "stdin", Bytes(b"abc"))
    assert "3 of 48 bytes" in refused(capsys, tmp_path / "a.mp4", "--input", "-", "--size", "4x4", *ours)
    assert not (tmp_path / "a.mp4").exists() and not [*tmp_path.glob(".*")]


def test_a_folder_with_pictures_is_left_alone(models, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    Path(tmp_path / "out" / "mine.png").write_bytes(b"")
    assert "holds pictures already" in refused(capsys, tmp_path / "out", "--model", models / "causal")
