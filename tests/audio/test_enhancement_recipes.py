"""Every recipe of enhancement: its classes load, it takes two steps on small sizes, and what it leaves enhances a file."""

from pathlib import Path

import pytest
import torch
import yaml

from fewstep import recipes
from fewstep.artifacts import load, read_config
from fewstep.train.fit import instantiate
from fewstep_audio.commands_enhance import MODES
from fewstep_audio.enhancement.enhancer import Enhancer
from fewstep_audio.files import Audio, write_audio

NAMES = [
    n.partition("/")[2]
    for n in sorted(recipes.available())
    if "fewstep_audio.data.enhancement_" in recipes.find(n).read_text()
]
STUDENTS = {
    "fsdd_sgmse_cd": "fsdd_sgmse",
    "fsdd_sgmse_crp": "fsdd_sgmse",
    "fsdd_sgmse_student": "fsdd_sgmse",
    "vbd_sgmse_crp": "vbd_sgmse",
}
NEEDS = STUDENTS | {"fsdd_storm": "fsdd_predictive"}


def sound(n, rate, seed):
    """Speech-like: a tone that swells, and a little noise."""
    t = torch.arange(n) / rate
    g = torch.Generator().manual_seed(seed)
    tone = (2 * torch.pi * (200 + 50 * seed) * t).sin() * (torch.pi * t * 4).sin() ** 2
    return Audio((0.3 * tone + 0.01 * torch.randn(n, generator=g))[None], rate)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("recipes")
    (where / "recordings").mkdir()
    for digit in range(2):
        for take in (0, 5, 6):
            write_audio(where / f"recordings/{digit}_ann_{take}.wav", sound(3000, 8000, digit + take))
    for part in ("train", "valid"):
        for kind, seed in (("clean", 0), ("noisy", 1)):
            (where / f"voicebank_demand/{part}/{kind}").mkdir(parents=True)
            for i in range(2):
                write_audio(where / f"voicebank_demand/{part}/{kind}/{i}.wav", sound(9000, 16000, seed + 2 * i))
    return where


def options(name):
    """Two iterations of a recipe on something small."""
    given = ["--model.init_args.iterations=2", "--data.init_args.batch_size=2", "--data.init_args.validate_on=2"]
    given += ["--trainer.val_check_interval=1", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    if name.startswith("fsdd"):
        given += ["--data.init_args.samples=960", "--data.init_args.validation_samples=960"]
    else:  # 16 of 256 frames and bins
        given += ["--data.init_args.samples=1920"]
    if name.startswith("vbd") and name not in STUDENTS:
        for net in (
            "denoiser.init_args.net",
            *(["predictor.init_args.denoiser.init_args.net"] if name == "vbd_storm" else []),
        ):
            own = "--model.init_args.student.init_args." + net + ".init_args."
            given += [f"{own}width=8", f"{own}mults=[1,2]", f"{own}blocks=1", f"{own}attention=[1]"]
    if name not in STUDENTS:
        given += ["--model.init_args.student.init_args.steps=2"]
    if name == "fsdd_sgmse_student":
        given += ["--model.init_args.pool.size=4"]
    return given


@pytest.fixture(scope="module")
def run(folder):
    done = {}

    def trained(name):
        if name not in done:
            if name in NEEDS:
                trained(NEEDS[name])
            cli = instantiate(recipes.find(f"audio/{name}"), options(name))
            before = {k: v.clone() for k, v in cli.model.student.state_dict().items()}
            cli.trainer.fit(cli.model, datamodule=cli.datamodule)
            done[name] = (
                cli.model,
                any(not torch.equal(v, before[k]) for k, v in cli.model.student.state_dict().items()),
            )
        return done[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield trained


def test_the_recipes_are_those_of_the_issue_and_of_the_modes():
    assert {"fsdd_sgmse", "fsdd_sb", "fsdd_predictive", "fsdd_storm", "fsdd_sgmse_crp"} == set(MODES.values())
    assert set(MODES.values()) | {"vbd_sgmse", "vbd_sb", "vbd_storm"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_and_leaves_an_enhancer(run, name):
    module, changed = run(name)
    assert changed
    facts = read_config(Path("runs") / name / "last")["provenance"]
    assert facts["iteration"] == 2
    assert facts["scores"].keys() >= {"val/si_sdr", "val/si_sdr_gain"}
    model = load(f"runs/{name}/last")
    assert isinstance(model, Enhancer)
    with torch.no_grad():
        out = model(0.1 * torch.randn(1, 700))
    assert out.shape == (1, 700)
    assert out.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_is_and_keeps_the_scale_of_complex_noise(name):
    text = recipes.find(f"audio/{name}").read_text()
    assert f"default_root_dir: runs/{name}\n" in text
    for path in paths(yaml.safe_load(text)):
        args = path.get("init_args", {})
        if path["class_path"].endswith("OUVE"):
            assert 2 * args["sigma_min"] ** 2 == pytest.approx(0.05**2, rel=1e-5)
            assert 2 * args["sigma_max"] ** 2 == pytest.approx(0.5**2, rel=1e-5)
        elif args:
            assert (args["k"], 2 * args["c"]) == (2.6, 0.4)


def paths(tree):
    """Every path that a recipe names with arguments or without."""
    if isinstance(tree, dict):
        if "class_path" in tree and tree["class_path"].startswith("fewstep.paths."):
            yield tree
        for v in tree.values():
            yield from paths(v)
    elif isinstance(tree, list):
        for v in tree:
            yield from paths(v)


def test_the_published_sizes(run):
    """Whole networks, on no memory."""
    sizes = {}
    for name in ("vbd_sgmse", "vbd_storm"):
        with torch.device("meta"):
            cli = instantiate(recipes.find(f"audio/{name}"), ["--trainer.logger=false"])
        net = cli.model.student.denoiser.net
        sizes[name] = sum(v.numel() for v in net.state_dict().values())
    assert sizes["vbd_sgmse"] == 65_590_822
    assert sizes["vbd_storm"] / 1e6 == pytest.approx(27.8, abs=0.05)
