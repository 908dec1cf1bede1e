"""The training shell: what it counts, seeds, averages, writes and refuses; training losses and times; every shipped recipe."""

import copy
import math

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from worlds import normal, uniform

from fewstep.artifacts import load, read_config
from fewstep.denoiser import Denoiser
from fewstep.generator import Generator
from fewstep.grids import Uniform
from fewstep.nets import MLP
from fewstep.paths import DDPM, EDM, VP, RectifiedFlow, ResidualShift
from fewstep.precondition import AnchoredPrecondition
from fewstep.prediction import X0, Eps, U, V
from fewstep.solvers import DDIM
from fewstep.times import IndexTimes, LogNormalTimes, UniformTimes
from fewstep.toy import Mixture, gaussian
from fewstep.train.checkpoints import Checkpoints
from fewstep.train.denoising import Denoising, denoising_loss
from fewstep.train.ema import EMA
from fewstep.train.history import History
from fewstep.train.loader import StatefulLoader
from fewstep.train.schedules import Constant, Cosine
from fewstep.train.shell import NonFiniteLoss, Shell, iteration_seed, scheduled

# --- a small training --------------------------------------------------------------------------------------------


class Points(L.LightningDataModule):
    """Random points, and the same eight at every validation."""

    def batch(self, n, generator):
        return {"x0": torch.randn(n, 2, generator=generator)}

    def train_dataloader(self):
        return StatefulLoader(self, 8)

    def val_dataloader(self):
        return DataLoader([{"x0": x} for x in normal(8, 2).float()], batch_size=4)


def teacher(iterations=6, **kw):
    torch.manual_seed(0)
    net = Denoiser(MLP(2, 8, 2), RectifiedFlow(), U())
    return Denoising(Generator(net, DDIM(), Uniform(), 2), iterations, **kw)


def fit(module, folder, *callbacks, every=None, logger=False, ckpt_path=None, log_every=1):
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        check_val_every_n_epoch=None,
        val_check_interval=every or 10**6,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=log_every,
        logger=logger,
        default_root_dir=folder,
        callbacks=list(callbacks),
    )
    trainer.fit(module, datamodule=Points(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


class Recorder(L.Callback):
    """The student's weights after every iteration."""

    def __init__(self):
        self.weights = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.weights.append([p.detach().clone() for p in pl_module.student.parameters()])


class Figures(L.Callback):
    """iteration -> denoising figure of the validation there."""

    def __init__(self):
        self.seen = {}

    def on_validation_end(self, trainer, pl_module):
        self.seen[pl_module.done] = trainer.callback_metrics["val/denoising"].item()


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def equal(a, b):
    return all(torch.equal(u, v) for u, v in zip(a, b, strict=True))


# --- counting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", [1, 7])
def test_training_stops_at_its_iterations_and_counts_them(tmp_path, iterations):
    module, recorder = teacher(iterations), Recorder()
    fit(module, tmp_path, recorder)
    assert len(recorder.weights) == iterations
    assert int(module.iteration) == module.done == iterations
    assert "iteration" in module.state_dict()


def test_impossible_numbers_of_iterations_are_refused():
    with pytest.raises(ValueError, match="0"):
        teacher(0)


def test_a_finished_run_that_is_resumed_stays_as_it_is(tmp_path):
    module = teacher(4)
    fit(module, tmp_path, Checkpoints(every=2))
    resumed = teacher(4)
    fit(resumed, tmp_path / "again", ckpt_path=tmp_path / "last.ckpt")
    assert int(resumed.iteration) == resumed.done == 4
    assert equal(weights(resumed.student), weights(module.student))


def test_a_finished_run_can_be_lengthened(tmp_path):
    fit(teacher(4), tmp_path, Checkpoints(every=4))
    longer = teacher(6)
    fit(longer, tmp_path / "longer", ckpt_path=tmp_path / "last.ckpt")
    straight = teacher(6)
    fit(straight, tmp_path / "straight")
    assert longer.done == 6
    assert equal(weights(longer.student), weights(straight.student))


# --- schedules ---------------------------------------------------------------------------------------------------


def test_a_constant_schedule_warms_up_in_equal_steps():
    assert [Constant()(k, 10) for k in range(3)] == [1.0, 1.0, 1.0]
    assert [Constant(3)(k, 10) for k in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_a_cosine_schedule_has_its_closed_form():
    assert [Cosine()(k, 8) for k in range(9)] == pytest.approx([(1 + math.cos(math.pi * k / 8)) / 2 for k in range(9)])
    values = [Cosine(warmup=3, end=0.1)(k, 11) for k in range(12)]
    assert values[:4] == [0.25, 0.5, 0.75, 1.0]
    assert values[7] == pytest.approx(0.55)  # half way from the warm-up to the end
    assert values[11] == pytest.approx(0.1)
    assert values[3:] == sorted(values[3:], reverse=True)
    assert Cosine(end=0.1)(99, 11) == pytest.approx(0.1)
    assert Cosine(warmup=20)(5, 10) == pytest.approx(6 / 21)  # shorter than its warm-up


def test_adam_updates_all_parameters_in_one_pass_on_a_cpu_and_as_its_loop_does():
    nets = [nn.Linear(5, 3).double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    loop, fused = torch.optim.AdamW(nets[0].parameters()), scheduled(torch.optim.AdamW(nets[1].parameters()))
    assert fused.param_groups[0]["fused"] and fused.param_groups[0]["base_lr"] == 1e-3
    for k in range(3):
        for net in nets:
            net.zero_grad()
            net(normal(4, 5, seed=k)).square().sum().backward()
        loop.step()
        fused.step()
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-14)
    asked = scheduled(torch.optim.AdamW(nets[0].parameters(), foreach=True)).param_groups[0]
    assert asked["foreach"] and not asked["fused"]  # what a recipe asks for stays
    assert "fused" not in scheduled(torch.optim.RMSprop(nets[0].parameters())).param_groups[0]


def test_the_optimizer_runs_at_the_scheduled_rate(tmp_path):
    log, schedule = History(), Cosine(warmup=2, end=0.1)
    module = teacher(6, schedule=schedule, optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
    fit(module, tmp_path, logger=log)
    iterations, rates = log.curves["train/lr"]
    assert iterations == [1, 2, 3, 4, 5, 6]
    assert rates == pytest.approx([0.5 * schedule(k, 6) for k in range(6)])


# --- randomness --------------------------------------------------------------------------------------------------


def test_every_iteration_and_rank_has_a_seed_of_its_own():
    seeds = [iteration_seed(s, r, k) for s in range(6) for r in range(-2, 6) for k in range(-50, 500)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in seeds)


def test_seeds_of_neighbours_share_nothing():
    flips = [bin(iteration_seed(0, 0, k) ^ iteration_seed(0, 0, k + 1)).count("1") for k in range(500)]
    assert np.mean(flips) == pytest.approx(31.5, abs=0.7)  # of 63 bits
    x = torch.stack(
        [torch.randn(64, generator=torch.Generator().manual_seed(iteration_seed(0, 0, k))) for k in range(200)]
    )
    correlation = torch.corrcoef(x).fill_diagonal_(0)
    assert correlation.abs().max() < 6 / 64**0.5


def test_the_global_random_state_has_no_influence(tmp_path):
    runs = []
    for state in (1, 2):
        module = teacher(5)
        torch.manual_seed(state)
        fit(module, tmp_path, every=2)
        runs.append(weights(module.student))
    assert equal(*runs)


def test_validation_does_not_disturb_training_and_repeats_its_own_noise(tmp_path):
    seen, runs = [], []
    for every in (1, 3, None):
        module = teacher(6)
        watch = Figures()
        fit(module, tmp_path, watch, every=every)
        runs.append(weights(module.student))
        seen.append(watch.seen)
    assert equal(runs[0], runs[1])
    assert equal(runs[0], runs[2])
    assert seen[0].keys() == {1, 2, 3, 4, 5, 6}
    assert seen[1] == {k: seen[0][k] for k in (3, 6)}


def test_the_run_seed_changes_the_run(tmp_path):
    a, b = teacher(3, seed=0), teacher(3, seed=1)
    fit(a, tmp_path)
    fit(b, tmp_path)
    assert not equal(weights(a.student), weights(b.student))


# --- optimisation ------------------------------------------------------------------------------------------------


class Pull(Shell):
    """Loss scale * w on one weight: the gradient is known."""

    def __init__(self, iterations=1, scale=1.0, **kw):
        super().__init__(nn.Linear(1, 1, bias=False), iterations, lambda p: torch.optim.SGD(p, lr=1.0), **kw)
        self.scale = scale
        nn.init.zeros_(self.student.weight)

    def loss(self, batch):
        w = self.student.weight.sum()
        return {"half": self.scale * w / 2, "rest": self.scale * w / 2}


@pytest.mark.parametrize(("scale", "step"), [(0.5, 0.5), (100.0, 2.0)])
def test_terms_are_added_and_gradients_clipped(tmp_path, scale, step):
    module, log = Pull(scale=scale, grad_clip=2.0), History()
    fit(module, tmp_path, logger=log)
    assert module.student.weight.item() == pytest.approx(-step)
    assert log.curves["train/grad_norm"][1] == pytest.approx([scale])


def test_frozen_weights_stay():
    module = teacher(2)
    frozen = module.student.denoiser.net.first.weight.requires_grad_(False)
    assert all(p is not frozen for group in module.configure_optimizers().param_groups for p in group["params"])


class Bad(Shell):
    """Two terms; one of them, or a gradient, becomes bad at iteration 3."""

    def __init__(self, what, iterations=6):
        super().__init__(nn.Linear(1, 1, bias=False), iterations)
        self.what = what

    def loss(self, batch):
        w = self.student.weight.sum()
        bad = {
            "nan": w * math.nan,
            "inf": w.square() + math.inf,
            "gradient": (w * 0).sqrt(),  # 0, with derivative infinity times 0
        }[self.what]
        return {"good": w.square(), "bad": bad if self.done == 3 else w.square()}


@pytest.mark.parametrize("what", ["nan", "inf"])
def test_a_loss_that_is_not_finite_is_named_with_its_iteration(tmp_path, what):
    module = Bad(what)
    with pytest.raises(NonFiniteLoss, match=rf"`bad`.*{what}.* 3\b") as error:
        fit(module, tmp_path, EMA(), Checkpoints(every=1))
    assert "\n" not in str(error.value)
    assert "good" not in str(error.value)
    assert module.done == 3
    assert all(p.isfinite().all() for p in module.parameters())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt"]  # of the iteration before


@pytest.mark.parametrize("iterations", [4, 6])
def test_a_gradient_that_is_not_finite_is_refused_before_it_spoils_the_weights(tmp_path, iterations):
    module = Bad("gradient", iterations)  # 4: no further iteration would notice
    with pytest.raises(NonFiniteLoss, match=r"\b3\b"):
        fit(module, tmp_path, Checkpoints(every=1))
    assert all(p.isfinite().all() for p in module.student.parameters())
    assert not (tmp_path / "last").exists()


# --- averaging ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_the_average_follows_its_recursion(tmp_path, decay):
    module, recorder = teacher(9), Recorder()
    average = weights(module.student)
    fit(module, tmp_path, EMA(decay), recorder)
    for n, current in enumerate(recorder.weights, 1):
        d = min(decay, (1 + n) / (10 + n))
        average = [d * a + (1 - d) * w for a, w in zip(average, current, strict=True)]
    for ours, expected in zip(module.averaged.parameters(), average, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    assert not any(p.requires_grad for p in module.averaged.parameters())


def test_the_average_is_in_no_state_dict_and_no_optimizer(tmp_path):
    module = teacher(2)
    keys = set(module.state_dict())
    fit(module, tmp_path, EMA())
    assert set(module.state_dict()) == keys
    assert len(list(module.parameters())) == len(list(module.student.parameters()))


def test_a_resumed_average_is_bit_identical(tmp_path):
    straight, first, rest = teacher(8), teacher(5), teacher(8)
    fit(straight, tmp_path / "straight", EMA(0.9))
    fit(first, tmp_path / "first", EMA(0.9), Checkpoints(every=5))
    fit(rest, tmp_path / "rest", EMA(0.9), ckpt_path=tmp_path / "first/last.ckpt")
    assert equal(weights(straight.averaged), weights(rest.averaged))
    assert equal(weights(straight.student), weights(rest.student))


class Dropping(Shell):
    """Records which model is validated, and in which mode."""

    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), 2)
        self.modes, self.models = [], []

    def loss(self, batch):
        assert self.student.training
        return {"square": self.student(batch["x0"]).square().mean()}

    def evaluate(self, model, batch):
        self.modes.append({m.training for m in model.modules()})
        self.models.append(model)
        return {}


@pytest.mark.parametrize("callbacks", [[], [EMA()]], ids=["student", "average"])
def test_models_are_validated_in_evaluation_mode(tmp_path, callbacks):
    module = Dropping()
    fit(module, tmp_path, *callbacks, every=1)
    assert all(m is (module.averaged or module.student) for m in module.models)
    assert module.modes == [{False}] * 4


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_impossible_decays_are_refused(decay):
    with pytest.raises(ValueError, match=str(decay)):
        EMA(decay)


# --- what a run leaves -------------------------------------------------------------------------------------------


class Judged(Denoising):
    """Validation figures are given."""

    figures_ = (3.0, 5.0, 4.0, 1.0)

    def evaluate(self, model, batch):
        value = self.figures_[self.done // 2 - 1]
        return {"score": torch.full((len(batch["x0"]),), value)}


def judged():
    module = teacher(8)
    module.__class__ = Judged
    return module


@pytest.mark.parametrize(("mode", "best"), [("max", 4), ("min", 8)])
@pytest.mark.parametrize("averaged", [False, True])
def test_best_and_last_are_the_models_of_their_iterations(tmp_path, mode, best, averaged):
    snapshots = {}

    class Snapshots(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            snapshots[pl_module.done] = weights(pl_module.averaged or pl_module.student)

    callbacks = [EMA(0.9)] * averaged + [Snapshots(), Checkpoints(every=3, monitor="val/score", mode=mode)]
    module = judged()
    fit(module, tmp_path, *callbacks, every=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "last", "last.ckpt"]
    for name, iteration in (("best", best), ("last", 8)):
        assert equal(weights(load(tmp_path / name)), snapshots[iteration])
        facts = read_config(tmp_path / name)["provenance"]
        assert facts["iteration"] == iteration
        assert facts["iterations"] == 8
        assert facts["averaged"] is averaged
        assert facts["seed"] == 0
    assert read_config(tmp_path / "best")["provenance"]["scores"] == {"val/score": Judged.figures_[best // 2 - 1]}
    assert read_config(tmp_path / "last")["provenance"]["scores"] == {"val/score": 1.0}
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert int(state["state_dict"]["iteration"]) == 8


def test_a_resumed_run_remembers_its_best(tmp_path):
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            trainer.should_stop = pl_module.done == 5  # after both better validations, before the end

    fit(judged(), tmp_path, Stop(), Checkpoints(every=1, monitor="val/score"), every=2)
    before = read_config(tmp_path / "best")
    assert before["provenance"]["iteration"] == 4
    fit(judged(), tmp_path, Checkpoints(monitor="val/score"), every=2, ckpt_path=tmp_path / "last.ckpt")
    assert read_config(tmp_path / "best") == before
    assert read_config(tmp_path / "last")["provenance"]["iteration"] == 8


def test_without_a_monitor_there_is_no_best(tmp_path):
    fit(teacher(2), tmp_path, Checkpoints(), every=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "last.ckpt"]


def test_a_misspelt_monitor_is_named_with_what_there_is(tmp_path):
    with pytest.raises(ValueError, match=r"val/scroe.*val/score") as error:
        fit(judged(), tmp_path, Checkpoints(monitor="val/scroe"), every=2)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_come_every_so_many_iterations(tmp_path):
    seen = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            file = tmp_path / "run/last.ckpt"
            seen.append(int(torch.load(file, weights_only=True)["state_dict"]["iteration"]) if file.exists() else 0)
            assert not list(tmp_path.rglob("*.part"))

    fit(teacher(8), tmp_path, Checkpoints(folder=str(tmp_path / "run"), every=3), Look())
    assert seen == [0, 0, 3, 3, 3, 6, 6, 8]
    with pytest.raises(ValueError, match="0"):
        Checkpoints(every=0)


# --- logging -----------------------------------------------------------------------------------------------------


def test_every_figure_is_logged_once_against_the_iteration(tmp_path):
    module, log = teacher(5), History()
    fit(module, tmp_path, every=2, logger=log, log_every=2)
    assert {k for k in log.curves if "/" in k} == {"train/denoising", "train/grad_norm", "train/lr", "val/denoising"}
    assert log.curves["train/denoising"][0] == [2, 4, 5]
    assert log.curves["val/denoising"][0] == [2, 4, 5]  # once each; the end of a run is validated too
    assert all(math.isfinite(v) for _, values in log.curves.values() for v in values)


def test_the_logged_validation_is_the_mean_over_all_samples(tmp_path):
    class Numbers(Denoising):
        def evaluate(self, model, batch):
            return {"first": batch["x0"][:, 0]}

    module, log = teacher(1), History()
    module.__class__ = Numbers
    fit(module, tmp_path, every=1, logger=log)
    assert log.curves["val/first"][1] == pytest.approx([normal(8, 2)[:, 0].mean().item()], abs=1e-6)


# --- denoising ---------------------------------------------------------------------------------------------------


class ExactNet(nn.Module):
    """What an exact denoiser outputs, from what the network sees."""

    def __init__(self, world, prediction):
        super().__init__()
        self.world, self.prediction = world, prediction

    def forward(self, seen, label):
        c = self.world.path.coeffs(label, seen)
        i, j = self.prediction.input_scale(c)
        y = self.world.y
        x = (seen if y is None else seen - j * y) / i
        estimate = self.world(x, label)
        return self.prediction.target(estimate.x0, estimate.eps, c, y)


WORLDS = [
    pytest.param(RectifiedFlow(), X0(), None, (0.3, 0.9), id="rf-x0"),
    pytest.param(RectifiedFlow(), U(), None, (0.3, 0.9), id="rf-u"),
    pytest.param(VP(), V(), None, (0.1, 0.7), id="vp-v"),
    pytest.param(VP(), Eps(), None, (0.1, 0.7), id="vp-eps"),
    pytest.param(ResidualShift(), AnchoredPrecondition(0.6), 0.4, (2.0, 14.0), id="resshift-anchored"),
]


@pytest.mark.parametrize(("path", "prediction", "anchor", "times"), WORLDS)
def test_the_exact_denoiser_has_the_irreducible_loss(path, prediction, anchor, times):
    n, std = 100_000, 0.6
    y = None if anchor is None else torch.full((n, 1), anchor, dtype=torch.float64)
    world = gaussian(path, -0.7, std, y=y)
    denoiser = Denoiser(ExactNet(world, prediction), path, prediction)
    x0, eps = world.draw(n, torch.Generator().manual_seed(1)), normal(n, 1, seed=2)
    for t in times:
        at = torch.full((n,), t, dtype=torch.float64)
        loss = denoising_loss(denoiser, x0, eps, at, y=y)
        a, b, s, da, db, ds = (v.item() for v in path.coeffs(at[:1], at[:1]))
        p, q = {"X0": (1, 0), "Eps": (0, 1), "V": (-s, a), "U": (da, ds)}.get(type(prediction).__name__, (None, None))
        if p is None:  # AnchoredPrecondition, spec 1.4: x0 - y = c_skip d + c_out F
            v = a**2 * std**2 + s**2
            p, q = (1 - a**2 * std**2 / v) / (std * s / v**0.5), -a * std / v**0.5
        # Given x_t, out = (p - q a/s) x0 + const, and Var[x0 | x_t] = std^2 s^2 / (a^2 std^2 + s^2).
        exact = (p - q * a / s) ** 2 * std**2 * s**2 / (a**2 * std**2 + s**2)
        assert loss.shape == (n,)
        assert loss.mean().item() == pytest.approx(exact, abs=4 * loss.std().item() / n**0.5)
        # Any other answer is worse.
        other = Denoiser(ExactNet(gaussian(path, -0.5, std, y=y), prediction), path, prediction)
        assert denoising_loss(other, x0, eps, at, y=y).mean() > loss.mean()


def test_the_denoising_loss_vanishes_on_a_single_point():
    world = Mixture(VP(), torch.tensor([[0.3, -1.0]]).double(), torch.zeros(1, 2, 2).double())
    denoiser = Denoiser(ExactNet(world, Eps()), VP(), Eps())
    x0, t = world.means.expand(16, 2), uniform(16, low=0.1, high=0.9)
    assert denoising_loss(denoiser, x0, normal(16, 2), t).max() < 1e-20


def test_training_uses_its_own_times():
    asked = []

    class Watching(UniformTimes):
        def __call__(self, n, path):
            asked.append((n, path))
            return super().__call__(n, path)

    module = teacher(1, times=Watching())
    loss = module.loss({"x0": torch.zeros(5, 2)})
    assert asked == [(5, RectifiedFlow())]
    assert loss.keys() == {"denoising"}
    assert loss["denoising"].ndim == 0


# --- times -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [RectifiedFlow(), VP(), ResidualShift()], ids=repr)
@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_uniform_times_are_stratified(path, margin):
    torch.manual_seed(0)
    n = 1000
    t = UniformTimes(margin)(n, path)
    lo, hi = path.t_min + margin, path.t_max - margin
    cells = ((t - lo) / (hi - lo) * n).floor()
    assert t.dtype == torch.float64
    assert sorted(cells.tolist()) == list(range(n))  # one in each of n equal parts
    assert not torch.equal(t, t.sort().values)
    assert torch.corrcoef(torch.stack([t, torch.arange(n).double()]))[0, 1].abs() < 4 / n**0.5


def test_index_times_are_indices_and_uniform():
    torch.manual_seed(0)
    path, n = ResidualShift(steps=15), 60_000
    counts = torch.bincount(IndexTimes()(n, path).long(), minlength=15)
    assert len(counts) == 15
    chi2 = ((counts - n / 15) ** 2 / (n / 15)).sum()
    assert chi2 < 36  # 0.1 % of chi^2 with 14 degrees of freedom
    assert IndexTimes()(1000, DDPM(steps=10)).unique().tolist() == [float(i) for i in range(10)]


@pytest.mark.parametrize(("share", "n"), [(0.375, 16), (1.0, 7), (0.25, 8)])
def test_a_share_of_index_times_is_the_last_one(share, n):
    path = ResidualShift(steps=1000)
    counts = [(IndexTimes(share)(n, path) == path.t_max).sum().item() for _ in range(20)]
    assert min(counts) == round(share * n)


@pytest.mark.parametrize("path", [EDM(), VP(), RectifiedFlow()], ids=repr)
def test_log_normal_times_have_the_levels_of_edm(path):
    torch.manual_seed(0)
    n = 20_000
    t = LogNormalTimes(-1.2, 1.2)(n, path)
    log_rho = -path.log_snr(t)
    inside = (t > path.t_min) & (t < path.t_max)
    assert inside.float().mean() > 0.99
    assert log_rho[inside].mean().item() == pytest.approx(-1.2, abs=0.05)
    assert log_rho[inside].std().item() == pytest.approx(1.2, abs=0.05)
    quantile = log_rho.quantile(0.975).item()
    assert quantile == pytest.approx(-1.2 + 1.96 * 1.2, abs=0.12)


def test_deep_copies_of_a_generator_share_nothing():
    module = teacher()
    other = copy.deepcopy(module.student)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    assert not equal(weights(module.student), weights(other))
