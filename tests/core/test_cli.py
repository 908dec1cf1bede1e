"""The command line: what answers without torch, and that bad input ends in one line on stderr, a code, and no half-written output."""

import json
import os
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import fewstep
from fewstep import recipes
from fewstep.cli import main

RING, RINGSTEP = recipes.find("toy/ring_flow"), recipes.find("toy/ring_onestep")
PHOTOS = recipes.find("restoration/resshift_small")
NET = "--model.init_args.student.init_args.denoiser.init_args.net.init_args"
TINY = [
    f"{NET}.hidden=8",
    "--model.init_args.iterations=3",
    "--data.init_args.batch_size=4",
    "--trainer.accelerator=cpu",
]
TINY += ["--trainer.logger=false", "--trainer.default_root_dir=out", "--trainer.val_check_interval=2"]
TINY_PHOTOS = [f"{NET}.width=8", *TINY[1:], "--data.init_args.crop=32", "--data.init_args.folder=pictures"]


# --- without torch -----------------------------------------------------------------------------------------------

LIGHT = """
import sys
from fewstep.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    code = end.code
heavy = [m for m in ("torch", "lightning", "jsonargparse", "numpy", "PIL", "rich") if m in sys.modules]
print(code, heavy, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("args", "needle"),
    [
        (["--help"], "upscale"),
        ([], "recipes"),
        (["--version"], fewstep.__version__),
        (["recipes"], "toy/ring_flow"),
        (["recipes", "toy/ring_flow"], "class_path: fewstep.train.denoising.Denoising"),
        (["recipes", "toy/ring_flow.yaml"], "# Rectified-flow"),
        (["recipes", "--json"], '"toy/ring_onestep"'),
        (["recipes", "toy/ring_flow", "--out", "mine.yaml"], ""),
        (["fit", "--help"], "recipe"),
        (["upscale", "--help"], "--model"),
        (["demo", "--help"], "--minutes"),
        (["bench", "--help"], "overhead"),
    ],
    ids=" ".join,
)
def test_questions_are_answered_without_importing_anything_heavy(tmp_path, args, needle):
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *args], check=False, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stderr == "0 []\n"
    assert needle in done.stdout
    if "--out" in args:
        assert (tmp_path / "mine.yaml").read_text() == RING.read_text()
        assert done.stdout == ""
    else:
        assert list(tmp_path.iterdir()) == []


# --- one line ----------------------------------------------------------------------------------------------------


@pytest.fixture
def cwd(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("COLUMNS", "FEWSTEP_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def run(args):
    """main(args) as the interpreter would run it: warnings on stderr, and an escaping exception fails the test with its traceback."""

    def show(message, category, filename, lineno, file=None, line=None):
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))

    with warnings.catch_warnings(), pytest.raises(SystemExit) as end:
        warnings.resetwarnings()
        for quiet in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", quiet)
        warnings.showwarning = show
        main([str(a) for a in args])
    return end.value.code or 0


@pytest.fixture
def refused(cwd, capfd):
    """refused(args, *needles): non-zero exit, exactly one line on stderr that holds every needle, nothing on stdout."""

    def check(args, *needles, allow_bar=False):
        capfd.readouterr()
        code = run(args)
        out, err = capfd.readouterr()
        lines = [line for line in err.splitlines() if not (allow_bar and line.startswith(("training ", "upscaling ")))]
        assert code != 0
        assert out == ""
        assert len(lines) == 1, err
        assert lines[0].startswith((f"fewstep {args[0]}: ", "fewstep: ")), err
        assert len(lines[0]) <= 600, err
        for needle in needles:
            assert str(needle) in lines[0], f"{needle!r} is not in: {lines[0]}"
        assert not [w for w in ("Traceback", "Union subtypes", "Namespace(", "<class") if w in lines[0]], lines[0]
        return lines[0]

    return check


def left(folder):
    """Files below a folder, run records apart."""
    return (
        sorted(p.name for p in folder.rglob("*") if p.is_file() and p.name != "config.yaml") if folder.exists() else []
    )


def recipe(folder, change, source=RING):
    """A copy of a shipped recipe with one text replaced."""
    text, old, new = source.read_text(), *change
    assert old in text
    (folder / "mine.yaml").write_text(text.replace(old, new, 1))
    return folder / "mine.yaml"


def test_a_missing_verb_or_an_unknown_one(refused, capfd, cwd):
    for args in (["nosuch"], ["--nosuch"]):
        capfd.readouterr()
        assert run(args) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1
        assert err.startswith("fewstep: ")
        assert "nosuch" not in args or ("nosuch" in err and "upscale" in err)


@pytest.mark.parametrize(
    ("args", "needles"),
    [
        (["recipes", "nosuch"], ["nosuch", "`fewstep recipes`"]),
        (["recipes", "toy/ring_flo"], ["'toy/ring_flo'", "toy/ring_flow"]),
        (["recipes", "../../pyproject"], ["pyproject"]),
        (["recipes", "toy/ring_flow", "--out", "no/such/folder/x.yaml"], ["no/such/folder"]),
        (["recipes", "toy/ring_flow", "--out", "."], ["exists"]),
        (["recipes", "a", "b"], ["b"]),
        (["bench", "nosuch"], ["nosuch", "overhead", "shell"]),
        (["demo", "nosuch"], ["nosuch", "restoration"]),
        (["demo", "--minutes", "0"], ["minutes", "0"]),
        (["demo", "--minutes", "nan"], ["minutes", "nan"]),
        (["demo", "--minutes", "soon"], ["minutes", "soon"]),
        (["upscale"], ["IN", "OUT"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_misuse_of_the_light_verbs(refused, cwd, args, needles):
    refused(args, *needles)
    assert list(cwd.iterdir()) == []


def test_a_recipe_is_never_written_over(refused, cwd):
    (cwd / "mine.yaml").write_text("precious")
    refused(["recipes", "toy/ring_flow", "--out", "mine.yaml"], "mine.yaml")
    assert (cwd / "mine.yaml").read_text() == "precious"


@pytest.mark.parametrize("args", [["-c", "nosuch.yaml"], ["--config", "nosuch.yaml"], ["--config=nosuch.yaml"]])
def test_a_missing_recipe_file(refused, args):
    refused(["fit", *args], "nosuch.yaml")


def test_a_recipe_that_is_a_folder(refused, cwd):
    refused(["fit", "-c", cwd], cwd)


@pytest.mark.parametrize(
    "content",
    [b"", b"- 1\n- 2\n", bytes(range(256)), b"model: [\n", b"model: {a: 1}}\n"],
    ids=["empty", "list", "binary", "open", "closed"],
)
def test_a_recipe_file_that_is_none_is_named(refused, cwd, content):
    (cwd / "broken.yaml").write_bytes(content)
    refused(["fit", "-c", "broken.yaml"], "broken.yaml")


def test_a_recipe_without_model_and_data(refused):
    refused(["fit"], "model", "data")


MISSPELT = [
    pytest.param(("iterations: 4000", "iteratons: 4000"), ["iteratons"], id="method"),
    pytest.param(("dim: 2", "dimm: 2"), ["dimm"], id="deep"),
    pytest.param(("steps: 25", "step: 25"), ["'step'"], id="generator"),
    pytest.param(("lr: 2.0e-3", "learning_rate: 2.0e-3"), ["learning_rate"], id="optimizer"),
    pytest.param(("accelerator: auto", "accelerater: auto"), ["accelerater"], id="trainer"),
    pytest.param(("trainer:", "trainr:"), ["trainr"], id="section"),
    pytest.param(("every: 1000", "evry: 1000"), ["evry"], id="callback"),
    pytest.param(("fewstep.solvers.Heun", "fewstep.solvers.Huen"), ["Huen"], id="class"),
    pytest.param(("fewstep.paths.RectifiedFlow", "fewstep.path.RectifiedFlow"), ["denoiser", "path"], id="module"),
    pytest.param(("fewstep.toy_data.RingData", "fewstep.toy_data.Ring"), ["data", "'Ring'"], id="data"),
]


@pytest.mark.parametrize(("change", "needles"), MISSPELT)
def test_a_misspelt_key_or_class_is_named(refused, cwd, change, needles):
    refused(["fit", "-c", recipe(cwd, change)], *needles)
    assert left(cwd) == ["mine.yaml"]


WRONG = [
    pytest.param(("iterations: 4000", "iterations: many"), ["iterations", "int", "many"], id="method"),
    pytest.param(("iterations: 4000", "iterations: 3.5"), ["iterations", "3.5"], id="fraction"),
    pytest.param(("dim: 2", "dim: two"), ["dim", "int", "two"], id="deep"),
    pytest.param(("steps: 25", "steps: [25]"), ["steps", "25"], id="list"),
    pytest.param(("lr: 2.0e-3", "lr: fast"), ["lr", "fast"], id="optimizer"),
    pytest.param(
        ("val_check_interval: 1000", "val_check_interval: often"), ["val_check_interval", "often"], id="trainer"
    ),
    pytest.param(("mode: min", "mode: smallest"), ["mode", "smallest"], id="choice"),
    pytest.param(("fewstep.solvers.Heun", "fewstep.paths.VP"), ["solver", "fewstep.paths.VP"], id="kind"),
]


@pytest.mark.parametrize(("change", "needles"), WRONG)
def test_a_value_of_the_wrong_type_is_named_with_its_key(refused, cwd, change, needles):
    refused(["fit", "-c", recipe(cwd, change)], *needles)
    assert left(cwd) == ["mine.yaml"]


@pytest.mark.parametrize(
    ("option", "needles"),
    [
        ("--model.init_args.iterations=0", ["iterations", "0"]),
        ("--model.init_args.student.init_args.steps=0", ["step", "0"]),
        ("--data.init_args.batch_size=0", ["batch_size", "0"]),
        ("--modle.init_args.iterations=3", ["modle"]),
        ("--trainer.accelerator=abacus", ["abacus"]),
        ("--trainer.default_root_dir=/proc/nowhere", ["/proc/nowhere"]),
    ],
)
def test_an_impossible_setting_is_named(refused, cwd, option, needles):
    refused(["fit", "-c", RING, *TINY, option], *needles, allow_bar=True)
    assert left(cwd) == []


def test_a_misspelt_monitor_is_named_with_what_there_is(refused, cwd):
    mine = recipe(cwd, ("monitor: val/denoising", "monitor: val/denoisng"))
    refused(["fit", "-c", mine, *TINY], "val/denoisng", "val/denoising", allow_bar=True)
    assert left(cwd / "out") == []


# --- checkpoints and teachers ------------------------------------------------------------------------------------


def test_a_missing_checkpoint(refused, cwd):
    refused(["fit", "-c", RING, *TINY, "--ckpt_path=nosuch.ckpt"], "nosuch.ckpt")
    assert left(cwd) == []


@pytest.mark.parametrize("kind", ["empty", "text", "pickle", "cut", "other"])
def test_a_checkpoint_that_is_none_is_named(refused, cwd, kind):
    whole = cwd / "whole.ckpt"
    torch.save({"state_dict": {"iteration": torch.zeros(())}}, whole)
    content = {
        "empty": b"",
        "text": b"not a checkpoint",
        "pickle": pickle.dumps({"a": cwd}),
        "cut": whole.read_bytes()[:-200],
        "other": whole.read_bytes(),
    }[kind]
    whole.unlink()
    (cwd / "broken.ckpt").write_bytes(content)
    refused(["fit", "-c", RING, *TINY, "--ckpt_path=broken.ckpt"], "broken.ckpt", allow_bar=True)
    assert left(cwd) == ["broken.ckpt"]


@pytest.mark.parametrize("kind", ["missing", "folder", "empty file"])
def test_a_teacher_that_is_no_artifact(refused, cwd, kind):
    source = cwd / "teacher"
    if kind != "missing":
        source.mkdir()
    if kind == "empty file":
        (source / "config.json").write_bytes(b"")
        (source / "model.safetensors").write_bytes(b"")
    before = left(cwd)
    args = [
        "--model.init_args.teacher.init_args.source",
        source,
        "--trainer.default_root_dir=out",
        "--trainer.logger=false",
    ]
    refused(["fit", "-c", RINGSTEP, *args], source)
    assert left(cwd) == before


# --- data and losses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["missing", "empty", "other", "one"])
def test_a_folder_without_enough_pictures(refused, cwd, kind):
    folder = cwd / "pictures"
    if kind != "missing":
        folder.mkdir()
    if kind == "other":
        (folder / "notes.txt").write_text("none here")
    if kind == "one":
        Image.new("RGB", (40, 40)).save(folder / "a.png")
    refused(["fit", "-c", PHOTOS, *TINY_PHOTOS], "pictures", allow_bar=True)
    assert left(cwd / "out") == []


def pixels(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 255, shape).astype(dtype)


BAD_PICTURES = {
    "float": lambda p: tifffile.imwrite(p, pixels(40, 40, 3, dtype=np.float32)),
    "five-channels": lambda p: tifffile.imwrite(p, pixels(40, 40, 5), photometric="minisblack", planarconfig="contig"),
    "two-pages": lambda p: tifffile.imwrite(p, pixels(2, 40, 40), photometric="minisblack"),
    "empty": lambda p: p.write_bytes(b""),
    "text": lambda p: p.write_text("not a picture"),
    "small": lambda p: tifffile.imwrite(p, pixels(9, 9, 3)),
}


def complaints(err):
    """The lines of stderr, the progress bar apart."""
    return [line for line in err.splitlines() if not line.startswith("training ")]


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_a_folder_of_nothing_but_bad_pictures(cwd, capfd, kind):
    (cwd / "pictures").mkdir()
    for name in "ab":
        BAD_PICTURES[kind](cwd / f"pictures/{name}.tif")
    assert run(["fit", "-c", PHOTOS, *TINY_PHOTOS]) == 1
    out, err = capfd.readouterr()
    *skipped, last = complaints(err)
    assert out == ""
    assert last.startswith("fewstep fit: "), err
    assert "pictures" in last
    # Each bad file may have a line of its own, but no more than one.
    assert all("skipped" in line for line in skipped), err
    assert all(sum(name in line for line in skipped) <= 1 for name in ("a.tif", "b.tif")), err
    assert left(cwd / "out") == []


@pytest.mark.parametrize("kind", ["float", "empty", "small"])
def test_one_bad_picture_is_named_in_one_line_and_the_rest_trains(cwd, capfd, kind):
    (cwd / "pictures").mkdir()
    for name in "bcd":
        Image.fromarray(pixels(40, 44, 3)).save(cwd / f"pictures/{name}.png")
    BAD_PICTURES[kind](cwd / "pictures/x.tif")
    assert run(["fit", "-c", PHOTOS, *TINY_PHOTOS]) == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert len(complaints(err)) == 1, err
    assert "x.tif" in complaints(err)[0]
    assert {"best", "last", "last.ckpt"} <= set(os.listdir(cwd / "out"))


def test_a_loss_that_is_not_finite_is_named_with_its_iteration(refused, cwd):
    option = "--model.init_args.optimizer.init_args.lr=1e30"
    line = refused(["fit", "-c", RING, *TINY, option], "denoising", "iteration", allow_bar=True)
    assert "nan" in line or "inf" in line
    assert left(cwd / "out") == []


def test_a_whole_run_says_nothing_but_its_progress(cwd, capfd):
    assert run(["fit", "-c", RING, *TINY]) == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert all(line.startswith("training ") for line in err.splitlines()), err
    assert sorted(os.listdir(cwd / "out")) == ["best", "config.yaml", "last", "last.ckpt"]
    assert not [p for p in cwd.rglob(".*")]
    # Its artifact teaches the student of the next recipe.
    source = "--model.init_args.teacher.init_args.source=out/last"
    assert run(["fit", "-c", RINGSTEP, *TINY[1:], source, "--trainer.default_root_dir=student"]) == 0
    assert sorted(os.listdir(cwd / "student")) == ["best", "config.yaml", "last", "last.ckpt"]


def test_the_interrupt_key_ends_with_one_line(cwd, capfd, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "available", interrupt)
    assert run(["recipes"]) == 130
    assert capfd.readouterr() == ("", "fewstep recipes: interrupted\n")


def test_debugging_shows_the_whole_error(cwd, monkeypatch):
    monkeypatch.setenv("FEWSTEP_DEBUG", "1")
    with pytest.raises(ValueError, match=r"nosuch\.yaml"):
        main(["fit", "-c", "nosuch.yaml"])


def test_the_list_as_json_is_the_list(cwd, capfd):
    assert run(["recipes", "--json"]) == 0
    listed = json.loads(capfd.readouterr().out)
    assert listed == recipes.available()
    assert all(text and "\n" not in text for text in listed.values())
