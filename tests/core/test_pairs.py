"""Teacher pairs on disk: what they hold, that processes and kills change nothing, and that damage is told in one line."""

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load as from_bytes
from safetensors.torch import save_file
from torch import nn

from fewstep.artifacts import save
from fewstep.cli import main
from fewstep.denoiser import Denoiser
from fewstep.distill.trajectory import TrajectoryRegression
from fewstep.generator import Generator, Prepared
from fewstep.grids import Uniform
from fewstep.nets import MLP
from fewstep.pairs import Job, PairsError, StoredPairs, make_pairs
from fewstep.pairs import make as making
from fewstep.pairs.folder import columns
from fewstep.pairs.job import Teacher
from fewstep.paths import VE, RectifiedFlow
from fewstep.paths.anchored_flow import AnchoredFlow
from fewstep.prediction import X0, U
from fewstep.solvers import DDIM, GammaSampling, Heun
from fewstep.toy import gaussian

FLOW = RectifiedFlow()


class Exact(nn.Module):
    """The exact x0 of one Gaussian per label, N(label, 0.5^2) in the plane."""

    def __init__(self, classes: int = 3):
        super().__init__()
        self.classes = classes
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x, t, label):
        a, s = 1 - t[:, None], t[:, None]
        mean = label.double()[:, None]
        return self.scale * (mean + a * 0.25 / (a**2 * 0.25 + s**2) * (x - a * mean))


class Labelled(Generator):
    """Draws labels; knows its shape."""

    shape = (2,)

    def prepare(self, batch):
        return Prepared(batch["x0"], {"label": batch["label"]}, None)

    def unconditional(self, cond):
        return {"label": torch.zeros_like(cond["label"])}

    def draw_conditions(self, generator):
        return {"label": torch.randint(3, (), generator=generator)}


class Anchor(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.4))

    def forward(self, x, t, c):
        return self.weight * torch.tanh(x + c)


class Anchored(Generator):
    """Batches {"clean", "rough"}: the anchor is the rough one, the condition its square."""

    def prepare(self, batch):
        return Prepared(batch["clean"], {"c": batch["rough"] ** 2}, batch["rough"])


def exact(steps=64, solver=None):
    return Labelled(Denoiser(Exact(), FLOW, X0()), solver or Heun(), Uniform(), steps)


def plain(steps=4, solver=None, path=FLOW):
    torch.manual_seed(0)
    return Generator(Denoiser(MLP(2, 8, 2), path, U()), solver or Heun(), Uniform(), steps)


def stored(folder):
    """All rows of a folder, in order."""
    manifest = json.loads((folder / "manifest.json").read_text())
    parts = [columns(folder / e["file"], e["samples"]) for e in manifest["shards"]]
    return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}, manifest


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


JOB = Job(50, shape=(2,), states=(0, 2, 4), shard_size=8, batch_size=3, seed=7)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed folder of JOB."""
    folder = tmp_path_factory.mktemp("pairs") / "whole"
    make_pairs(plain(), folder, JOB, source="teacher")
    return folder


# --- what is stored ----------------------------------------------------------------------------------------------


def test_pairs_lie_on_the_exact_flow(tmp_path):
    make_pairs(exact(128), tmp_path / "p", Job(40, states=(32, 64), shard_size=16, batch_size=16))
    rows, manifest = stored(tmp_path / "p")
    assert manifest["job"]["times"] == [0.75, 0.5]
    assert rows["label"].bincount().min() > 5
    for label in range(3):
        world, of = gaussian(FLOW, float(label), 0.5, dim=2), rows["label"] == label
        noise = rows["noise"][of]
        for k, t in enumerate(manifest["job"]["times"]):
            torch.testing.assert_close(rows["states"][of][:, k], world.flow_map(noise, 1.0, t), rtol=0, atol=3e-4)
        torch.testing.assert_close(rows["target"][of], world.flow_map(noise, 1.0, 0.0), rtol=0, atol=2e-3)


def test_noise_and_conditions_are_a_pure_function_of_seed_and_index():
    model = exact(2)
    one, other = (Teacher(model, Job(50, seed=3, shard_size=a, batch_size=b)) for a, b in ((7, 2), (50, 50)))
    first, second = one.columns(range(5, 12)), other.columns(range(50))
    assert all(torch.equal(first[k], second[k][5:12]) for k in ("noise", "label"))
    torch.testing.assert_close(first["target"], second["target"][5:12])
    noise = second["noise"]
    assert len({tuple(r) for r in noise.tolist()}) == 50
    assert not torch.equal(Teacher(model, Job(50, seed=4)).columns(range(50))["noise"], noise)
    many = Teacher(model, Job(2000)).columns(range(2000))["noise"]
    assert many.mean().abs() < 0.05
    assert many.std().item() == pytest.approx(1, abs=0.05)


def test_guidance_is_that_of_the_formula(tmp_path):
    """One step from t = 1, where x0 is the mean of the label: u + w (c - u) with u = 0."""
    rows = Teacher(exact(1, DDIM()), Job(20, cfg=2.5)).columns(range(20))
    torch.testing.assert_close(rows["target"], 2.5 * rows["label"].double()[:, None].expand(20, 2))


@pytest.mark.parametrize("path", [FLOW, VE(sigma_max=5.0)], ids=["rf", "ve"])
def test_all_states_are_the_whole_trajectory(path):
    model = plain(5, DDIM(), path)
    teacher = Teacher(model, Job(6, states="all", shape=(2,)))
    rows = teacher.columns(range(6))
    assert rows["states"].shape == (6, 6, 2)
    assert "target" not in rows  # it is the last state
    torch.testing.assert_close(rows["states"][:, 0], path.start(rows["noise"]))
    torch.testing.assert_close(rows["states"][:, -1], model.generate(rows["noise"]))
    torch.testing.assert_close(torch.tensor(teacher.times), model.grid(path, 5).float())
    chosen = Teacher(model, Job(6, states=(1, 3), shape=(2,))).columns(range(6))
    assert torch.equal(chosen["states"], rows["states"][:, [1, 3]])
    torch.testing.assert_close(chosen["target"], rows["states"][:, -1])


def test_other_steps_and_solvers():
    model = plain(4)
    rows = Teacher(model, Job(5, steps=9, solver=DDIM(), shape=(2,))).columns(range(5))
    torch.testing.assert_close(rows["target"], model.generate(rows["noise"], steps=9, solver=DDIM()))
    noisy = Job(6, solver=GammaSampling(1.0), shape=(2,), batch_size=3)
    one, two = (Teacher(model, noisy).columns(range(3, 6)) for _ in range(2))
    assert torch.equal(one["target"], two["target"])


def test_conditions_anchor_and_data_come_from_a_batch_in_turn(tmp_path):
    g = torch.Generator().manual_seed(0)
    batch = {k: torch.randn(4, 3, generator=g) for k in ("clean", "rough")}
    model = Anchored(Denoiser(Anchor(), AnchoredFlow(), X0()), DDIM(), Uniform(), 3)
    make_pairs(model, tmp_path / "p", Job(10, shard_size=4, batch_size=4), batch)
    rows, _ = stored(tmp_path / "p")
    turn = torch.arange(10) % 4
    assert torch.equal(rows["x0"], batch["clean"][turn])
    assert torch.equal(rows["y"], batch["rough"][turn])
    assert torch.equal(rows["c"], batch["rough"][turn] ** 2)
    torch.testing.assert_close(rows["target"], model.generate(rows["noise"], {"c": rows["c"]}, rows["y"]))


def test_shards_are_webdataset_shards_of_safetensors(whole):
    rows, manifest = stored(whole)
    assert [e["samples"] for e in manifest["shards"]] == [8] * 6 + [2]
    with tarfile.open(whole / "pairs-000001.tar") as tar:
        names = tar.getnames()
        file = tar.extractfile(names[3])
        assert file is not None
        member = from_bytes(file.read())
    assert names == [f"{i:09d}.safetensors" for i in range(8, 16)]
    assert all(torch.equal(member[k], rows[k][11]) for k in rows)
    webdataset = pytest.importorskip("webdataset")
    samples = list(webdataset.WebDataset(str(whole / "pairs-000006.tar"), shardshuffle=False, empty_check=False))
    assert [s["__key__"] for s in samples] == ["000000048", "000000049"]
    assert torch.equal(from_bytes(samples[1]["safetensors"])["noise"], rows["noise"][49])


# --- processes and kills -----------------------------------------------------------------------------------------

FORK = multiprocessing.get_context("fork")


def _rank(rank, ranks, meeting, folder):
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    make_pairs(plain(), folder, JOB, source="teacher")
    dist.destroy_process_group()


def test_two_processes_make_the_folder_of_one(tmp_path, whole):
    ranks = [FORK.Process(target=_rank, args=(r, 2, tmp_path / "meeting", tmp_path / "two")) for r in range(2)]
    for p in ranks:
        p.start()
    for p in ranks:
        p.join(60)
    assert [p.exitcode for p in ranks] == [0, 0]
    assert content(tmp_path / "two") == content(whole)


def _die(folder, calls, where):
    """Kill this process, as nothing can prevent, at the given call of a function of the writer."""
    owner, name = where
    function, left = getattr(owner, name), [calls]

    def counted(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, name, counted)
    make_pairs(plain(), folder, JOB, source="teacher")


@pytest.mark.parametrize(
    ("calls", "where"),
    [
        (1, (os, "fsync")),  # the job
        (14, (tarfile.TarFile, "addfile")),  # inside a shard
        (4, (os, "fsync")),  # a shard that is whole but has no name
        (5, (making, "_write_shard")),  # between shards
        (9, (os, "fsync")),  # the manifest
    ],
    ids=["job", "in a shard", "before its name", "between shards", "manifest"],
)
def test_a_killed_run_goes_on_to_the_same_folder(tmp_path, whole, calls, where):
    folder = tmp_path / "killed"
    process = FORK.Process(target=_die, args=(folder, calls, where))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not (folder / "manifest.json").exists()
    done = {p.name: p.stat().st_mtime_ns for p in folder.glob("pairs-*.tar")}
    make_pairs(plain(), folder, JOB, source="elsewhere" if (folder / "job.json").exists() else "teacher")
    assert content(folder) == content(whole)
    assert all((folder / name).stat().st_mtime_ns == at for name, at in done.items())  # nothing is made twice


def test_a_shard_that_was_deleted_is_made_anew(tmp_path, whole):
    folder = tmp_path / "again"
    make_pairs(plain(), folder, JOB, source="teacher")
    (folder / "pairs-000002.tar").unlink()
    with pytest.raises(PairsError, match=r"pairs-000002.tar is missing"):
        StoredPairs(str(folder), held_out=4).prepare_data()
    make_pairs(plain(), folder, JOB, source="teacher")
    assert content(folder) == content(whole)


# --- refusals ----------------------------------------------------------------------------------------------------


def test_a_folder_of_another_job_is_left_alone(tmp_path, whole):
    before = content(whole)
    for model, job, needle in (
        (plain(), Job(51, shape=(2,), states=(0, 2, 4), shard_size=8, batch_size=3, seed=7), "n is 50, not 51"),
        (plain(), Job(50, shape=(2,), states=(0, 2, 4), shard_size=8, batch_size=3), "seed is 7, not 0"),
        (plain(solver=DDIM()), JOB, "ddim.DDIM"),
    ):
        with pytest.raises(PairsError, match="belongs to another job") as error:
            make_pairs(model, whole, job)
        assert needle in str(error.value)
    retrained = plain()
    next(retrained.parameters()).data.zero_()
    with pytest.raises(PairsError, match="weights is"):
        make_pairs(retrained, whole, JOB)
    assert content(whole) == before
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(PairsError, match="not a folder of teacher pairs"):
        make_pairs(plain(), tmp_path, JOB)


def test_two_runs_cannot_write_one_folder(tmp_path):
    def second(done, total):
        with pytest.raises(PairsError, match="being written by another process"):
            make_pairs(plain(), tmp_path / "p", JOB)
        seen.append(done)

    seen = []
    make_pairs(plain(), tmp_path / "p", JOB, progress=second)
    assert seen[-1] == 50


@pytest.mark.parametrize(
    ("call", "needle"),
    [
        (lambda: Job(0), "at least 1"),
        (lambda: Job(5, steps=0), "at least 1"),
        (lambda: Job(5, states=(3, 1)), "rising"),
        (lambda: Teacher(plain(), Job(5)), "shape"),
        (lambda: Teacher(plain(), Job(5, shape=(2,), states=(1, 5))), "0 to 4"),
        (lambda: Teacher(plain(), Job(5), {"y": torch.zeros(3, 2)}), "no tensor 'x0'; it has y"),
        (lambda: Teacher(plain(), Job(5), {"x0": torch.zeros(0, 2)}), "empty"),
        (lambda: StoredPairs("/nonexistent").setup(), "holds no teacher pairs"),
    ],
)
def test_what_does_not_fit_is_refused(call, needle):
    with pytest.raises(ValueError, match=needle):
        call()


def flip(file):
    content = bytearray(file.read_bytes())
    content[1500] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [flip, lambda f: f.write_bytes(f.read_bytes()[:5000]), lambda f: f.write_bytes(b"")],
    ids=["bit", "cut", "empty"],
)
def test_a_damaged_shard_is_named_in_one_line(tmp_path, capsys, damage):
    save(plain(), tmp_path / "model")
    argv = ["pairs", str(tmp_path / "model"), "--out", str(tmp_path / "p"), "-n", "20", "--shape", "2"]
    argv += ["--shard-size", "8", "--batch-size", "8", "--json"]
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert not end.value.code
    made = json.loads(capsys.readouterr().out)
    assert (made["samples"], made["shards"], made["times"]) == (20, 3, [])
    damage(tmp_path / "p" / "pairs-000001.tar")
    with pytest.raises(PairsError, match=r"pairs-000001.tar is damaged.* delete it"):
        StoredPairs(str(tmp_path / "p"), held_out=0).prepare_data()
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fewstep")]
    assert len(lines) == 1
    assert "pairs-000001.tar is damaged" in lines[0]


@pytest.mark.parametrize(
    ("more", "needle"),
    [
        (["--solver", "Huen"], "Huen"),
        (["--solver", '{"class_path": "fewstep.paths.VP"}'], "is no solver"),
        (["--states", "one"], "one"),
        (["--batch", "nosuch.safetensors"], "nosuch.safetensors"),
        (["--steps", "0"], "at least 1"),
    ],
)
def test_misuse_of_the_verb_ends_in_one_line(tmp_path, capsys, more, needle):
    with pytest.raises(SystemExit) as end:
        main(["pairs", str(tmp_path), "--out", str(tmp_path / "p"), "-n", "4", *more])
    assert end.value.code
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert needle in err
    assert not (tmp_path / "p").exists()


def test_help_does_not_import_torch():
    code = "import sys; from fewstep.cli import main\ntry: main(['pairs', '--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--states" in done.stdout
    assert done.stdout.endswith("False\n")


# --- reading -----------------------------------------------------------------------------------------------------


def ready(folder, held_out=8):
    data = StoredPairs(str(folder), batch_size=6, seed=1, held_out=held_out)
    data.prepare_data()
    data.setup()
    return data


def test_every_pair_is_read_once_per_pass_and_what_is_held_out_never(whole):
    rows, _ = stored(whole)
    data = ready(whole)
    batches = list(itertools.islice(data.train_dataloader(), 7))  # 42 pairs
    place = {tuple(n): i for i, n in enumerate(rows["noise"].tolist())}
    seen = []
    for batch in batches:
        assert batch.keys() == {"noise", "states", "target", "x0"}
        at = [place[tuple(n)] for n in batch["noise"].tolist()]
        assert torch.equal(batch["states"], rows["states"][at])
        assert torch.equal(batch["target"], rows["states"][at][:, -1])
        assert torch.equal(batch["x0"], batch["target"])
        seen += at
    assert sorted(seen) == list(range(42))
    assert seen != sorted(seen)
    (held_out,) = data.val_dataloader()
    assert torch.equal(held_out["noise"], rows["noise"][42:])
    assert data.times == (1.0, 0.5, 0.0)
    assert list(ready(whole, held_out=0).val_dataloader()) == []


def test_the_loader_resumes_exactly(whole):
    data = ready(whole)
    uninterrupted = list(itertools.islice(data.train_dataloader(), 20))
    first, second = data.train_dataloader(), data.train_dataloader()
    list(itertools.islice(first, 9))
    second.load_state_dict(first.state_dict())
    for ours, theirs in zip(itertools.islice(second, 11), uninterrupted[9:], strict=True):
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_the_teacher_itself_has_no_loss_on_its_stored_pairs(whole):
    batch = next(iter(ready(whole).train_dataloader()))
    assert TrajectoryRegression(plain(), 1, steps=4, solver=Heun()).loss(batch)["distill"] < 1e-12
    other = TrajectoryRegression(plain(), 1, steps=1, solver=Heun()).loss(batch)["distill"]
    assert other > 1e-6


def test_a_folder_that_is_not_complete_or_too_small_is_refused(tmp_path, whole):
    with pytest.raises(ValueError, match="50 pairs 0 to 49 can be held out, not 50"):
        ready(whole, held_out=50)
    half = tmp_path / "half"
    half.mkdir()
    (half / "job.json").write_bytes((whole / "job.json").read_bytes())
    with pytest.raises(PairsError, match="is not complete"):
        ready(half)
    (half / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(PairsError, match="format 99"):
        ready(half)


def test_the_verb_takes_a_data_batch(tmp_path, capsys):
    save(plain(), tmp_path / "model")
    save_file({"x0": torch.arange(6.0).reshape(3, 2)}, tmp_path / "batch.safetensors")
    argv = ["pairs", tmp_path / "model", "--out", tmp_path / "p", "-n", "5", "--batch", tmp_path / "batch.safetensors"]
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in (*argv, "--solver", "DDIM", "--steps", "2", "--states", "all")])
    assert not end.value.code
    rows, manifest = stored(tmp_path / "p")
    assert torch.equal(rows["x0"], torch.arange(6.0).reshape(3, 2)[[0, 1, 2, 0, 1]])
    assert manifest["job"]["times"] == [1.0, 0.5, 0.0]
    assert manifest["job"]["solver"]["class_path"] == "fewstep.solvers.ddim.DDIM"
    assert manifest["job"]["made_by"]["source"] == str(tmp_path / "model")
