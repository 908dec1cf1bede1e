"""Every recipe of vocoders: its classes load, it takes two steps on small sizes, and what it leaves vocodes."""

import math
from pathlib import Path

import pytest
import torch

from fewstep import recipes
from fewstep.artifacts import load, read_config
from fewstep.train.fit import instantiate
from fewstep_audio.files import Audio, write_audio
from fewstep_audio.vocoder.vocoder import Vocoder

NAMES = [
    n.partition("/")[2] for n in sorted(recipes.available()) if "fewstep_audio.vocoder." in recipes.find(n).read_text()
]
TURBO = {name: name.removesuffix("_turbo") for name in NAMES if name.endswith("_turbo")}
STEPS = {
    "fsdd_specflow_turbo": 2,
    "fsdd_periodwave_tiny_turbo": 2,
    "libritts_periodwave_turbo": 4,
    "fsdd_specflow_gan": 1,
}
NET = "denoiser.init_args.net.init_args"
# Networks of the paper's size made small; the discriminators keep theirs.
SMALL = {
    "libritts_periodwave": [f"{NET}.hidden=16", f"{NET}.blocks=[1,1]"],
    "lj_specflow": [f"{NET}.width=16", f"{NET}.blocks=1"],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """name -> the module of a recipe after two iterations, after those that it needs."""
    folder, done = tmp_path_factory.mktemp("recipes"), {}
    for where, rate, seconds in (("recordings", 8000, 0.4), ("LibriTTS", 24000, 0.4), ("LJSpeech-1.1", 22050, 0.4)):
        (folder / where).mkdir()
        for digit in range(2):
            for take in (0, 5, 6):
                n = round(rate * seconds)
                tone = 0.3 * (2 * torch.pi * (200 + 40 * take) * torch.arange(n) / rate).sin()
                noise = 0.01 * torch.randn(n, generator=torch.Generator().manual_seed(take))
                write_audio(folder / where / f"{digit}_ann_{take}.wav", Audio((tone + noise)[None], rate))

    def trained(name):
        if name not in done:
            if name in TURBO:
                trained(TURBO[name])
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
    given += [f"--data.init_args.{v}" for v in ("batch_size=1", "validate_on=1", "shortest=0.1", "workers=0")]
    given += [f"--data.init_args.{v}" for v in ("samples=2048", "validation_samples=2048")]
    if name not in STEPS:
        given += [f"--model.init_args.student.init_args.{v}" for v in (*SMALL.get(name, []), "steps=1")]
    return given


def test_the_recipes_are_those_of_the_issue():
    small = {
        "fsdd_specflow",
        "fsdd_specflow_turbo",
        "fsdd_specflow_gan",
        "fsdd_periodwave_tiny",
        "fsdd_periodwave_tiny_turbo",
    }
    assert set(NAMES) == small | {"libritts_periodwave", "libritts_periodwave_turbo", "lj_specflow"}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_all_its_networks_and_leaves_a_vocoder(run, name):
    module, before = run(name)
    changed = {k.partition(".")[0] for k, v in module.state_dict().items() if not torch.equal(v, before[k])}
    assert changed >= ({"student", "critics"} if name in STEPS else {"student"})
    facts = read_config(Path("runs") / name / "last")["provenance"]
    assert facts["iteration"] == 2 and math.isfinite(facts["scores"]["val/mel"])
    model = load(f"runs/{name}/last")
    assert isinstance(model, Vocoder) and model.steps == STEPS.get(name, 1)
    wave = model.vocode(model.mel(0.1 * torch.randn(1, 10 * model.mel.hop)))
    assert wave.shape == (1, 10 * model.mel.hop) and wave.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_is_and_how_long_it_takes(name):
    text = recipes.find(f"audio/{name}").read_text()
    assert text.startswith("# ") and "minutes" in text.partition("\n")[0]
    assert text.count(f"runs/{name}\n") == 1 and text.count(f"save_dir: runs/{name}}}") == 2


def test_students_sample_at_their_own_temperature_and_teachers_keep_theirs(run):
    module, _ = run("fsdd_periodwave_tiny_turbo")
    assert (module.student.temperature, module.teacher.temperature) == (1.0, 0.667)
    assert run("fsdd_specflow_gan")[0].student.temperature == 0.0


def test_the_single_pass_network_is_called_once_and_needs_no_noise(run):
    student = run("fsdd_specflow_gan")[0].student.eval()
    mel = student.mel(0.1 * torch.randn(1, 2048))
    calls = []
    hook = student.denoiser.net.last.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(student.vocode(mel, seed=0), student.vocode(mel, seed=1)) and len(calls) == 2
    hook.remove()


def test_adversarial_terms_see_waves_and_reach_every_step(run):
    """The gradient of the student's terms passes both steps: the first step's evaluation has a part in it."""
    module, _ = run("fsdd_specflow_turbo")
    wave = 0.1 * torch.randn(2, 2048, generator=torch.Generator().manual_seed(0))
    drawn = module.drawn({"wave": wave})
    assert torch.allclose(module.seen(drawn.x0, drawn.cond), wave, atol=1e-4)
    outs = []

    def kept(module, given, out):
        out.retain_grad()
        outs.append(out)

    hook = module.student.denoiser.net.last.register_forward_hook(kept)
    sum(module.student_terms(module.reach(drawn, drawn.cond), drawn, {}).values()).backward()
    hook.remove()
    assert len(outs) == 2 and all(out.grad.abs().sum() > 0 for out in outs)
    module.zero_grad()
