"""Every recipe of video: its classes load, it takes two steps on small sizes, resumes bit for bit, and leaves a generator of clips."""

import math
import re
import shutil
from pathlib import Path

import lightning as L
import pytest
import torch
from safetensors.torch import save_file
from video_folders import diffusers_folder

from fewstep import recipes
from fewstep.artifacts import load, read_config
from fewstep.train.checkpoints import Checkpoints
from fewstep.train.fit import instantiate
from fewstep_video.files import write_video
from fewstep_video.video_generator import VideoGenerator
from fewstep_video.worlds import MovingShapes

BIG = {"wan_lcm": "wan", "wan_dmd2": "wan", "cogvideox_lcm": "cogvideox", "modelscope_lcm": "modelscope"}
WORLDS, KINDS = ("shapes", "bouncing", "asl"), ("teacher", "lcm", "dmd2", "dmd2_onestep", "tdm")
NAMES = [*(f"{world}_{kind}" for world in WORLDS for kind in KINDS), "shapes_text_teacher", *BIG]
FRAMES = {"wan": 5, "cogvideox": 9, "modelscope": 5}
SIGNS = ("again", "bird", "book", "brother", "eat", "help", "hungry", "learn")
SIGNS += ("milk", "night", "no", "please", "school", "sister", "sorry", "student")


class Copy(L.Callback):
    """Keeps the checkpoint of the first iteration."""

    def on_train_batch_end(self, trainer, module, *args):
        if module.done == 1:
            shutil.copy(Path(trainer.default_root_dir) / "last.ckpt", Path(trainer.default_root_dir) / "first.ckpt")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """name -> (the module of a recipe after two iterations, its state before), after those that it needs."""
    folder, done = tmp_path_factory.mktemp("recipes"), {}
    (folder / "asl").mkdir()
    for i, name in enumerate(SIGNS):
        write_video(folder / "asl" / f"{name}.mkv", MovingShapes(18, 32).balanced(1, i).video[0], 30)
    (folder / "clips").mkdir()
    for i in range(3):
        write_video(folder / "clips" / f"{i}.mp4", MovingShapes(20, 16).balanced(1, i).video[0], 16)
        save_file({"text": torch.randn(2, 12)}, folder / "clips" / f"{i}.safetensors")

    def trained(name):
        if name not in done:
            for needed in set(re.findall(r"source: runs/(\w+)/", recipes.find(f"video/{name}").read_text())):
                trained(needed)
            cli = instantiate(recipes.find(f"video/{name}"), options(name, folder))
            next(c for c in cli.trainer.callbacks if isinstance(c, Checkpoints)).every = 1
            cli.trainer.callbacks.append(Copy())
            before = {k: v.clone() for k, v in cli.model.state_dict().items()}
            cli.trainer.fit(cli.model, datamodule=cli.datamodule)
            done[name] = cli.model, before
        return done[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield trained


def options(name, folder):
    """Two iterations of a recipe on something small."""
    given = ["--model.init_args.iterations=2", "--trainer.val_check_interval=2", "--trainer.accelerator=cpu"]
    given += ["--trainer.logger=false", "--data.init_args.batch_size=2"]
    if name in BIG:
        kind = BIG[name]
        place, frames = folder / kind, FRAMES[kind]
        if not place.is_dir():
            diffusers_folder(place, kind)
        size = {"folder": place, "frames": frames, "height": 16, "width": 16, "text_length": 2, "steps": 1}
        for role in ("teacher", *(["student"] if "lcm" in name else [])):
            given += [f"--model.init_args.{role}.init_args.{k}={v}" for k, v in size.items()]
        given += [f"--data.init_args.window.{k}={v}" for k, v in (("frames", frames), ("height", 16), ("width", 16))]
        return [*given, "--data.init_args.held_out=1", "--data.init_args.validate_on=2", "--data.init_args.workers=0"]
    if name.endswith("_teacher"):
        given += ["--model.init_args.student.init_args.steps=1"]
    return (
        [*given, "--data.init_args.validate_on=4"]
        if name.startswith("asl")
        else [*given, "--data.init_args.held_out=4"]
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_all_its_networks_and_leaves_a_generator(run, name):
    module, before = run(name)
    changed = {k.partition(".")[0] for k, v in module.state_dict().items() if not torch.equal(v, before[k])}
    assert changed >= ({"student", "critics"} if hasattr(module, "critics") else {"student"})
    frozen = [k for k in before if ".codec." in k]
    assert all(torch.equal(module.state_dict()[k], before[k]) for k in frozen) and bool(frozen) == (name in BIG)
    facts = read_config(Path("runs") / name / "last")["provenance"]
    assert facts["iteration"] == 2 and all(math.isfinite(v) for v in facts["scores"].values())
    model = load(f"runs/{name}/last").eval()
    assert isinstance(model, VideoGenerator)
    value = torch.stack([model.draw_conditions(torch.Generator().manual_seed(0))[model.condition.name]])
    with torch.no_grad():
        clip = model(value)
    assert clip.isfinite().all() and clip.shape[1:] == (
        model.shape if model.codec is None else (3, FRAMES[BIG[name]], 16, 16)
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_resumes_bit_for_bit(run, name):
    module, _ = run(name)
    place = Path.cwd()
    again = instantiate(
        recipes.find(f"video/{name}"), [*options(name, place), f"--trainer.default_root_dir={place / 'again' / name}"]
    )
    again.trainer.fit(again.model, datamodule=again.datamodule, ckpt_path=str(place / "runs" / name / "first.ckpt"))
    assert all(torch.equal(v, module.state_dict()[k]) for k, v in again.model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_is(name):
    text = recipes.find(f"video/{name}").read_text()
    first = text.partition("\n")[0]
    assert first.startswith("# ") and ("minutes" in first or "not timed" in first)
    assert text.count(f"runs/{name}\n") == 1 and text.count(f"save_dir: runs/{name}}}") == 2
