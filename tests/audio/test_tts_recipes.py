"""Every recipe of speech synthesis: its classes load, it takes two steps on small sizes, and what it leaves speaks; the bench over them."""

import json
import math
from pathlib import Path

import pytest
import torch

from fewstep import recipes
from fewstep.artifacts import load, read_config
from fewstep.train.fit import instantiate
from fewstep_audio.files import Audio, write_audio
from fewstep_audio.item_noise import item_generator
from fewstep_audio.tts import SpeechJumps, TextToSpeech

TEACHERS = {"fsdd_tts_cd": "fsdd_tts", "fsdd_matcha_mean_flow": "fsdd_matcha", "lj_tts_cd": "lj_tts"}
NAMES = [*TEACHERS.values(), "lj_matcha", *TEACHERS]
ENCODER = [f"encoder.init_args.{v}" for v in ("width=8", "hidden=8", "layers=1", "duration_width=8")]
NET = "denoiser.init_args.net.init_args"
SMALL = {
    "fsdd_tts": [f"{NET}.width=8", f"{NET}.dilations=[1,2]"],
    "fsdd_matcha": [f"{NET}.width=8", f"{NET}.dilations=[1,2]"],
    "lj_tts": [f"{NET}.width=8", "denoiser.init_args.path=fewstep.paths.PriorEDM"],
    "lj_matcha": [f"{NET}.widths=[16,16]"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recordings in the layouts of both data sets: tones that glide, of which texts tell nothing."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "recordings").mkdir()
    (folder / "LJSpeech-1.1" / "wavs").mkdir(parents=True)
    names = [folder / "recordings" / f"{d}_george_{take}.wav" for d in (1, 7) for take in (0, 5, 6)]
    lines = [folder / "LJSpeech-1.1" / "wavs" / f"LJ001-000{n}.wav" for n in range(3)]
    for n, file in enumerate([*names, *lines]):
        rate = 8000 if file in names else 22050
        time = torch.arange(round(0.5 * rate)) / rate
        write_audio(file, Audio((0.3 * torch.sin(2 * torch.pi * (150 + 20 * n + 200 * time) * time))[None], rate))
    metadata = "".join(f"{f.stem}|Go {n}.|Go now.\n" for n, f in enumerate(lines))
    (folder / "LJSpeech-1.1" / "metadata.csv").write_text(metadata)
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """name -> the module of a recipe after two iterations, after those that it needs."""
    done = {}

    def trained(name):
        if name not in done:
            if name in TEACHERS:
                trained(TEACHERS[name])
            cli = instantiate(recipes.find(f"audio/{name}"), options(name))
            before = {k: v.clone() for k, v in cli.model.state_dict().items()}
            cli.trainer.fit(cli.model, datamodule=cli.datamodule)
            done[name] = cli.model, before
        return done[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield trained


def options(name):
    """Two iterations of a recipe on something small."""
    given = ["--model.init_args.iterations=2", "--trainer.val_check_interval=1", "--trainer.accelerator=cpu"]
    given += ["--data.init_args.batch_size=2", "--data.init_args.validate_on=2", "--data.init_args.workers=0"]
    if name in SMALL:
        given += [f"--model.init_args.student.init_args.{v}" for v in (*ENCODER, *SMALL[name], "steps=2")]
    if name.startswith("lj") and name in SMALL:
        given += ["--model.init_args.student.init_args.crop=16"]
    return given


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_and_leaves_a_voice(run, name):
    module, before = run(name)
    changed = {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}
    assert any(k.startswith("student.denoiser.") for k in changed)
    assert any(k.startswith("student.encoder.") for k in changed) == (name not in TEACHERS)
    facts = read_config(Path("runs") / name / "last")["provenance"]
    assert facts["iteration"] == 2
    assert all(math.isfinite(v) for v in facts["scores"].values())
    model = load(f"runs/{name}/last")
    assert isinstance(model, SpeechJumps if name.endswith("mean_flow") else TextToSpeech)
    assert model.steps == (1 if name in TEACHERS else 2)
    text = "seven" if name.startswith("fsdd") else "Go now."
    with torch.no_grad():
        said = model([model.symbols.ids(text)], [item_generator(0, 0)], 0 if model.speakers else None)
    assert said.mel.shape[1:] == (model.mel.bands, int(said.frames[0]))
    assert said.mel.isfinite().all()


def test_recipes_name_themselves():
    for name in NAMES:
        text = recipes.find(f"audio/{name}").read_text()
        assert text.startswith("# ")
        assert text.count(f"runs/{name}\n") == 1
        assert text.count(f"save_dir: runs/{name}}}") == 2


def test_the_bench_fills_its_table(run, folder, monkeypatch, capsys):
    """With trainings that are there: counts of evaluations are exact, a teacher is no distance from itself."""
    from fewstep_audio.bench import tts

    run("fsdd_tts_cd")
    given = ["--recordings", "recordings", "--seeds", "0", "--samples", "60", "--folder", "bench"]
    Path("bench").mkdir()
    Path("bench/0").symlink_to(folder / "runs")
    assert tts.main([*given, "--out", "tts.json"]) == 0
    table = json.loads(Path("tts.json").read_text())
    [seed] = table["seeds"]
    assert [
        seed["rows"][k]["nfe"] for k in ("teacher, 2 steps", "teacher, 1 step", "student, 1 step", "student, 2 steps")
    ] == [2, 1, 1, 2]
    assert seed["rows"]["teacher, 2 steps"]["to_teacher"] == 0
    assert all(0 <= row["accuracy"] <= 1 and row["frechet"] >= 0 for row in seed["rows"].values())
    assert table["medians"] == seed["rows"]
    with pytest.raises(SystemExit):
        tts.main(["--recordings", "recordings", "--samples", "61"])
    assert "multiple of 10 (ten digits, 1 voices)" in capsys.readouterr().err
