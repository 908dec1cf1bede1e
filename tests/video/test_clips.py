"""Clips of one's own videos: windows, corpora, and what happens to videos that cannot be used."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fewstep_video.data.clips import Clips, known_labels
from fewstep_video.data.corpora import Captioned, ClassFiles, ClassFolders
from fewstep_video.data.windows import InMemory, OnDemand, Window
from fewstep_video.files import VideoError, write_video
from fewstep_video.texts import WordVectors

ASL = Path(__file__).parents[2].parent / "shared" / "data" / "video" / "asl"


def ramp(file, frames, fps=30, size=32):
    """Frame i has the grey level i of `frames`."""
    level = torch.linspace(-0.9, 0.9, frames)
    write_video(file, level.reshape(1, -1, 1, 1).expand(3, -1, size, size).contiguous(), fps, quality=0)


def numbers(clip, frames):
    """Which frames of the ramp a clip (3, F, H, W) holds."""
    return ((clip.mean((0, 2, 3)) + 0.9) / 1.8 * (frames - 1)).round().long().tolist()


@pytest.mark.parametrize("reading", [InMemory(), OnDemand()], ids=["memory", "demand"])
@pytest.mark.parametrize(
    ("window", "steps"),
    [
        (Window(4, 16, 16, 1), [0, 1, 2, 3]),
        (Window(4, 16, 16, 3), [0, 3, 6, 9]),
        (Window(4, 16, 16, fps=10), [0, 3, 6, 9]),
        (Window(5, 16, 16, fps=20), [0, 2, 3, 5, 6]),
    ],
    ids=str,
)
def test_windows_are_exact_on_a_ramp_and_never_pass_the_end(tmp_path, reading, window, steps):
    ramp(tmp_path / "a.mkv", 24)
    video = reading(tmp_path / "a.mkv", window)
    assert list(video.steps) == steps and video.starts == 24 - steps[-1]
    for start in (0, 5, video.starts - 1):
        assert numbers(video.clip(start), 24) == [start + s for s in steps]
    with pytest.raises(IndexError, match="no window begins"):
        video.clip(video.starts)


def test_frames_are_the_middle_at_the_size():
    frames = torch.zeros(1, 3, 40, 80, dtype=torch.uint8)
    frames[:, :, :, 20:60] = 200
    small = Window(1, 20, 20).fitted(frames)
    assert small.shape == (1, 3, 20, 20) and (small == 200).all()
    assert Window(1, 80, 80).fitted(frames).shape == (1, 3, 80, 80)
    with pytest.raises(ValueError, match="a rate above 0 or a stride"):
        Window(fps=8, stride=2)


def test_corpora_say_what_a_video_shows(tmp_path):
    for name in (
        "b/1.mkv",
        "b/2.mp4",
        "a/1.mkv",
        "flat/wave_1.mkv",
        "flat/wave_2.mkv",
        "flat/run.mkv",
        "texts/x.mkv",
        "texts/y.mkv",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"-")
    folders = ClassFolders(str(tmp_path))
    assert folders.names() == ["a", "b", "flat", "texts"]
    assert [(i.path.name, int(i.value)) for i in folders.items()][:3] == [("1.mkv", 0), ("1.mkv", 1), ("2.mp4", 1)]
    files = ClassFiles(str(tmp_path / "flat"))
    assert files.names() == ["run", "wave"] and [int(i.value) for i in files.items()] == [0, 1, 1]
    texts = Captioned(str(tmp_path / "texts"), WordVectors(3, 8))
    with pytest.raises(VideoError, match=r"x.mkv: no text; allowed: x.txt or x.safetensors"):
        texts.items()
    (tmp_path / "texts/x.txt").write_text("a red ball")
    save_file({"text": torch.ones(3, 8)}, tmp_path / "texts/y.safetensors")
    one, two = texts.items()
    assert torch.equal(one.value, WordVectors(3, 8)("a red ball")) and torch.equal(two.value, torch.ones(3, 8))
    save_file({"text": torch.ones(4, 8)}, tmp_path / "texts/y.safetensors")
    with pytest.raises(VideoError, match="allowed: one size"):
        texts.items()
    save_file({"other": torch.ones(4, 8)}, tmp_path / "texts/y.safetensors")
    with pytest.raises(ValueError, match="holds no tensor `text`"):
        texts.items()
    with pytest.raises(VideoError, match="no folder with videos"):
        ClassFolders(str(tmp_path / "flat")).names()


def test_unusable_videos_are_named_and_left_out(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            ramp(tmp_path / name / f"{i}.mkv", 12)
    ramp(tmp_path / "b" / "short.mkv", 3)
    (tmp_path / "b" / "bad.mp4").write_bytes(b"no video")
    data = Clips(ClassFolders(str(tmp_path)), Window(4, 16, 16, 2), held_out=2, validate_on=5, batch_size=3)
    with pytest.warns(UserWarning) as seen:
        data.setup()
    told = [str(w.message) for w in seen if "left out" in str(w.message)]
    assert len(told) == 2 and any("bad.mp4: cannot be read" in t for t in told)
    assert any("short.mkv: 3 frames; allowed: at least the 7 of a window" in t for t in told)
    assert len(data.train) == 4 and len(data.test) == 2 and data.val["video"].shape == (5, 3, 4, 16, 16)
    one, two = (next(iter(data.train_dataloader())) for _ in range(2))
    assert one["video"].shape == (3, 3, 4, 16, 16) and torch.equal(one["video"], two["video"])
    kept = {v.path for v, _ in data.train.videos}
    assert not kept & {v.path for v, _ in data.test.videos}
    with (
        pytest.raises(VideoError, match="6 usable videos, 6 of them held out; allowed: 1 to 5"),
        pytest.warns(UserWarning),
    ):
        Clips(ClassFolders(str(tmp_path)), Window(4, 16, 16, 2), held_out=6).setup()


def test_a_loader_goes_on_where_it_was(tmp_path):
    for i in range(3):
        ramp(tmp_path / f"{'xyz'[i]}.mkv", 12)

    def made():
        data = Clips(ClassFiles(str(tmp_path)), Window(4, 16, 16), held_out=1, batch_size=2)
        data.setup()
        return data.train_dataloader()

    whole, part = iter(made()), made()
    batches = [next(whole) for _ in range(4)]
    first = iter(part)
    next(first), next(first)
    again = made()
    again.load_state_dict(part.state_dict())
    rest = iter(again)
    assert all(torch.equal(next(rest)["video"], b["video"]) for b in batches[2:])


def test_labels_that_training_lacks_are_replaced():
    assert known_labels(torch.tensor([0, 9, 9, 2]), torch.tensor([0, 2])).tolist() == [0, 2, 0, 2]


@pytest.mark.data
@pytest.mark.skipif(not ASL.is_dir(), reason="no videos")
def test_real_clips_are_read_and_metrics_order_them():
    from torch.nn.functional import interpolate

    from fewstep_video.metrics import flow_figures, mfvd, rfvd

    data = Clips(ClassFiles(str(ASL)), Window(8, 32, 32, 2), held_out=4, validate_on=100)
    data.setup()
    assert len(data.train) == 12 and len(data.test) == 4 and len(set(data.corpus.names())) == 16
    real, other = data.train.even(200)["video"].chunk(2)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    real, other = torch.cat([real, other])[order].chunk(2)
    shuffled = other[:, :, torch.tensor([3, 0, 6, 1, 7, 2, 5, 4])]
    static, noise = other[:, :, :1].expand_as(other), other + 0.1 * torch.randn(other.shape)
    blur = interpolate(interpolate(other.flatten(1, 2), scale_factor=0.5, mode="area"), scale_factor=2).unflatten(
        1, (3, 8)
    )
    floor = {"rfvd": rfvd(real, other), "mfvd": mfvd(real, other)}
    # As the sheet found: plain rFVD is almost blind to time, mFVD is not.
    assert rfvd(real, shuffled) < 3 * floor["rfvd"] < rfvd(real, blur)
    assert mfvd(real, shuffled) > 3 * floor["mfvd"] and mfvd(real, static) > 3 * floor["mfvd"]
    assert mfvd(real, noise) > mfvd(real, shuffled)
    found = {
        n: flow_figures(v[:12])
        for n, v in {"real": other, "shuffled": shuffled, "static": static, "noise": noise}.items()
    }
    warp = {n: float(f.warp.mean()) for n, f in found.items()}
    assert warp["static"] == 0 and warp["real"] < warp["noise"] and warp["real"] < warp["shuffled"]
    assert found["static"].dynamic.mean() < 0.1 * found["real"].dynamic.mean()
