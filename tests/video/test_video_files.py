"""Video files: what is written is read again, odd sizes too; what cannot be used is one line, and nothing is left half-written."""

import json
import resource
import sys

import av
import numpy as np
import pytest
import torch

from fewstep_video.files import VideoError, VideoWriter, read_frames, read_video, video_info, write_video
from fewstep_video.preview import write_frames, write_picture, write_preview
from fewstep_video.sheet import contact_sheet
from fewstep_video.worlds import Bouncing, MovingShapes


def psnr(a, b):
    return float(10 * torch.log10(4 / (a - b).square().mean()))


def shapes(size=64, frames=12):
    return MovingShapes(frames, size, edge=1.0).balanced(1, 3).video[0]


def test_an_mp4_keeps_frames_rate_and_size_and_plays_in_browsers(tmp_path):
    video, file = shapes(), tmp_path / "a.mp4"
    write_video(file, video, 12.5, about={"seed": 3})
    info = video_info(file)
    assert (info.width, info.height, info.frames) == (64, 64, 12) and info.fps == pytest.approx(12.5)
    assert json.loads(info.comment) == {"fewstep": {"seed": 3}}
    again = read_video(file)
    assert again.shape == video.shape and psnr(again, video) > 35
    with av.open(str(file)) as held:
        stream = held.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    content = file.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat"), "the index stands in front"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("size", [(15, 16), (16, 15), (17, 13), (2, 2), (3, 3)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_odd_sizes_are_padded_and_restored(tmp_path, size, suffix):
    video = shapes(32, 5)[:, :, : size[0], : size[1]]
    write_video(tmp_path / f"a{suffix}", video, 8)
    again = read_video(tmp_path / f"a{suffix}")
    assert again.shape == video.shape and video_info(tmp_path / f"a{suffix}")[1:3] == (size[1], size[0])
    with av.open(str(tmp_path / f"a{suffix}")) as held:
        assert held.streams.video[0].codec_context.width % 2 == 0


def test_grey_clips_and_webm(tmp_path):
    video = shapes(16, 6).mean(0, keepdim=True)
    write_video(tmp_path / "a.webm", video, 8)
    again = read_video(tmp_path / "a.webm")
    assert again.shape == (3, 6, 16, 16) and psnr(again, video.expand(3, -1, -1, -1)) > 30


def test_the_same_frames_are_the_same_file(tmp_path):
    """Many times over: an encoder that reads what is not its own shows in a tenth of them."""
    files = set()
    for _ in range(40):
        write_video(tmp_path / "a.mp4", shapes(32, 12), 8)
        files.add((tmp_path / "a.mp4").read_bytes())
    assert len(files) == 1


def test_blocks_are_one_file_and_an_early_end_is_playable(tmp_path):
    video = shapes(32, 12)
    with VideoWriter(tmp_path / "a.mp4", 8) as writer:
        for block in video.split(5, 1):
            writer.write(block)
    write_video(tmp_path / "b.mp4", video, 8)
    assert torch.equal(read_video(tmp_path / "a.mp4"), read_video(tmp_path / "b.mp4"))
    writer = VideoWriter(tmp_path / "c.mp4", 8)
    writer.write(video[:, :4])
    writer.save()
    assert read_video(tmp_path / "c.mp4").shape[1] == 4
    assert read_video(tmp_path / "a.mp4", most=3).shape[1] == 3


def test_nothing_is_left_where_writing_fails(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), VideoWriter(tmp_path / "a.mp4", 8) as writer:
        writer.write(shapes(16, 3))
        raise RuntimeError("stop")
    with pytest.raises(VideoError, match="nothing to write"), VideoWriter(tmp_path / "a.mp4", 8):
        pass
    with pytest.raises(VideoError, match="nan or inf"):
        write_video(tmp_path / "a.mp4", shapes(16, 3) / 0, 8)
    with pytest.raises(VideoError, match="allowed: one size"), VideoWriter(tmp_path / "a.mp4", 8) as writer:
        writer.write(shapes(16, 3))
        writer.write(shapes(32, 3))
    with pytest.raises(VideoError, match="cannot write .avi; allowed: .mp4 .mkv"):
        write_video(tmp_path / "a.avi", shapes(16, 3), 8)
    with pytest.raises(VideoError, match="does not exist"):
        write_video(tmp_path / "no" / "a.mp4", shapes(16, 3), 8)
    with pytest.raises(VideoError, match="0 frames per second"):
        write_video(tmp_path / "a.mp4", shapes(16, 3), 0)
    assert not list(tmp_path.iterdir())


def test_a_missing_encoder_is_named(tmp_path, monkeypatch):
    from fewstep_video import files

    monkeypatch.setitem(files._ENCODERS, ".mp4", "libx999")
    with pytest.raises(VideoError, match="no encoder libx999; what it can write: .*webm"):
        write_video(tmp_path / "a.mp4", shapes(16, 3), 8)


def raw(file, frames, codec="libx264", **options):
    """A file by PyAV alone: frames are (H, W, 3) arrays."""
    with av.open(str(file), "w") as out:
        stream = out.add_stream(codec, rate=8, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)


def test_every_unusable_video_is_one_line(tmp_path):
    def refused(name, content=None):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(VideoError) as error:
            read_video(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name)) and "\n" not in str(error.value)
        assert "allowed" in str(error.value)
        return str(error.value)

    assert "no such file" in refused("none.mp4")
    assert "is empty" in refused("empty.mp4", b"")
    assert "cannot be read" in refused("text.mp4", b"this is no video at all")
    (tmp_path / "folder.mp4").mkdir()
    assert "a folder" in refused("folder.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        for packet in [*stream.encode(frame), *stream.encode()]:
            out.mux(packet)
    assert "sound alone" in refused("sound.mp4")
    write_video(tmp_path / "whole.mp4", shapes(64, 40), 8)
    content = (tmp_path / "whole.mp4").read_bytes()
    message = refused("cut.mp4", content[: len(content) * 6 // 10])
    assert "truncated" in message or "damaged" in message
    refused("head.mp4", content[:200])
    dot = np.zeros((1, 1, 3), np.uint8)
    raw(tmp_path / "dot.mkv", [dot] * 3, "ffv1")
    assert "frames of 1x1 pixels" in refused("dot.mkv")
    # An elementary stream may change its size: two of them, one after the other.
    for size in (32, 64):
        raw(tmp_path / f"{size}.h264", [np.full((size, size, 3), 40 * i, np.uint8) for i in range(4)])
    both = (tmp_path / "32.h264").read_bytes() + (tmp_path / "64.h264").read_bytes()
    assert "is 64x64, the first is 32x32" in refused("sizes.h264", both)


def test_a_video_without_frames(tmp_path):
    with av.open(str(tmp_path / "none.mkv"), "w") as out:
        stream = out.add_stream("libx264", rate=8)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        out.start_encoding()
    with pytest.raises(VideoError, match=r"none.mkv: (holds no frames|cannot be read|no decoder|frames of 0x0)"):
        read_video(tmp_path / "none.mkv")


def test_memory_does_not_grow_with_the_length(tmp_path):
    block = Bouncing(8, 64).balanced(1, 0).video[0]

    def peak(frames):
        with VideoWriter(tmp_path / "a.mp4", 8) as writer:
            for _ in range(frames // 8):
                writer.write(block)
        for _ in read_frames(tmp_path / "a.mp4"):
            pass
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    first, long = peak(200), peak(1600)
    unit = 1 if sys.platform == "darwin" else 1024
    # 1400 further frames would be 17 MB as bytes, 69 MB as numbers.
    assert (long - first) * unit < 8e6


def test_previews_frames_and_sheets(tmp_path):
    from PIL import Image

    video = shapes(16, 6)
    for suffix in ("webp", "gif"):
        write_preview(tmp_path / f"a.{suffix}", video, 8)
        with Image.open(tmp_path / f"a.{suffix}") as image:
            assert image.n_frames == 6 and image.size == (16, 16)
            image.seek(1)
            image.load()
            assert image.info["duration"] in (120, 125)  # GIF counts in hundredths
    write_frames(tmp_path / "out", video, first=3)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"0000{i}.png" for i in range(3, 9)]
    sheet = contact_sheet(torch.stack([video, video]), columns=3, zoom=2, gap=1)
    assert sheet.shape == (3, 2 * 32 + 1, 3 * 32 + 2) and sheet[:, 32].min() == 1
    assert torch.allclose(sheet[:, :32:2, :32:2], (video[:, 0] + 1) / 2)
    write_picture(tmp_path / "sheet.png", sheet)
    assert contact_sheet(video[None], columns=4, every=5, zoom=1).shape[2] == 2 * 16 + 1
    with pytest.raises(VideoError, match="allowed: .webp .gif"):
        write_preview(tmp_path / "a.apng", video, 8)
    with pytest.raises(ValueError, match="a sheet is of clips"):
        contact_sheet(video)
