"""Recipes of MCM, DCM and streams: classes load, two steps train what is to be trained, and a killed run resumes bit for bit."""

import re
import shutil
from pathlib import Path

import cv2
import lightning as L
import pytest
import torch
from safetensors.torch import save_file
from video_folders import diffusers_folder

from fewstep import recipes
from fewstep.artifacts import load, read_config
from fewstep.train.checkpoints import Checkpoints
from fewstep.train.fit import instantiate
from fewstep_video.causal_video import CausalVideo
from fewstep_video.files import write_video
from fewstep_video.nets.experts import Experts
from fewstep_video.video_generator import VideoGenerator

SMALL = ["shapes_mcm", "bouncing_mcm", "shapes_dcm_semantic", "shapes_dcm", "bouncing_dcm_semantic", "bouncing_dcm"]
SMALL += ["asl_dcm_semantic", "asl_dcm", "bouncing_causal", "bouncing_stream"]
LARGE = ["wan_dcm_semantic", "wan_dcm", "wan_causal", "wan_stream", "modelscope_mcm"]
CAUSAL = {"bouncing_causal", "bouncing_stream", "wan_causal", "wan_stream"}
STEPS = {"bouncing_stream": 4, "shapes_dcm": 4, "bouncing_dcm": 4, "asl_dcm": 4, "wan_dcm": 6, "wan_stream": 4}
STEPS |= {"modelscope_mcm": 4, "shapes_mcm": 1, "bouncing_mcm": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """name -> (module after two iterations, its state before, its last checkpoint after one), after what the recipe needs."""
    folder, done = tmp_path_factory.mktemp("recipes"), {}
    world(folder)

    def trained(name):
        if name not in done:
            text = recipes.find(f"video/{name}").read_text()
            for needed in re.findall(r"source: runs/(\w+)/", text):
                trained(needed)
            done[name] = fit(name)
        return done[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield trained


def world(folder):
    """Clips, pictures and tiny diffusers folders."""
    g = torch.Generator().manual_seed(0)
    for place, frames, side in (("asl", 20, 48), ("videos", 20, 32)):
        (folder / place).mkdir()
        for name in ("again", "bird", "book", "brother", "eat"):
            write_video(folder / place / f"{name}.mp4", torch.rand(3, frames, side, side, generator=g) * 2 - 1, 30)
            if place == "videos":
                save_file({"text": torch.randn(2, 12, generator=g)}, folder / place / f"{name}.safetensors")
    (folder / "pictures").mkdir()
    cv2.imwrite(str(folder / "pictures" / "a.png"), (torch.rand(20, 30, 3, generator=g) * 255).byte().numpy())
    diffusers_folder(folder / "wan", "wan")
    diffusers_folder(folder / "modelscope", "modelscope")


def options(name):
    """Two iterations of a recipe on something small."""
    text = recipes.find(f"video/{name}").read_text()
    given = [
        "model.init_args.iterations=2",
        "trainer.val_check_interval=2",
        "trainer.accelerator=cpu",
        "trainer.logger=false",
    ]
    given += ["data.init_args.batch_size=2"]
    inner = "data.init_args.clips.init_args" if "WithPictures" in text else "data.init_args"
    given += [f"{inner}.held_out=4"] if "Procedural" in text else [f"{inner}.validate_on=3", f"{inner}.held_out=2"]
    if name.endswith("_teacher"):
        given += ["model.init_args.student.init_args.steps=2"]
    if name in LARGE:
        given += [f"{inner}.window.{k}={v}" for k, v in (("frames", 5), ("height", 16), ("width", 16))]
        for place in re.findall(r"^    (teacher|student): \{class_path: fewstep_video.checkpoints", text, re.MULTILINE):
            given += tiny(f"model.init_args.{place}")
    if name == "wan_causal":
        given += tiny("model.init_args.student.init_args.teacher")
        given += [f"model.init_args.student.init_args.{k}" for k in ("size=1", "window=2", "sink=1")]
    if name == "wan_dcm":
        given += [
            "model.init_args.student.init_args.rank=2",
            "model.init_args.adversary.init_args.head.init_args.width=16",
        ]
        given += ["model.init_args.adversary.init_args.layers=[model.blocks.0,model.blocks.1]"]
    if name == "modelscope_mcm":
        given += ["data.init_args.pictures.init_args.size=16", "model.init_args.student.init_args.adapters.rank=2"]
        given += ["model.init_args.motion.init_args.hidden=32", f"{inner}.window.stride=1"]
    return [f"--{v}" for v in given]


def tiny(place):
    return [f"{place}.init_args.{k}" for k in ("frames=5", "height=16", "width=16", "text_length=2", "steps=2")]


class Keep(L.Callback):
    """Copies the checkpoint after one iteration."""

    def __init__(self, to):
        self.to = to

    def on_train_batch_end(self, trainer, pl_module, *args):
        if pl_module.done == 1:
            shutil.copy(Path(trainer.default_root_dir) / "last.ckpt", self.to)


def fit(name, resume=None):
    cli = instantiate(recipes.find(f"video/{name}"), options(name))
    before = {k: v.clone() for k, v in cli.model.state_dict().items()}
    checkpoints = next(c for c in cli.trainer.callbacks if isinstance(c, Checkpoints))
    checkpoints.every = 1
    kept = Path(f"{name}.ckpt").absolute()
    if resume is None:
        cli.trainer.callbacks.append(Keep(kept))
    cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=resume, weights_only=True)
    return cli.model, before, kept


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SMALL + LARGE)
def test_two_steps_and_a_resume_that_is_bit_for_bit(run, name):
    module, before, checkpoint = run(name)
    after = {k: v.clone() for k, v in module.state_dict().items()}
    changed = {k.partition(".")[0] for k, v in after.items() if not torch.equal(v, before[k])}
    wanted = (
        {"student"}
        | ({"critics"} if hasattr(module, "critics") else set())
        | ({"motion"} if name.endswith("_mcm") else set())
    )
    assert changed >= wanted
    model = load(f"runs/{name}/last")
    assert isinstance(model, CausalVideo if name in CAUSAL else VideoGenerator)
    assert isinstance(model.denoiser.net, Experts) == name.endswith("_dcm")
    assert name not in STEPS or model.steps == STEPS[name]
    assert read_config(Path("runs") / name / "last")["provenance"]["iteration"] == 2
    again, _, _ = fit(name, checkpoint)
    assert again.done == 2 and all(torch.equal(v, after[k]) for k, v in again.state_dict().items())


@pytest.mark.parametrize("name", SMALL + LARGE)
def test_a_recipe_says_what_it_is_and_how_long_it_takes(name):
    text = recipes.find(f"video/{name}").read_text()
    first = text.partition("\n")[0]
    assert first.startswith("# ") and ("minutes" in first or "not timed" in first)
    assert text.count(f"runs/{name}\n") == 1 and text.count(f"save_dir: runs/{name}}}") == 2


@pytest.mark.filterwarnings("ignore")
def test_experts_add_at_most_a_quarter_of_the_parameters(run):
    for name in ("shapes_dcm", "bouncing_dcm"):
        model = run(name)[0].student
        own = sum(p.numel() for p in model.denoiser.net.adapter_parameters())
        assert own <= 0.25 * (sum(p.numel() for p in model.parameters()) - own)
