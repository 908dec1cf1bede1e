"""`fewstep video generate | animate | metrics`: what they write, that it repeats, and that misuse is one line."""

import json

import pytest
import torch
from safetensors.torch import save_file

from fewstep import Denoiser, cli
from fewstep.artifacts import load, save
from fewstep.grids import Uniform
from fewstep.paths import RectifiedFlow
from fewstep.prediction import U
from fewstep.solvers import DDIM
from fewstep_video.commands import subcommands
from fewstep_video.files import read_video, write_video
from fewstep_video.given_frames import windows
from fewstep_video.nets import Classes, Texts, Wan
from fewstep_video.preview import write_picture
from fewstep_video.texts import WordVectors
from fewstep_video.video_generator import VideoGenerator
from fewstep_video.worlds import MovingShapes

CONFIG = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 32, "patch_size": [2, 4, 4]}
CONFIG |= {"in_channels": 3, "out_channels": 3, "text_dim": 12}


def model(condition, names=()):
    torch.manual_seed(0)
    denoiser = Denoiser(Wan(CONFIG, condition), RectifiedFlow(), U())
    return VideoGenerator(denoiser, DDIM(), Uniform(), 3, (3, 4, 16, 16), 8.0, names).eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verbs")
    save(model(Classes(3, dim=12), ["left", "right", "up"]), folder / "classes")
    save(model(Texts(2, 12, WordVectors(2, 12))), folder / "words")
    save(model(Texts(2, 12)), folder / "texts")
    (folder / "real").mkdir()
    for i in range(3):
        write_video(folder / "real" / f"{i}.mp4", MovingShapes(16, 16).balanced(1, i).video[0], 8)
    write_picture(folder / "image.png", (MovingShapes(4, 24).balanced(1, 0).video[0, :, 0] + 1) / 2)
    return folder


def run(*args):
    with pytest.raises(SystemExit) as end:
        cli.main(["video", *map(str, args)])
    return end.value.code


def test_a_subcommand_is_one_module():
    assert {"generate", "animate", "metrics"} <= set(subcommands())


def test_generate_writes_clips_that_repeat(place, tmp_path, capsys):
    one = tmp_path / "a.mp4"
    assert (
        run(
            "generate",
            one,
            "--model",
            place / "classes",
            "--class",
            "up",
            "--count",
            1,
            "--json",
            "--sheet",
            tmp_path / "s.png",
        )
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told["done"] == [{"output": str(one), "condition": "up", "clip": 0}] and told["steps"] == 3
    with torch.no_grad():
        clip = load(place / "classes").eval()(torch.tensor([2]))[0]
    grey = torch.stack([v.mean(0).flatten() for v in (read_video(one), clip)])
    assert torch.corrcoef(grey)[0, 1] > 0.8 and (tmp_path / "s.png").is_file()  # of noise mp4 keeps the grey alone
    assert (
        run("generate", tmp_path / "b.gif", "--model", place / "classes", "--count", 2, "--steps", 1, "--zoom", 2) == 0
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b-0.gif", "b-1.gif", "s.png"]
    assert run("generate", tmp_path / "c.mp4", "--model", place / "classes", "--frames", 8, "--cfg", 2, "--fps", 5) == 0
    assert read_video(tmp_path / "c.mp4").shape == (3, 8, 16, 16)


def test_generate_from_texts(place, tmp_path):
    assert run("generate", tmp_path / "a.mp4", "--model", place / "words", "--text", "a ball") == 0
    save_file({"text": WordVectors(2, 12)("a ball")}, tmp_path / "t.safetensors")
    assert run("generate", tmp_path / "b.mp4", "--model", place / "words", "--text", tmp_path / "t.safetensors") == 0
    assert torch.equal(read_video(tmp_path / "a.mp4"), read_video(tmp_path / "b.mp4"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["a.avi", "--model", "{}/classes"], "cannot write .avi; allowed: .mp4"),
        (["no/a.mp4", "--model", "{}/classes"], "folder no does not exist"),
        (["a.mp4", "--model", "{}/classes", "--class", "down"], "--class down: the model knows left, right, up"),
        (["a.mp4", "--model", "{}/classes", "--steps", "0"], "--steps is at least 1, not 0"),
        (["a.mp4", "--model", "{}/classes", "--frames", "5"], "the nearest that do are 4x16x16"),
        (["a.mp4", "--model", "{}/classes", "--text", "x"], "--text is for models of texts"),
        (["a.mp4", "--model", "{}/texts", "--text", "x"], "has no text encoder"),
        (["a.mp4", "--model", "{}/texts"], "give one with --text"),
        (["a.mp4", "--model", "nothing"], "no model: nothing"),
    ],
)
def test_misuse_of_generate_is_one_line(place, tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    assert run("generate", *(a.format(place) for a in args)) in (1, 2)
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in err and not list(tmp_path.iterdir())


def test_given_frames_are_kept_and_the_others_follow_them():
    net, value = model(Classes(3, dim=12)), torch.tensor([1])
    given = MovingShapes(4, 16).balanced(2, 0).video[:, :, :1]
    first = torch.cat([given[:1], *windows(net, value, given[:1], 10, steps=4)], 2)
    assert first.shape == (1, 3, 10, 16, 16) and torch.equal(first[:, :, :1], given[:1])
    short = torch.cat([given[:1], *windows(net, value, given[:1], 6, steps=4)], 2)
    assert torch.equal(first[:, :, :6], short), "a longer clip begins like a shorter one"
    other = torch.cat([given[1:], *windows(net, value, given[1:], 10, steps=4)], 2)
    assert (other[:, :, 1:4] - first[:, :, 1:4]).abs().max() > 1e-4
    two = [*windows(net, value, torch.cat([given[:1]] * 2, 2), 8, overlap=2, steps=2)]
    assert [b.shape[2] for b in two] == [2, 2, 2]
    with pytest.raises(ValueError, match="at least 2 steps, not 1"):
        next(windows(net, value, given[:1], 10, steps=1))
    with pytest.raises(ValueError, match="none to make beside 4 given"):
        next(windows(net, value, given[:1].expand(-1, -1, 4, -1, -1), 10, overlap=4, steps=2))


def test_given_frames_are_the_end_of_the_sampling_itself():
    """Without writing them over at the end: the states run into the known frames."""
    from fewstep.sampling import sample
    from fewstep_video.given_frames import GivenFrames

    net, known = model(Classes(3, dim=12)), torch.rand(1, 3, 2, 16, 16) * 2 - 1
    path, start = net.denoiser.path, torch.randn(1, 3, 4, 16, 16)
    with torch.no_grad():
        x = sample(
            net.bind({"label": torch.tensor([0])}),
            start,
            path,
            DDIM(),
            Uniform()(path, 5),
            callbacks=[GivenFrames(known, path)],
        )
    assert torch.allclose(x[:, :, :2], known, atol=1e-5)


def test_animate_goes_on_from_pictures_and_videos(place, tmp_path, capsys):
    assert run("animate", place / "image.png", tmp_path / "a.mp4", "--model", place / "classes", "--frames", 9) == 0
    clip = read_video(tmp_path / "a.mp4")
    assert clip.shape == (3, 9, 16, 16)
    assert (
        run(
            "animate",
            place / "real" / "0.mp4",
            tmp_path / "b.webp",
            "--model",
            place / "classes",
            "--class",
            "left",
            "--overlap",
            2,
        )
        == 0
    )
    assert (
        run(
            "animate",
            place / "image.png",
            tmp_path / "c.mp4",
            "--model",
            place / "words",
            "--text",
            "ball",
            "--zoom",
            2,
        )
        == 0
    )
    assert read_video(tmp_path / "c.mp4").shape == (3, 4, 32, 32)
    for args, message in (
        ([place / "none.png", tmp_path / "d.mp4"], "does not exist"),
        ([place / "classes" / "config.json", tmp_path / "d.mp4"], "cannot be read as a picture"),
        ([place / "image.png", tmp_path / "d.mp4", "--steps", 1], "--steps at least 2"),
        ([place / "image.png", tmp_path / "d.mp4", "--frames", 1], "--frames is at least 2"),
    ):
        assert run("animate", *args, "--model", place / "classes") in (1, 2)
        assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.webp", "c.mp4"]


def test_metrics_of_folders_and_of_a_model(place, tmp_path, capsys):
    size = ["--frames", 4, "--size", 16, "--count", 24, "--json"]
    assert run("metrics", place / "real", place / "real", *size, "--sheet", tmp_path / "s.png") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["figures"]["rfvd"]["fake"] < 1e-6 < found["figures"]["rfvd"]["real"]
    assert found["figures"]["warp"]["fake"] == found["figures"]["warp"]["real"]
    assert (tmp_path / "s.png").is_file() and found["clips"]["real"] == found["clips"]["fake"] == 24
    with pytest.warns(UserWarning, match="below 500 compare kvd"):
        assert run("metrics", place / "real", place / "classes", "--count", 12, "--steps", 1) == 0
    text = capsys.readouterr()
    assert "mfvd" in text.out and "dynamic" in text.out
    (tmp_path / "few").mkdir()
    write_video(tmp_path / "few" / "a.mp4", MovingShapes(3, 16).balanced(1, 0).video[0], 8)
    assert run("metrics", place / "real", tmp_path / "few", *size) == 1
    err = capsys.readouterr().err
    assert "left out" in err and "0 clips of 4 frames; allowed: at least 4" in err.splitlines()[-1]
