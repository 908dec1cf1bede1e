import inspect
import json
import shutil
import sys

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from worlds import PATHS, PREDICTIONS, SOLVERS, normal

from fewstep.artifacts import CONFIG, WEIGHTS, ArtifactError, build, describe, load, load_as, read_config, save
from fewstep.denoiser import Denoiser
from fewstep.generator import Generator, pretrained
from fewstep.grids import Explicit, Grid, Karras, LogSNR, Power, Shifted, Spaced, Uniform
from fewstep.nets import MLP
from fewstep.paths import DDPM, VP, Path, RectifiedFlow, ResidualShift
from fewstep.precondition import EDMPrecondition
from fewstep.prediction import Prediction, U
from fewstep.solvers import DDIM, Ancestral, DPMpp2M, Solver


def generator(seed=0):
    torch.manual_seed(seed)
    return Generator(Denoiser(MLP(2, 16, 2), RectifiedFlow(), U()), DPMpp2M(), Uniform(), steps=4)


@pytest.fixture
def folder(tmp_path):
    return save(generator(), tmp_path / "artifact", {"seed": 0})


def edit(folder, change):
    """Rewrite the configuration by change(config)."""
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))


def edit_tensors(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def refused(source, *needles, **kw):
    """load() fails with one line that contains every needle."""
    with pytest.raises(ArtifactError) as error:
        load(source, **kw)
    message = str(error.value)
    assert "\n" not in message
    for needle in needles:
        assert str(needle) in message, f"{needle!r} is not in: {message}"


def test_one_kind_of_model_is_asked_for(folder, tmp_path):
    assert isinstance(load_as(folder, Generator), Generator)
    with pytest.raises(ArtifactError, match="^[^\n]*holds a Generator; needed: MLP$"):
        load_as(folder, MLP)
    with pytest.raises(ArtifactError, match="^no model: [^\n]*; `make` makes one$"):
        load_as(tmp_path / "nowhere", Generator, "; `make` makes one")


# --- descriptions ----------------------------------------------------------------------------------------------


def concrete(base):
    """Every concrete class of fewstep below base."""
    found = [base] + [c for sub in base.__subclasses__() for c in concrete(sub)]
    return list(dict.fromkeys(c for c in found if not inspect.isabstract(c) and c.__module__.startswith("fewstep.")))


CONFIGURED = [
    *PATHS.values(),
    *PREDICTIONS.values(),
    *SOLVERS,
    DDPM(steps=10, scaled=True),
    ResidualShift(steps=4, kappa=1.5, power=0.5, end=0.9, min_noise=0.1, q0_cap=0.03),
    Ancestral(eta=0.3),
    Uniform(end=0.01),
    Power(3.0, end=0.01),
    LogSNR(start=0.9, end=0.1),
    Karras(5.0, 0.01, 40.0),
    Shifted(2.0),
    Spaced("leading", offset=1),
    Explicit((1.0, 0.5, 0.0)),
]


@pytest.mark.parametrize("obj", CONFIGURED, ids=repr)
def test_descriptions_rebuild_an_equal_object(obj):
    description = json.loads(json.dumps(describe(obj)))
    rebuilt = build(description)
    assert rebuilt == obj
    assert type(rebuilt) is type(obj)
    assert describe(rebuilt) == description


@pytest.mark.parametrize("base", [Path, Prediction, Solver, Grid])
def test_every_class_with_defaults_describes_itself(base):
    classes = [c for c in concrete(base) if c is not base]
    assert len(classes) >= 5
    required = [c for c in classes if _required(c)]
    assert len(required) < len(classes) / 4
    for cls in classes:
        if cls not in required:
            assert build(json.loads(json.dumps(describe(cls())))) == cls()


def _required(cls):
    """Arguments without a default."""
    arguments = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return [a for a in arguments if a.default is inspect.Parameter.empty and a.kind is a.POSITIONAL_OR_KEYWORD]


def test_arguments_that_differ_from_their_defaults_are_kept():
    assert build(describe(Explicit((1.0, 0.25)))).times == (1.0, 0.25)
    assert build(describe(EDMPrecondition(0.25))).sigma_data == 0.25


def test_used_paths_describe_themselves_like_fresh_ones():
    path = DDPM(steps=20)
    path.log_snr(torch.tensor([3.0]))  # fills a cache
    assert describe(path) == describe(DDPM(steps=20))
    assert build(describe(path)) == path


# --- round trip ------------------------------------------------------------------------------------------------


def test_saved_generators_come_back_bit_for_bit(tmp_path):
    model = generator()
    loaded = load(save(model, tmp_path / "a", {"seed": 3}))
    assert isinstance(loaded, Generator)
    assert not loaded.training
    own, other = model.state_dict(), loaded.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(own[k], other[k]) and own[k].dtype == other[k].dtype for k in own)
    assert describe(loaded) == describe(model)
    noise = normal(5, 2).float()
    assert torch.equal(loaded.generate(noise), model.eval().generate(noise))
    assert read_config(tmp_path / "a")["provenance"] == {"seed": 3}
    assert isinstance(pretrained(str(tmp_path / "a")), Generator)


def test_saving_what_was_loaded_writes_the_same_bytes(tmp_path, folder):
    again = save(load(folder), tmp_path / "again", {"seed": 0})
    for file in (CONFIG, WEIGHTS):
        assert (again / file).read_bytes() == (folder / file).read_bytes()


def test_an_artifact_is_its_two_files(folder):
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG, WEIGHTS]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_precision_of_weights_is_kept_or_refused_but_never_changed_silently(tmp_path, dtype):
    model = generator().to(dtype)
    folder = save(model, tmp_path / "a")
    try:
        loaded = load(folder)
    except ArtifactError:
        return
    own, other = model.state_dict(), loaded.state_dict()
    assert all(own[k].dtype == other[k].dtype and torch.equal(own[k], other[k]) for k in own)


def test_files_may_be_less_precise_than_the_model(tmp_path):
    model = generator()
    folder, whole_folder = save(model, tmp_path / "half", stored=torch.float16), save(model, tmp_path / "whole")
    loaded, own = load(folder).state_dict(), model.state_dict()
    for name, v in own.items():
        assert loaded[name].dtype == v.dtype
        assert torch.equal(loaded[name], v.half().to(v.dtype) if v.is_floating_point() else v)
    sizes = [sum(v.numel() for v in own.values()) * n for n in (2, 4)]
    assert (folder / WEIGHTS).stat().st_size - sizes[0] == pytest.approx(
        (whole_folder / WEIGHTS).stat().st_size - sizes[1], abs=64
    )


def test_saving_over_an_artifact_replaces_it(tmp_path, folder):
    (folder / "stale.txt").write_text("left from before")
    other = generator(seed=1)
    assert save(other, folder) == folder
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG, WEIGHTS]
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in load(folder).state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


def test_folders_above_are_made(tmp_path):
    assert isinstance(load(save(generator(), tmp_path / "runs" / "1" / "best")), Generator)


# --- saving fails whole ----------------------------------------------------------------------------------------


class Forgetful(nn.Module):
    """Does not keep its argument."""

    def __init__(self, width=3):
        super().__init__()
        self.layer = nn.Linear(width, width)


class Holder(nn.Module):
    def __init__(self, thing=None):
        super().__init__()
        self.thing = thing
        self.layer = nn.Linear(2, 2)


class Tied(nn.Module):
    """Two names for one tensor, which safetensors refuses."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(2, 2)
        self.two = self.one


class Overflowing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def state_dict(self, *args, **kwargs):
        raise RuntimeError("no space left")


@pytest.mark.parametrize(
    "model",
    [Forgetful(), Holder({1, 2}), Holder(torch.ones(2)), Holder(lambda: 0)],
    ids=["forgotten", "set", "tensor", "function"],
)
def test_what_cannot_be_described_is_refused_in_one_line_and_leaves_nothing(tmp_path, model):
    with pytest.raises(ArtifactError) as error:
        save(model, tmp_path / "a")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "provenance"),
    [(Tied(), None), (Overflowing(), None), (generator(), {"when": object()})],
    ids=["tied", "memory", "provenance"],
)
def test_failed_saves_leave_neither_folder_nor_temporary_files(tmp_path, model, provenance):
    with pytest.raises(Exception):  # noqa: B017 - whatever it is
        save(model, tmp_path / "a", provenance)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "provenance"), [(Tied(), None), (generator(), {"when": object()})], ids=["tied", "provenance"]
)
def test_failed_saves_say_why_in_one_line(tmp_path, model, provenance):
    with pytest.raises(ArtifactError) as error:
        save(model, tmp_path / "a", provenance)
    assert "\n" not in str(error.value)


def test_failed_saves_keep_the_artifact_that_was_there(tmp_path, folder):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    for model, provenance in ((Forgetful(), None), (Tied(), None), (generator(1), {"when": object()})):
        with pytest.raises(Exception):  # noqa: B017
            save(model, folder, provenance)
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


def test_what_a_killed_save_left_behind_does_not_block_the_next(tmp_path, monkeypatch, folder):
    """Process numbers repeat (in containers soon): a half-written folder of another process may have any name of ours."""

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("fewstep.artifacts.save_file", killed)
        patch.setattr("shutil.rmtree", lambda *a, **k: None)  # killed before tidying up
        save(generator(1), folder)
    assert isinstance(load(save(generator(2), folder)), Generator)


def test_a_file_is_not_overwritten_by_a_folder(tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(ArtifactError, match="is a file"):
        save(generator(), tmp_path / "a")
    assert (tmp_path / "a").read_text() == "mine"


# --- refusals: where it is -------------------------------------------------------------------------------------


def test_missing_folders_are_refused(tmp_path):
    refused(tmp_path / "nowhere", tmp_path / "nowhere")
    refused("./nowhere", "nowhere")


def test_files_are_refused(folder):
    refused(folder / WEIGHTS, folder / WEIGHTS)


def test_hub_ids_that_cannot_be_had_are_refused(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("401 Client Error: Repository Not Found\n\nPlease make sure you specified the correct `repo_id`.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    refused("someone/nothing", "someone/nothing", "Repository Not Found")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: (_ for _ in ()).throw(RuntimeError()))
    refused("someone/nothing", "someone/nothing", "RuntimeError")


def test_hub_ids_download_two_files_and_load(monkeypatch, folder):
    asked = []

    def download(repo_id, **kwargs):
        asked.append((repo_id, kwargs))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = load("someone/model", revision="v2")
    ((repo_id, kwargs),) = asked
    assert repo_id == "someone/model"
    assert kwargs["revision"] == "v2"
    assert sorted(kwargs["allow_patterns"]) == [CONFIG, WEIGHTS]
    assert all(torch.equal(v, generator().state_dict()[k]) for k, v in loaded.state_dict().items())


def test_local_folders_win_over_hub_ids(monkeypatch, folder):
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the hub for a local folder")
    )
    monkeypatch.chdir(folder.parent.parent)
    assert isinstance(load(f"{folder.parent.name}/{folder.name}"), Generator)


# --- refusals: what is in it -----------------------------------------------------------------------------------


def test_pickles_are_never_read(tmp_path):
    torch.save(generator().state_dict(), tmp_path / "pytorch_model.bin")
    refused(tmp_path, tmp_path, "pytorch_model.bin", "pickle")


def test_pickled_weights_beside_a_configuration_are_never_read(folder):
    (folder / WEIGHTS).unlink()
    torch.save(generator().state_dict(), folder / "model.ckpt")
    refused(folder, folder, WEIGHTS)


@pytest.mark.parametrize(
    "size", [0, 4, 8, 100, -1], ids=["empty", "half a header", "header length", "header", "one byte short"]
)
def test_truncated_weights_are_refused(folder, size):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:size])
    refused(folder, folder / WEIGHTS)


def test_pickles_named_safetensors_are_refused(folder):
    torch.save(generator().state_dict(), folder / WEIGHTS)
    refused(folder, folder / WEIGHTS)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"format": 1}', "\xff\x00"],
    ids=["empty", "cut", "list", "null", "no model", "bytes"],
)
def test_broken_configurations_are_refused(folder, text):
    (folder / CONFIG).write_bytes(text.encode("latin1"))
    refused(folder, folder / CONFIG)


@pytest.mark.parametrize(
    "model", [None, 3, [], "text", {}, {"class_path": "fewstep.paths.vp.VP", "init_args": {}}], ids=repr
)
def test_configurations_of_something_else_are_refused(folder, model):
    edit(folder, lambda c: c.update(model=model))
    refused(folder, folder / CONFIG)


@pytest.mark.parametrize("arguments", [None, [], 3, "text"], ids=repr)
def test_arguments_that_are_no_table_are_refused(folder, arguments):
    edit(folder, lambda c: c["model"].update(init_args=arguments))
    refused(folder, folder / CONFIG)


@pytest.mark.parametrize("value", [0, 2, None, "1"], ids=repr)
def test_other_formats_are_refused(folder, value):
    edit(folder, lambda c: c.update(format=value))
    refused(folder, folder / CONFIG, "format")


def test_missing_extra_and_misshapen_tensors_are_refused_by_name(folder):
    whole = (folder / WEIGHTS).read_bytes()
    key = "denoiser.net.last.weight"
    for change, needles in (
        (lambda t: t.pop(key), [key]),
        (lambda t: t.update(stranger=torch.ones(2)), ["stranger"]),
        (lambda t: t.update({key: torch.ones(3, 16)}), [key, "(3, 16)", "(2, 16)"]),
        (lambda t: t.update({key: torch.ones(())}), [key]),
    ):
        (folder / WEIGHTS).write_bytes(whole)
        edit_tensors(folder, change)
        refused(folder, folder / WEIGHTS, *needles)


def test_many_missing_tensors_are_still_one_short_line(folder):
    edit_tensors(folder, lambda t: t.clear())
    with pytest.raises(ArtifactError) as error:
        load(folder)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400 + len(str(folder))


@pytest.mark.parametrize(
    "class_path",
    [
        "fewstep.nets.mlp.Nope",
        "fewstep.nowhere.MLP",
        "fewstep.nets.",
        "fewstep.artifacts.load",  # not a class
        "fewstep",
        "",
        None,
        7,
    ],
)
def test_unknown_classes_are_refused(folder, class_path):
    edit(folder, lambda c: c["model"].update(class_path=class_path))
    refused(folder, folder / CONFIG)


@pytest.mark.parametrize(
    "class_path",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "torch.nn.Linear",
        "fewstepper.Evil",
        "fewstep_evil.Net",
        # Reached through a module of fewstep that imports it, but not fewstep's own.
        "fewstep.artifacts.FilePath",
        "fewstep.train.loader.DataLoader",
    ],
)
def test_untrusted_classes_are_refused_and_not_run(folder, class_path, monkeypatch):
    monkeypatch.setattr("os.system", lambda *a: pytest.fail("ran a command of the configuration"))
    edit(folder, lambda c: c["model"]["init_args"]["grid"].update(class_path=class_path, init_args={}))
    refused(folder, folder / CONFIG, class_path, "trust")
    edit(folder, lambda c: c["model"].update(class_path=class_path, init_args={}))
    refused(folder, folder / CONFIG, class_path, "trust")


def test_untrusted_modules_are_not_even_imported(folder, tmp_path, monkeypatch):
    (tmp_path / "trap_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    edit(folder, lambda c: c["model"].update(class_path="trap_module.Net"))
    refused(folder, folder / CONFIG, "trap_module")
    assert "trap_module" not in sys.modules


def test_trust_is_given_by_package(tmp_path):
    model = Holder("text")
    folder = save(model, tmp_path / "a")
    refused(folder, folder / CONFIG, "trust")
    loaded = load(folder, trust=(__name__.split(".")[0],))
    assert isinstance(loaded, Holder)
    assert loaded.thing == "text"
    assert torch.equal(loaded.layer.weight, model.layer.weight)


def test_unknown_and_missing_arguments_are_refused_by_name(folder):
    whole = (folder / CONFIG).read_text()
    edit(folder, lambda c: c["model"]["init_args"].update(colour="red"))
    refused(folder, folder / CONFIG, "colour", "Generator", "steps")
    (folder / CONFIG).write_text(whole)
    edit(folder, lambda c: c["model"]["init_args"].pop("denoiser"))
    refused(folder, folder / CONFIG, "denoiser")


@pytest.mark.parametrize(("key", "value"), [("steps", 0), ("steps", "four")])
def test_impossible_arguments_are_refused(folder, key, value):
    edit(folder, lambda c: c["model"]["init_args"].update({key: value}))
    refused(folder, folder / CONFIG)


def test_impossible_arguments_inside_are_refused(folder):
    edit(folder, lambda c: c["model"]["init_args"]["denoiser"]["init_args"]["net"]["init_args"].update(hidden=-1))
    refused(folder, folder / CONFIG)


def test_abstract_classes_are_refused(folder):
    edit(folder, lambda c: c["model"]["init_args"]["solver"].update(class_path="fewstep.solvers.base.Solver"))
    refused(folder, folder / CONFIG, "Solver")


def test_teachers_must_be_generators(tmp_path):
    folder = save(MLP(2, 8, 2), tmp_path / "net")
    with pytest.raises(ArtifactError, match="MLP") as error:
        pretrained(str(folder))
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_moved_artifacts_load_anywhere(folder, tmp_path):
    shutil.move(folder, tmp_path / "elsewhere")
    assert isinstance(load(tmp_path / "elsewhere"), Generator)


def test_round_trip_of_every_solver_and_grid_inside_a_generator(tmp_path):
    for i, (solver, grid) in enumerate(((DDIM(), LogSNR(end=1e-3)), (Ancestral(0.5), Explicit((1.0, 0.5, 0.0))))):
        model = Generator(Denoiser(MLP(2, 8, 1), VP(), EDMPrecondition(0.4)), solver, grid, steps=2)
        loaded = load(save(model, tmp_path / str(i)))
        assert (loaded.solver, loaded.grid, loaded.steps) == (solver, grid, 2)
        assert loaded.denoiser.path == VP()
        assert loaded.denoiser.prediction == EDMPrecondition(0.4)
