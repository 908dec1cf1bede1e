"""`fewstep upscale`: folders of every kind of picture (P14), refusals in one line, and nothing left half-written."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn

import fewstep
from fewstep.cli import main
from fewstep.denoiser import Denoiser
from fewstep.generator import Generator
from fewstep.grids import Spaced, Uniform
from fewstep.nets import MLP
from fewstep.paths import RectifiedFlow, ResidualShift
from fewstep.precondition import AnchoredPrecondition
from fewstep.prediction import U
from fewstep.solvers import DDIM
from fewstep_restoration.images import Photo, read_photo, write_photo
from fewstep_restoration.nets import FiLMResNet
from fewstep_restoration.resize import matlab_bicubic
from fewstep_restoration.super_resolver import SuperResolver
from fewstep_restoration.upscale import upscale


def resolver(scale=4, net=None):
    torch.manual_seed(0)
    net = net or FiLMResNet(channels=3 * scale**2, width=8, blocks=1)
    nn.init.normal_(net.last.weight, std=0.1)
    path = ResidualShift(kappa=0.2, min_noise=0.02)
    return SuperResolver(Denoiser(net, path, AnchoredPrecondition(0.1)), DDIM(), Spaced(), steps=1, scale=scale).eval()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return fewstep.save(resolver(), tmp_path_factory.mktemp("model") / "student")


@pytest.fixture
def cwd(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("FEWSTEP_DEBUG", raising=False)
    return tmp_path


def run(*args):
    """Exit code of `fewstep upscale ...`."""
    with pytest.raises(SystemExit) as end:
        main(["upscale", *map(str, args)])
    return end.value.code


def errors(err):
    """Lines of stderr, the progress bar apart."""
    return [line for line in err.splitlines() if not line.startswith("upscaling ")]


def refused(capfd, args, *needles):
    capfd.readouterr()
    assert run(*args) in (1, 2)
    out, err = capfd.readouterr()
    assert out == ""
    assert len(errors(err)) == 1, err
    assert errors(err)[0].startswith("fewstep upscale: ")
    for needle in needles:
        assert str(needle) in err


def pixels(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def photos(cwd):
    """One picture of every kind, and one that is broken."""
    folder = cwd / "in"
    folder.mkdir()
    Image.fromarray(pixels(7, 9)).save(folder / "grey.png")
    Image.fromarray(pixels(6, 5, 4)).save(folder / "alpha.png")
    Image.fromarray(pixels(5, 6, 3)).save(folder / "sünset – 夕日 🌅.webp", lossless=True)
    Image.fromarray(pixels(5, 8, 3)).save(folder / "plain.bmp")
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    Image.fromarray(pixels(8, 12, 3)).save(folder / "turned.jpg", exif=exif.tobytes())
    deep = torch.from_numpy(pixels(6, 7, 3, dtype=np.uint16).astype(np.float32) / 65535).permute(2, 0, 1)
    write_photo(folder / "deep.png", Photo(deep, bits=16))
    write_photo(folder / "deep.tif", Photo(deep, deep[:1], bits=16))
    whole = (folder / "alpha.png").read_bytes()
    (folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("not a picture")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


GOOD = ["alpha.png", "deep.png", "deep.tif", "grey.png", "plain.bmp", "sünset – 夕日 🌅.webp", "turned.jpg"]


# --- a folder of everything --------------------------------------------------------------------------------------


def test_a_folder_of_every_kind_with_a_broken_one(photos, model, cwd, capfd):
    assert run("in", "out", "--model", model) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert len(errors(err)) == 1, err
    assert "broken.png" in errors(err)[0]
    assert files(cwd / "out") == sorted(GOOD)  # all others, and no temporary file
    for name in GOOD:
        before, after = read_photo(photos / name), read_photo(cwd / "out" / name)
        h, w = before.rgb.shape[-2:]
        assert after.rgb.shape == (3, 4 * h, 4 * w), name
        # webp has no grey; everything else keeps depth, greyness and alpha.
        assert (after.bits, after.grey, after.alpha is None) == (before.bits, before.grey, before.alpha is None), name
    assert read_photo(cwd / "out/deep.png").bits == 16
    assert read_photo(cwd / "out/grey.png").grey


def test_a_folder_without_broken_pictures_ends_well_and_quietly(photos, model, cwd, capfd):
    (photos / "broken.png").unlink()
    assert run("in", "out", "--model", model) == 0
    out, err = capfd.readouterr()
    assert (out, errors(err)) == ("", [])


def test_the_orientation_is_applied_once(photos, model, cwd):
    assert run("in/turned.jpg", "out.jpg", "--model", model) == 0
    with Image.open(photos / "turned.jpg") as before, Image.open("out.jpg") as after:
        upright = ImageOps.exif_transpose(before)
        assert after.size == (4 * upright.width, 4 * upright.height) == (32, 48)
        assert after.getexif().get(0x0112, 1) == 1
        assert after.getexif()[0x010F] == "Maker"
        assert ImageOps.exif_transpose(after).size == after.size


def test_alpha_is_enlarged_and_sixteen_bits_are_real(photos, model, cwd):
    assert run("in/deep.tif", "out.tif", "--model", model) == 0
    before, after = read_photo(photos / "deep.tif"), read_photo("out.tif")
    expected = matlab_bicubic(before.alpha[None], 4)[0].clamp(0, 1)
    assert (after.alpha - expected).abs().max() <= 0.5 / 65535 + 1e-6
    assert ((after.rgb * 255 - (after.rgb * 255).round()).abs() > 0.1).float().mean() > 0.5  # not 8 bits in disguise


def test_the_picture_is_that_of_the_model(photos, model, cwd):
    assert run("in/deep.png", "out.png", "--model", model, "--seed", 7) == 0
    lr = read_photo(photos / "deep.png").rgb[None] * 2 - 1
    student = fewstep.load(model)
    with torch.no_grad():
        expected = student(lr, generator=torch.Generator().manual_seed(7)).clamp(-1, 1)
    assert (read_photo("out.png").rgb * 2 - 1 - expected[0]).abs().max() <= 1 / 65535 + 1e-5
    assert (expected - student.anchor(lr, 4)).abs().max() > 0.05  # which is not the bicubic one


def test_pictures_do_not_depend_on_their_company(photos, model, cwd):
    run("in", "out", "--model", model)
    for name in ("turned.jpg", "alpha.png"):
        assert run(f"in/{name}", name, "--model", model) == 0
        assert (cwd / name).read_bytes() == (cwd / "out" / name).read_bytes()


def test_the_seed_chooses_the_noise(photos, model, cwd):
    made = []
    for k, seed in enumerate((0, 0, 1)):
        assert run("in/deep.png", f"{k}.png", "--model", model, "--seed", seed) == 0
        made.append((cwd / f"{k}.png").read_bytes())
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_steps_replace_those_of_the_model(photos, model, cwd):
    for steps in (1, 4):
        assert run("in/deep.png", f"{steps}.png", "--model", model, "--steps", steps) == 0
    assert run("in/deep.png", "own.png", "--model", model) == 0
    assert (cwd / "own.png").read_bytes() == (cwd / "1.png").read_bytes()
    assert (cwd / "own.png").read_bytes() != (cwd / "4.png").read_bytes()


def test_folders_inside_are_kept_with_recursive_and_left_out_without(photos, model, cwd):
    (photos / "broken.png").unlink()
    (photos / "deeper").mkdir()
    shutil.copy(photos / "grey.png", photos / "deeper/again.png")
    assert run("in", "flat", "--model", model) == 0
    assert run("in", "deep", "--model", model, "--recursive") == 0
    assert files(cwd / "flat") == sorted(GOOD)
    assert files(cwd / "deep") == sorted([*GOOD, "deeper/again.png"])


def test_one_picture_into_a_file_or_a_folder(photos, model, cwd):
    (cwd / "there").mkdir()
    assert run("in/grey.png", "there", "--model", model) == 0
    assert run("in/grey.png", "new/folder/grey.tif", "--model", model) == 0
    assert files(cwd / "there") == ["grey.png"]
    assert torch.equal(read_photo("there/grey.png").rgb, read_photo("new/folder/grey.tif").rgb)


def test_the_machine_readable_account(photos, model, cwd, capfd):
    assert run("in", "out", "--model", model, "--json") == 1
    account = json.loads(capfd.readouterr().out)
    assert (account["model"], account["steps"], account["scale"]) == (str(model), 1, 4)
    assert [d["input"] for d in account["done"]] == [f"in/{name}" for name in GOOD]
    assert [d["output"] for d in account["done"]] == [f"out/{name}" for name in GOOD]
    sizes = {d["input"]: d["size"] for d in account["done"]}
    assert sizes["in/grey.png"] == [36, 28]  # width, height, as written
    assert sizes["in/turned.jpg"] == [32, 48]
    assert all(d["seconds"] > 0 for d in account["done"])
    (failure,) = account["failed"]
    assert failure["input"] == "in/broken.png"
    assert "broken.png" in failure["error"]


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2)])
def test_tiny_pictures(model, cwd, size):
    Image.fromarray(pixels(*size, 3)).save("tiny.png")
    assert run("tiny.png", "out.png", "--model", model) == 0
    assert read_photo("out.png").rgb.shape == (3, 4 * size[0], 4 * size[1])


def test_other_magnifications(cwd):
    fewstep.save(resolver(scale=2), cwd / "double")
    Image.fromarray(pixels(5, 7, 3)).save("a.png")
    assert run("a.png", "out.png", "--model", "double") == 0
    assert read_photo("out.png").rgb.shape == (3, 10, 14)


def test_the_function_keeps_what_belongs_to_the_picture():
    photo = Photo(torch.rand(3, 5, 4), torch.rand(1, 5, 4), 16, False, b"profile", b"Exif\0\0words")
    out = upscale(resolver(), photo)
    assert (out.rgb.shape, out.alpha.shape, out.bits, out.icc, out.exif) == (
        (3, 20, 16),
        (1, 20, 16),
        16,
        b"profile",
        photo.exif,
    )
    assert not out.rgb.requires_grad
    assert 0 <= out.rgb.min() <= out.rgb.max() <= 1


# --- refusals ----------------------------------------------------------------------------------------------------


def test_a_missing_input(model, cwd, capfd):
    refused(capfd, ["nosuch.png", "out.png", "--model", model], "nosuch.png")
    assert files(cwd) == []


def test_an_empty_folder(model, cwd, capfd):
    (cwd / "in").mkdir()
    refused(capfd, ["in", "out", "--model", model], "in")
    assert not (cwd / "out").exists()


def test_a_folder_into_a_file(photos, model, cwd, capfd):
    (cwd / "out").write_text("precious")
    refused(capfd, ["in", "out", "--model", model], "out")
    assert (cwd / "out").read_text() == "precious"


def test_a_missing_model_is_named_with_the_way_to_get_one(photos, cwd, capfd):
    refused(capfd, ["in", "out"], "fewstep-demo/student", "fewstep demo")
    refused(capfd, ["in", "out", "--model", "./nosuch"], "nosuch")
    assert not (cwd / "out").exists()


def test_a_model_of_another_kind(photos, cwd, capfd):
    other = Generator(Denoiser(MLP(2, 8, 2), RectifiedFlow(), U()), DDIM(), Uniform())
    fewstep.save(other, cwd / "flow")
    refused(capfd, ["in", "out", "--model", "flow"], "flow", "Generator", "SuperResolver")
    assert not (cwd / "out").exists()


def test_a_damaged_model(photos, model, cwd, capfd):
    shutil.copytree(model, cwd / "cut")
    weights = cwd / "cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    refused(capfd, ["in", "out", "--model", "cut"], "cut")
    assert not (cwd / "out").exists()


@pytest.mark.parametrize("steps", ["0", "-1", "16", "two"])
def test_impossible_numbers_of_steps(photos, model, cwd, capfd, steps):
    refused(capfd, ["in", "out", "--model", model, "--steps", steps], steps, "step")
    assert not (cwd / "out").exists() or files(cwd / "out") == []


@pytest.mark.parametrize(
    ("source", "target", "needle"),
    [
        ("deep.png", "out.jpg", "16-bit"),
        ("alpha.png", "out.bmp", "alpha"),
        ("grey.png", "out.gif", ".gif"),
        ("grey.png", "out", "out"),
        ("broken.png", "out.png", "broken.png"),
        ("notes.txt", "out.png", "notes.txt"),
    ],
)
def test_what_cannot_be_read_or_written_is_refused_and_leaves_nothing(
    photos, model, cwd, capfd, source, target, needle
):
    before = files(cwd)
    refused(capfd, [f"in/{source}", target, "--model", model], needle)
    assert files(cwd) == before


def test_a_failed_picture_keeps_the_one_that_was_there(photos, model, cwd, capfd):
    (cwd / "out").mkdir()
    (cwd / "out/broken.png").write_text("from before")
    assert run("in", "out", "--model", model) == 1
    assert (cwd / "out/broken.png").read_text() == "from before"


def test_the_input_is_never_written_over(photos, model, cwd):
    before = {name: (photos / name).read_bytes() for name in files(photos)}
    for args in (("in", "in"), ("in/grey.png", "in/grey.png"), ("in/grey.png", "in")):
        assert run(*args, "--model", model) != 0
    assert {name: (photos / name).read_bytes() for name in files(photos)} == before
