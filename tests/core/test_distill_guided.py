"""Progressive and guided distillation, adapters (LoRA, HiPA, SpeedUpNet), and samples that the teacher begins."""

import copy
import hashlib
import math
from itertools import pairwise

import lightning as L
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from worlds import PATHS, interior, name, normal, over, uniform

from fewstep.artifacts import load, save
from fewstep.class_generator import ClassGenerator
from fewstep.denoiser import Denoiser
from fewstep.distances import L1, SquaredL2
from fewstep.distill.consistency import ConsistencyDistillation
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.guided import GuidedDistillation, ToldTeacher, matching_loss
from fewstep.distill.hipa import HiPA
from fewstep.distill.progressive import EachStage, Halving, ProgressiveDistillation, Stage, chord_target
from fewstep.distill.segments import Segments
from fewstep.distill.speed_up import NegativeGuidance, SpeedUpNet, multi_step_loss
from fewstep.distill.teacher_step import TeacherStep
from fewstep.distill.trajectory import TrajectoryRegression
from fewstep.distill.weighting import Even, InverseInterval, MaxSNR, SNRPlusOne
from fewstep.generator import Generator
from fewstep.grids import Grid, Uniform
from fewstep.grids.explicit import Explicit
from fewstep.guidance.cfg import CFG
from fewstep.high_frequency import Edges, HighPass
from fewstep.jump import JumpGenerator
from fewstep.lora import Adapted, LoRA, LowRank, adapted, layers, merged
from fewstep.nets import MLP
from fewstep.nets.adapter import trainable
from fewstep.nets.negative_branch import LabelBranch, NegativeBranch
from fewstep.nets.scalars import with_scalars
from fewstep.paths import EDM, RectifiedFlow, ResidualShift
from fewstep.prediction import X0, U
from fewstep.sampling import sample
from fewstep.solvers import DDIM, DPMpp2M, GammaSampling, Heun
from fewstep.teacher_first import TeacherFirst, TeacherSketch
from fewstep.toy import Mixture, gaussian, ring
from fewstep.train.checkpoints import Checkpoints
from fewstep.train.loader import StatefulLoader
from fewstep.train.schedules import Constant, Cosine

FLOW = RectifiedFlow()


class Exact(nn.Module):
    """The exact x0 of a world, as a network."""

    def __init__(self, world):
        super().__init__()
        self.world, self.gain = world, nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x, t, **cond):
        return self.gain * self.world(x, t.double()).x0.to(x.dtype)


class ExactClasses(nn.Module):
    """The exact x0 of three Gaussians, each a class, and of all under the null label; guided where it is told w."""

    classes, scalars = 3, {}

    def __init__(self, told=False):
        super().__init__()
        self.means, self.calls = ring(FLOW, 3).means, 0
        self.gain = nn.Parameter(torch.ones((), dtype=torch.float64))
        if told:
            self.scalars = {"w": 1.0}

    def x0(self, x, t, label):
        a, s = ((1 - t)[:, None, None].double(), t[:, None, None].double())
        v, z = 0.16 * a**2 + s**2, x[:, None] - a * self.means
        each = self.means + 0.16 * a / v * z
        r = (-z.square().sum(2) / v[..., 0] / 2).softmax(1)[..., None]
        return torch.cat([each, (r * each).sum(1, keepdim=True)], 1)[torch.arange(len(x)), label]

    def forward(self, x, t, label, w=None):
        self.calls += 1
        out = self.x0(x, t, label)
        if w is not None:
            out = torch.lerp(self.x0(x, t, torch.full_like(label, 3)), out, w[:, None].double())
        return (self.gain * out).to(x.dtype)


def generator(net, path=FLOW, prediction=None, solver=None, steps=8, kind=Generator):
    return kind(Denoiser(net, path, prediction or X0()), solver or DDIM(), Uniform(), steps)


def classes(told=False, **kw):
    return generator(ExactClasses(told), kind=ClassGenerator, **kw)


def small(seed=0, dtype=torch.float64, **kw):
    """A small network of three classes on the flow, in float64."""
    torch.manual_seed(seed)
    net = MLP(2, 16, 2, classes=3).to(dtype)
    return generator(net, prediction=U(), kind=ClassGenerator, **kw)


def labelled(n, seed=0):
    return {"x0": normal(n, 2, seed=seed), "label": torch.arange(n) % 3}


def scrambled(module, seed=0):
    """The module with random values in everything that is trained."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                p.copy_(0.3 * torch.randn(p.shape, generator=g))
    return module


def digest(parameters):
    """A hash of the bytes of all of these."""
    h = hashlib.sha256()
    for p in parameters:
        h.update(p.detach().numpy().tobytes())
    return h.hexdigest()


def steps_of_adam(model, batch, count=3):
    optimizer = torch.optim.Adam([p for p in model.student.parameters() if p.requires_grad], lr=1e-2)
    for i in range(count):
        torch.manual_seed(i)
        optimizer.zero_grad()
        torch.stack(list(model.loss(batch).values())).sum().backward()
        optimizer.step()
        model.after_step()
        model.done += 1


# --- adapters ----------------------------------------------------------------------------------------------------


class Pictures(nn.Module):
    """Convolutions, attention, a linear layer and dropout."""

    def __init__(self):
        super().__init__()
        self.into, self.grouped = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.attention, self.out = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, t):
        h = self.dropout(self.grouped(self.into(x)) + t[:, None, None, None]).flatten(2).mT
        # Attention leaves other strides with adapters than without, and on some processors a linear layer rounds by them.
        return self.out((h + self.attention(h, h, h)[0]).contiguous()).mT.reshape(x.shape)


@torch.no_grad()  # with gradients torch's attention rounds differently where its own weights have none
def test_new_adapters_change_nothing():
    torch.manual_seed(0)
    net, x, t = Pictures().eval(), torch.randn(3, 2, 4, 4), torch.rand(3)
    plain = net(x, t)
    lora = LoRA(copy.deepcopy(net), {"student": 4, "fake": 2})
    assert torch.equal(lora(x, t), plain)
    for role in ("student", "fake", None):
        with lora.using(role):
            assert torch.equal(lora(x, t), plain)


def test_an_adapter_adds_its_product():
    net, x = nn.Sequential(nn.Linear(5, 4)).double(), normal(6, 5)
    weight, bias = net[0].weight.detach().clone(), net[0].bias.detach().clone()
    lora = scrambled(LoRA(net, {"a": 3, "b": 2}, scale=0.7, active="b"))
    for role in ("a", "b"):
        a, b = lora.adapter_parameters(role)
        with lora.using(role):
            torch.testing.assert_close(lora(x), x @ (weight + 0.7 * b @ a).T + bias, rtol=1e-12, atol=1e-12)
    with lora.using(None):
        assert torch.equal(lora(x), nn.functional.linear(x, weight, bias))
    assert lora.active == "b"


def test_gradients_survive_a_switch_before_the_backward():
    net = small().denoiser.net
    lora, x, t, label = scrambled(LoRA(net, {"student": 2, "fake": 2})), normal(5, 2), uniform(5), torch.arange(5) % 3
    wanted = torch.autograd.grad(lora(x, t, label=label).square().sum(), lora.adapter_parameters("student"))
    loss = lora(x, t, label=label).square().sum()
    lora.switch("fake")
    with lora.using(None), torch.no_grad():
        lora(x, t, label=label)
    loss.backward()
    for p, g in zip(lora.adapter_parameters("student"), wanted, strict=True):
        assert torch.equal(p.grad, g)
    assert all(p.requires_grad for p in lora.adapter_parameters())
    assert all(p.grad is None for p in lora.adapter_parameters("fake"))


def test_a_merged_network_is_plain_and_the_same():
    student = small()
    plain = student.denoiser.net.state_dict().keys()
    student.denoiser.net = scrambled(LoRA(student.denoiser.net, {"student": 3, "other": 3}))
    noise, cond = normal(7, 2), {"label": torch.arange(7) % 4}
    own, free = student.generate(noise, cond), merged(student)
    assert type(free.denoiser.net) is MLP
    assert free.denoiser.net.state_dict().keys() == plain
    torch.testing.assert_close(free.generate(noise, cond), own, rtol=1e-12, atol=1e-12)
    assert torch.equal(student.generate(noise, cond), own)
    assert not {p.data_ptr() for p in free.parameters()} & {p.data_ptr() for p in student.parameters()}
    with student.denoiser.net.using("other"):
        other = merged(student).generate(noise, cond)
        torch.testing.assert_close(other, student.generate(noise, cond), rtol=1e-12, atol=1e-12)
    assert (other - own).abs().max() > 1e-3


def test_a_saved_network_begins_with_the_adapter_it_was_saved_with(tmp_path):
    student = small(dtype=torch.float32)
    student.denoiser.net = scrambled(LoRA(student.denoiser.net, {"student": 3, "a": 2}, ("first", "mlp.2")))
    noise, cond = torch.randn(4, 2), {"label": torch.arange(4)}
    for role in ("student", "a", None):
        student.denoiser.net.switch(role)
        save(student, tmp_path / "artifact")
        again = load(tmp_path / "artifact")
        assert again.denoiser.net.active == role
        assert torch.equal(again.generate(noise, cond), student.generate(noise, cond))


def test_copies_share_the_base_alone_and_averages_leave_it():
    lora = scrambled(LoRA(small().denoiser.net, {"student": 2}))
    other = copy.deepcopy(lora)
    assert all(a is b for a, b in zip(lora.base_parameters(), other.base_parameters(), strict=True))
    assert not {id(p) for p in lora.adapter_parameters()} & {id(p) for p in other.adapter_parameters()}
    before, base = digest(lora.adapter_parameters()), digest(lora.base_parameters())
    scrambled(other, seed=1)
    assert digest(lora.adapter_parameters()) == before != digest(other.adapter_parameters())
    get_ema_multi_avg_fn(0.3)(list(other.parameters()), list(lora.parameters()), 1)
    assert digest(lora.base_parameters()) == base
    x, t, label = normal(3, 2), uniform(3), torch.arange(3)
    own = lora(x, t, label=label)
    other.switch(None)
    assert torch.equal(lora(x, t, label=label), own)


def test_any_method_trains_the_adapters_of_an_adapted_artifact(tmp_path):
    torch.manual_seed(0)
    teacher = Generator(Denoiser(MLP(2, 16, 2), FLOW, U()), DDIM(), Uniform(), 4)
    save(teacher, tmp_path / "teacher")
    student = adapted(str(tmp_path / "teacher"), LowRank(rank=3))
    noise = normal(7, 2).float()
    torch.testing.assert_close(student.generate(noise), teacher.generate(noise))
    model = ConsistencyDistillation(teacher, 10, student=student)
    names = {n for n, p in model.student.named_parameters() if p.requires_grad}
    assert names == {n for n, _ in model.student.named_parameters() if "lora_" in n} != set()
    with torch.no_grad():
        for n, p in student.named_parameters():
            p += 0.1 * ("lora_" in n)
    save(student, tmp_path / "student")
    further = adapted(str(tmp_path / "student"), LowRank(rank=8))  # of rank 3, as before
    assert torch.equal(further.generate(noise), student.generate(noise))
    assert {p.shape for p in further.parameters()} == {p.shape for p in student.parameters()}


def test_layers_are_chosen_by_the_ends_of_their_names():
    assert layers(Pictures()) == ["into", "out"]  # grouped: cannot be merged; attention.out_proj: would not be called
    assert layers(small().denoiser.net, ("mlp.0", "last")) == ["time.mlp.0", "last"]
    assert layers(small().denoiser.net, ("rest.0",)) == ["rest.0"]
    with pytest.raises(ValueError, match="'ast'.*last"):
        layers(small().denoiser.net, ("last", "ast"))
    with pytest.raises(ValueError, match="Dropout"):
        layers(nn.Dropout())


def test_unknown_adapters_are_named():
    with pytest.raises(ValueError, match="'b'.*a"):
        LoRA(nn.Sequential(nn.Linear(2, 2)), {"a": 1}, active="b")
    lora = LoRA(nn.Sequential(nn.Linear(2, 2)), {"a": 1}, active=None)
    with pytest.raises(ValueError, match="'student'"):
        lora.switch("student")
    assert lora.active is None


def test_a_role_in_evaluation_has_no_dropout_while_the_network_trains():
    torch.manual_seed(0)
    net, x, t = Pictures().eval(), torch.randn(2, 2, 4, 4), torch.rand(2)
    plain, lora = net(x, t), LoRA(copy.deepcopy(net))
    role = Adapted(lora).eval()
    lora.train()
    assert torch.equal(role(x, t), plain)
    assert all(m.training for m in lora.modules())
    assert not torch.equal(lora(x, t), plain)


# --- guided distillation -----------------------------------------------------------------------------------------


def test_the_null_label_of_the_exact_network_is_its_world():
    x, t, null = normal(9, 2), uniform(9, low=0.1), torch.full((9,), 3)
    torch.testing.assert_close(ExactClasses()(x, t, null), ring(FLOW, 3, 2.0, 0.4)(x, t).x0)


def test_the_guided_field_has_zero_loss_and_no_gradient():
    guidance = TeacherGuidance(1.0, 5.0, told=True)
    model = GuidedDistillation(classes(), 1, guidance, student=classes(told=True))
    loss = model.loss(labelled(32))["guided"]
    loss.backward()
    assert loss.item() < 1e-20
    assert model.student.denoiser.net.gain.grad.abs() < 1e-12
    unguided = GuidedDistillation(classes(), 1, TeacherGuidance(3.0, 3.0))
    assert unguided.loss(labelled(32))["guided"] > 0.1


def test_without_guidance_the_teacher_has_zero_loss():
    model = GuidedDistillation(classes(), 1, TeacherGuidance())
    assert model.loss(labelled(32))["guided"].item() == 0.0


def test_the_matching_loss_has_a_gradient_in_the_student_alone():
    student, teacher = (generator(Exact(ring(FLOW))) for _ in range(2))
    with torch.no_grad():
        student.denoiser.net.gain.fill_(1.5)
    x, t = normal(9, 2), uniform(9, low=0.1)
    matching_loss(student.denoiser.bind(), teacher.denoiser.bind(), x, t).sum().backward()
    assert teacher.denoiser.net.gain.grad is None
    x0 = teacher.denoiser(x, t).x0
    torch.testing.assert_close(student.denoiser.net.gain.grad, (2 * 0.5 * x0**2).mean(1).sum().detach())


WEIGHTINGS = [Even(), MaxSNR(), SNRPlusOne(), InverseInterval()]


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=name)
def test_losses_are_weighted_at_their_times(weighting):
    class Fixed(Uniform):
        def __call__(self, n, path):
            return torch.linspace(0.2, 0.9, n).double()

    model = GuidedDistillation(generator(Exact(gaussian(FLOW, 0.0, 1.0, 2))), 1, TeacherGuidance(), Fixed(), weighting)
    with torch.no_grad():
        model.student.denoiser.net.gain.fill_(0.0)
    batch, t = {"x0": normal(5, 2)}, torch.linspace(0.2, 0.9, 5).double()
    torch.manual_seed(3)
    loss = model.loss(batch)["guided"]
    torch.manual_seed(3)
    x_t = FLOW.sample(batch["x0"], torch.randn_like(batch["x0"]), t)
    square = model.teacher.denoiser(x_t, t).x0.square().mean(1)
    snr = ((1 - t) / t) ** 2
    known = {"Even": 1 + 0 * snr, "MaxSNR": snr.clamp(min=1), "SNRPlusOne": snr + 1, "InverseInterval": snr.sqrt()}
    weight = known[name(weighting)]
    torch.testing.assert_close(loss, (weight * square).mean())


@pytest.mark.parametrize("guidance", [TeacherGuidance(3.0, 3.0), TeacherGuidance(1.0, 5.0, told=True)])
def test_with_adapters_the_teacher_is_the_frozen_base(guidance):
    plain = small()
    model = GuidedDistillation(small(), 9, guidance, adapters=LowRank(4))
    lora, batch = model.student.denoiser.net, labelled(16)
    noise, cond, w = normal(16, 2), {"label": batch["label"]}, model.guidance.draw(normal(16, 2)).double()

    def of_teacher(generator):
        return guidance.generate(generator, noise, cond, None, w)

    wanted, base = of_teacher(plain), digest(lora.base_parameters())
    assert torch.equal(of_teacher(model.teacher), wanted)
    full = GuidedDistillation(small(), 9, guidance)
    losses = []
    for m in (model, full):
        torch.manual_seed(1)
        losses.append(m.loss(batch)["guided"])
    assert torch.equal(*losses)
    trained = {id(p) for p in lora.adapter_parameters()}
    assert {id(p) for p in model.student.parameters() if p.requires_grad} == trained
    assert all(m.training for m in model.student.modules())
    assert not model.teacher.denoiser.net.training
    before = digest(lora.adapter_parameters())
    steps_of_adam(model, batch)
    assert digest(lora.adapter_parameters()) != before
    assert digest(lora.base_parameters()) == base
    assert torch.equal(of_teacher(model.teacher), wanted)
    assert not torch.equal(model.student.generate(noise, cond), plain.generate(noise, cond))
    # One set of weights: the teacher has none that are not the student's.
    assert {id(p) for p in model.teacher.parameters()} <= {id(p) for p in model.student.parameters()}
    assert model.evaluate(model.student, batch)["agreement"].isfinite().all()


def test_adapters_need_the_teachers_own_weights():
    with pytest.raises(ValueError, match="time.mlp.0.weight"):
        GuidedDistillation(small(0), 1, adapters=LowRank(2), student=small(1))


def test_a_told_teacher_costs_one_evaluation_and_is_asked_at_w():
    teacher, cond, w = classes(told=True), {"label": torch.arange(4)}, uniform(4, low=1.0, high=5.0)
    x, t = normal(4, 2), uniform(4, low=0.1)
    told = ToldTeacher(1.0, 5.0).teacher(teacher, cond, None, w)(x, t).x0
    assert teacher.denoiser.net.calls == 1
    guided = TeacherGuidance(1.0, 5.0).teacher(classes(), cond, None, w)(x, t).x0
    torch.testing.assert_close(told, guided, rtol=1e-12, atol=1e-12)


def test_a_short_training_learns_guidance_at_every_scale():
    torch.manual_seed(0)
    student = generator(MLP(2, 64, 2, classes=3, scalars={"w": 10.0}), prediction=U(), kind=ClassGenerator)
    model = GuidedDistillation(classes(), 150, TeacherGuidance(1.0, 4.0, told=True), weighting=Even(), student=student)
    world, g = ring(FLOW, 3, 2.0, 0.4), torch.Generator().manual_seed(0)

    def gap():
        x, t, label = world.draw(512, g).float(), torch.rand(512, generator=g), torch.arange(512) % 3
        w = 1 + 3 * torch.rand(512, generator=g)
        x = FLOW.sample(x, torch.randn(512, 2, generator=g), t)
        with torch.no_grad():
            own = model.student.denoiser.bind({"label": label, "w": w})(x, t).x0
            wanted = model.guidance.teacher(model.teacher, {"label": label}, None, w)(x, t).x0
        return (own - wanted).square().mean().item()

    before, optimizer = gap(), torch.optim.Adam(model.student.parameters(), lr=5e-3)
    for _ in range(150):
        label = torch.randint(0, 3, (64,))
        x0 = (world.means[label] + 0.4 * torch.randn(64, 2)).float()
        optimizer.zero_grad()
        model.loss({"x0": x0, "label": label})["guided"].backward()
        optimizer.step()
    assert gap() < before / 5


# --- progressive distillation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", over(PATHS))
def test_one_step_with_the_target_ends_where_two_steps_do(path):
    y = normal(6, 2, seed=3) if path.anchored else None
    world, n = ring(path, 5), 6
    world.y = y
    times = torch.stack([interior(path, n, seed=k) for k in range(3)], 1).sort(1, descending=True).values
    times[0, 0], times[1, 2] = path.t_max, path.t_min
    x = path.sample(world.draw(n), normal(n, 2), times[:, 0], y)
    target = chord_target(world, path, x, times, y)
    b = [path.schedule(t)[1][:, None] * (0.0 if y is None else y) for t in times.T]
    z = x - b[0]
    for k in range(2):
        z = DDIM().step(path, z, world(z + b[k], times[:, k]), times[:, k], times[:, k + 1])
    (a_t, _, s_t), (a_s, _, s_s) = (path.schedule(times[:, k]) for k in (0, 2))
    one = (s_s / s_t)[:, None] * (x - b[0]) + (a_s - a_t * s_s / s_t)[:, None] * target
    scale = z.abs().amax(1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(one / scale, z / scale, rtol=1e-8, atol=1e-8)


def test_on_a_rectified_flow_the_target_velocity_is_the_chord():
    world, n = ring(FLOW), 16
    t = uniform(n, low=0.4)
    times = torch.stack([t, t - 0.1, t - 0.3], 1)
    x = FLOW.sample(world.draw(n), normal(n, 2), t)
    mid = x - 0.1 * (world(x, t).eps - world(x, t).x0)
    end = mid - 0.2 * (world(mid, t - 0.1).eps - world(mid, t - 0.1).x0)
    velocity = (x - chord_target(world, FLOW, x, times)) / t[:, None]
    torch.testing.assert_close(velocity, (end - x) / -0.3, rtol=1e-11, atol=1e-11)


def test_on_the_path_of_edm_the_target_is_the_official_one():
    path, world, n = EDM(), ring(EDM()), 16
    t = uniform(n, low=1.0, high=20.0)
    times = torch.stack([t, 0.7 * t, 0.4 * t], 1)
    x = path.sample(world.draw(n), normal(n, 2), t)

    def euler(x, t, s):  # of dx/dt = (x - D)/t
        return x + (s - t)[:, None] * (x - world(x, t).x0) / t[:, None]

    x3 = euler(euler(x, t, 0.7 * t), 0.7 * t, 0.4 * t)
    official = x - t[:, None] * (x3 - x) / (-0.6 * t)[:, None]
    torch.testing.assert_close(chord_target(world, path, x, times), official, rtol=1e-10, atol=1e-10)


def test_stages_halve_the_steps_and_the_last_take_longer():
    assert Halving(32).stages(1, 700) == (
        Stage(16, 0), Stage(8, 100), Stage(4, 200), Stage(2, 300), Stage(1, 500),
    )  # fmt: skip
    assert Halving(32, slow=0).stages(4, 90) == (Stage(16, 0), Stage(8, 30), Stage(4, 60))
    assert Halving(6).stages(3, 5) == (Stage(3, 0),)


@pytest.mark.parametrize(("start", "steps"), [(32, 3), (24, 4), (8, 8), (4, 8)])
def test_steps_that_cannot_be_reached_by_halving_are_refused(start, steps):
    with pytest.raises(ValueError, match=f"{start}.*{steps}"):
        Halving(start).stages(steps, 10)


def test_every_stage_has_its_own_schedule():
    schedule = EachStage(Cosine(), Halving(8).stages(1, 50))
    rates = [schedule(i, 50) for i in range(50)]
    assert rates[:10] == [Cosine()(i, 10) for i in range(10)]
    assert rates[10:30] == rates[30:] == [Cosine()(i, 20) for i in range(20)]


class Table(nn.Module):
    """x0 = k_t x with one number for each time of a grid of n steps."""

    def __init__(self, n):
        super().__init__()
        self.n, self.k = n, nn.Parameter(torch.zeros(n + 1, dtype=torch.float64))

    def forward(self, x, t):
        return self.k[(t * self.n).round().long()][:, None] * x


def test_a_perfect_learner_ends_where_the_first_teachers_steps_end():
    """On N(0, c^2) all x0 are k_t x, and a step multiplies by m(t, s) = s_s/s_t + (a_s - a_t s_s/s_t) k_t."""
    n, c, data = 32, 0.6, {"x0": 0.6 * normal(256, 1)}
    teacher = generator(Exact(gaussian(FLOW, 0.0, c)), steps=n)
    model = ProgressiveDistillation(teacher, 70, Halving(n), student=generator(Table(n)))
    t = torch.linspace(0, 1, n + 1).double()
    k = (1 - t) * c**2 / ((1 - t) ** 2 * c**2 + t**2)

    def times(i, j):  # the factor of one step from time i to time j of the table
        return t[j] / t[i] + ((1 - t[j]) - (1 - t[i]) * t[j] / t[i]) * k[i]

    for stage in model.stages:
        assert model.done == stage.begin
        torch.manual_seed(0)
        assert model.loss(data)["progressive"] > 1e-4
        stride = n // stage.steps
        new = k.clone()
        for i in range(stride, n + 1, stride):
            two = times(i, i - stride // 2) * times(i - stride // 2, i - stride)
            s = t[i - stride] / t[i]
            new[i] = (two - s) / ((1 - t[i - stride]) - (1 - t[i]) * s)
        k = new
        with torch.no_grad():
            model.student.denoiser.net.k.copy_(k)
        torch.manual_seed(0)
        assert model.loss(data)["progressive"] < 1e-24
        assert model.figures() == {"train/steps": stage.steps}
        while model.done < 70 and model.done + 1 not in [s.begin for s in model.stages]:
            model.after_step()
            model.done += 1
        model.after_step()
        model.done += 1
    noise = normal(9, 1)
    one, many = model.student.generate(noise), teacher.generate(noise, steps=n)
    assert model.student.steps == 1
    torch.testing.assert_close(one, many, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=name)
def test_steps_are_weighted_at_both_of_their_ends(weighting):
    teacher = generator(Exact(ring(FLOW)))
    model = ProgressiveDistillation(teacher, 9, Halving(8), weighting=weighting, distance=L1())
    with torch.no_grad():
        model.student.denoiser.net.gain.fill_(0.0)
    batch = {"x0": normal(40, 2)}
    torch.manual_seed(6)
    loss = model.loss(batch)["progressive"]
    torch.manual_seed(6)
    times = model.draw(40)
    x_t = FLOW.sample(batch["x0"], torch.randn_like(batch["x0"]), times[:, 0])
    target = chord_target(teacher.denoiser.bind(), FLOW, x_t, times)
    weight = weighting(times[:, 0], times[:, 2], FLOW)
    torch.testing.assert_close(loss, (weight * target.abs().mean(1)).mean())


def test_the_teacher_of_a_stage_is_the_student_of_the_last_one():
    model = ProgressiveDistillation(small(), 10, Halving(8), TeacherGuidance(1.0, 5.0, told=True))
    assert [s.begin for s in model.stages] == [0, 2, 6]
    batch, kept = labelled(8), None
    for _ in range(10):
        stage, began = model.stage(model.done), model.done in (2, 6)
        if began:
            kept = digest(model.student.denoiser.parameters())
        if stage > 0:
            assert digest(model.previous.parameters()) == kept
        cond, w, x, t = {"label": batch["label"]}, 1 + 4 * uniform(8), normal(8, 2), uniform(8, low=0.1)
        told = model.previous if stage else None
        wanted = TeacherGuidance(1.0, 5.0).teacher(small(), cond, None, w)(x, t).x0
        if told is not None:
            wanted = told.bind({**cond, "w": w})(x, t).x0
        assert torch.equal(model.stage_teacher(cond, None, w)(x, t).x0, wanted)
        before = digest(model.student.denoiser.parameters())
        steps_of_adam(model, batch, 1)
        assert digest(model.student.denoiser.parameters()) != before
    assert not any(p.requires_grad for p in model.previous.parameters())


def test_times_are_those_of_the_present_stage():
    model = ProgressiveDistillation(small(), 10, Halving(8))
    for done, steps in ((0, 4), (2, 2), (9, 1)):
        model.done = done
        times = model.draw(400)
        assert set(times[:, 0].tolist()) == {(k + 1) / steps for k in range(steps)}
        torch.testing.assert_close(times[:, 0] - times[:, 1], torch.full((400,), 0.5 / steps).double())
        torch.testing.assert_close(times[:, 0] - times[:, 2], torch.full((400,), 1 / steps).double())


def test_a_student_is_sampled_at_the_times_it_was_trained_at():
    class Crooked(Grid):
        def __call__(self, path, n):
            t = torch.linspace(1, 0, n + 1).double()
            return t ** (1 + 1 / n)  # of n steps it is not every other time of 2n

    model = ProgressiveDistillation(small(), 10, Halving(8), steps=2, grid=Crooked())
    assert model.student.grid == Explicit(tuple(Crooked()(FLOW, 8)[::4].tolist()))
    model.done = 9
    assert set(model.draw(50)[:, 0].tolist()) == set(model.student.grid(FLOW, 2)[:-1].tolist())
    for start, steps in ((8, 2), (24, 3), (42, 21)):  # thirds and sevenths are rounded
        assert ProgressiveDistillation(small(), 10, Halving(start), steps=steps).student.grid == Uniform()


class Points(L.LightningDataModule):
    """Random labelled points."""

    def batch(self, n, generator):
        return {"x0": torch.randn(n, 2, generator=generator), "label": torch.arange(n) % 3}

    def train_dataloader(self):
        return StatefulLoader(self, 6)

    def val_dataloader(self):
        return DataLoader([{k: v[0] for k, v in labelled(1).items()}])


class Stop(L.Callback):
    def __init__(self, at):
        self.at = at

    def on_train_batch_end(self, trainer, pl_module, *args):
        trainer.should_stop |= pl_module.done >= self.at


def fit(model, folder, stop=math.inf, ckpt_path=None):
    options = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    callbacks = [Stop(stop), Checkpoints(every=1)]
    options |= {"accelerator": "cpu", "max_epochs": -1, "logger": False, "limit_val_batches": 0}
    trainer = L.Trainer(**options, default_root_dir=folder, callbacks=callbacks)
    trainer.fit(model, datamodule=Points(), ckpt_path=ckpt_path, weights_only=True)


@pytest.mark.parametrize(
    ("method", "kill"),
    [
        (lambda: ProgressiveDistillation(small(dtype=torch.float32), 8, Halving(8), ToldTeacher(1.0, 5.0)), 3),
        (lambda: GuidedDistillation(small(dtype=torch.float32), 4, adapters=LowRank(2)), 2),
    ],
    ids=["progressive", "guided"],
)
def test_a_killed_run_resumes_bit_for_bit(tmp_path, method, kill):
    def told():
        model = method()
        if isinstance(model.guidance, ToldTeacher):  # its teacher is what stage 1 leaves
            net = with_scalars(small(dtype=torch.float32).denoiser.net, {"w": 10.0})
            model._teacher[0].denoiser = Denoiser(net, FLOW, U(), {"w": 3.0})
        return model

    whole, killed, resumed = told(), told(), told()
    fit(whole, tmp_path / "whole")
    fit(killed, tmp_path / "killed", stop=kill)
    assert killed.done == kill
    fit(resumed, tmp_path / "resumed", ckpt_path=tmp_path / "killed/last.ckpt")
    assert resumed.done == whole.done == whole.iterations
    for (key, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


# --- HiPA --------------------------------------------------------------------------------------------------------


def wave(n, k, axis):
    """cos of the k-th frequency along one axis of (1, 1, n, n)."""
    along = torch.cos(2 * math.pi * k * torch.arange(n).double() / n)
    return along.reshape([-1 if axis == j else 1 for j in range(2)]).expand(n, n)[None, None]


@pytest.mark.parametrize("axis", [0, 1])
def test_the_high_pass_keeps_frequencies_from_its_cut_off_on(axis):
    high = HighPass(0.5, SquaredL2()).high
    for k in range(9):
        x = wave(16, k, axis)
        torch.testing.assert_close(high(x), x if k >= 4 else torch.zeros_like(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 11), (2, 3, 8, 7), (2, 1, 4, 6, 5)])
def test_the_high_pass_is_a_projection(shape):
    a, b = normal(*shape), normal(*shape, seed=1)
    for cutoff in (0.0, 0.4, 0.9):
        high = HighPass(cutoff).high
        torch.testing.assert_close(high(high(a)), high(a), rtol=0, atol=1e-12)
        torch.testing.assert_close((high(a) * b).sum(), (a * high(b)).sum())  # symmetric
        assert HighPass(cutoff)(a, a).abs().max() == 0
    torch.testing.assert_close(HighPass(0.0, SquaredL2(), 3.0)(a, b), 3 * SquaredL2()(a, b))
    offset = HighPass(0.1)(a, b + 5.0)
    torch.testing.assert_close(offset, HighPass(0.1)(a, b))
    assert HighPass(0.1)(a, b).shape == (2,)


def test_edges_of_a_ramp_are_its_slopes():
    i, j = torch.meshgrid(torch.arange(5.0).double(), torch.arange(6.0).double(), indexing="ij")
    ramp = (0.3 * i - 0.7 * j + 2)[None, None]
    edges = Edges().edges(ramp)
    assert edges.shape == (1, 2, 3, 4)
    torch.testing.assert_close(edges[:, 0], torch.full((1, 3, 4), 0.3).double())
    torch.testing.assert_close(edges[:, 1], torch.full((1, 3, 4), -0.7).double())
    expected = torch.tensor([2 * (0.3 + 0.7) / 2]).double()
    torch.testing.assert_close(Edges(L1(), 2.0)(ramp, torch.zeros_like(ramp)), expected)
    assert Edges()(ramp, ramp + 4).max() < 1e-12


def test_edges_are_smoothed_across():
    across = normal(1, 1, 1, 7)
    picture = 3.0 * torch.arange(5.0).double()[:, None] * across
    smooth = (across[..., :-2] + 2 * across[..., 1:-1] + across[..., 2:]) / 4
    torch.testing.assert_close(Edges().edges(picture)[:, :1], 3 * smooth.expand(1, 1, 3, 5))


def test_frequencies_need_an_axis_to_have_them_along():
    for distance in (HighPass(), Edges()):
        with pytest.raises(ValueError, match=r"\(4, 2\)"):
            distance(normal(4, 2), normal(4, 2))
    with pytest.raises(ValueError, match="2, 2"):
        Edges()(normal(1, 1, 2, 2), normal(1, 1, 2, 2))
    with pytest.raises(ValueError, match=r"1\.5"):
        HighPass(1.5)


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 1, 3, padding=1).double()

    def forward(self, x, t):
        return self.conv(x) + t[:, None, None, None]


def test_hipa_trains_adapters_towards_the_many_steps_of_their_base():
    batch, base = {"x0": normal(4, 1, 6, 6)}, generator(Convolution())
    model = HiPA(generator(Convolution()), 9, LowRank(1))
    plain = TrajectoryRegression(generator(Convolution()), 9)
    losses = []
    for m in (model, plain):
        torch.manual_seed(2)
        losses.append(m.loss(batch))
    assert torch.equal(losses[0]["spatial"], losses[1]["distill"])
    torch.manual_seed(2)
    noise, target, *_ = plain.pairs(batch)
    own = base.generate(noise, steps=1)
    torch.testing.assert_close(losses[0]["highpass_0"], HighPass()(own, target).mean())
    torch.testing.assert_close(losses[0]["edges_1"], Edges()(own, target).mean())
    lora = model.student.denoiser.net
    before = digest(lora.base_parameters())
    steps_of_adam(model, batch)
    assert digest(lora.base_parameters()) == before
    assert torch.equal(model.teacher.generate(noise), base.generate(noise))
    assert not torch.equal(model.student.generate(noise), base.generate(noise, steps=1))
    assert HiPA(generator(Convolution()), 9, LowRank(1), details=()).loss(batch).keys() == {"spatial"}


# --- SpeedUpNet --------------------------------------------------------------------------------------------------


class ExactBranch(nn.Module):
    """(w - 1)(D_c - D_n), which takes D_c from the network."""

    def __init__(self):
        super().__init__()
        self.net, self.gain = [ExactClasses()], nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x, t, out, w, negative_label=None):
        label = torch.full((len(x),), 3) if negative_label is None else negative_label
        return self.gain * (w[:, None].double() - 1) * (out - self.net[0](x, t, label).detach())


def label_branch(hidden, depth):
    return LabelBranch(MLP(2, hidden, depth, scalars={"w": 10.0}, classes=3))


def test_a_new_branch_changes_nothing():
    net, x, t, label = small().denoiser.net, normal(6, 2), uniform(6), torch.arange(6) % 3
    wide = NegativeBranch(net, label_branch(16, 2).double())
    w, negative = uniform(6, low=1.0, high=5.0), (label + 1) % 3
    assert torch.equal(wide(x, t, w, label=label, negative_label=negative), net(x, t, label=label))
    assert wide.classes == 3
    assert "w" in wide.scalars


def test_the_answer_of_the_network_enters_the_branch_linearly():
    branch, (x, a, b) = scrambled(label_branch(8, 2).double()), normal(3, 5, 2)
    rest = (uniform(5, low=1.0, high=5.0), torch.arange(5) % 4)
    of = lambda out: branch(x, uniform(5), out, *rest)
    torch.testing.assert_close(of(a + 2 * b) - of(b * 0), of(a) - of(b * 0) + 2 * (of(b) - of(b * 0)))
    assert (of(a) - of(b)).abs().max() > 1e-3


def test_the_exact_branch_is_a_zero_of_both_losses():
    for substeps in (1, 3):
        step = TeacherStep(DDIM(), substeps)  # as many steps as the student: no step is longer
        model = SpeedUpNet(classes(), 1, ExactBranch(), segments=Segments(4), step=step, substeps=substeps)
        terms = model.loss(labelled(24))
        sum(terms.values()).backward()
        assert all(v < 1e-20 for v in terms.values())
        assert model.student.denoiser.net.branch.gain.grad.abs() < 1e-12
    with torch.no_grad():
        model.student.denoiser.net.branch.gain.zero_()
    assert all(v > 1e-3 for v in model.loss(labelled(24)).values())


def test_the_balance_of_the_two_losses():
    losses = []
    for weights in ({}, {"offset": 3.0, "multi": 0.5}):
        model = SpeedUpNet(small(), 1, label_branch(8, 1).double(), **weights)
        torch.manual_seed(5)
        losses.append(model.loss(labelled(24)))
    torch.testing.assert_close(losses[1]["offset"], 3 * losses[0]["offset"])
    torch.testing.assert_close(losses[1]["multi"], 0.5 * losses[0]["multi"])


def test_both_go_from_one_anchor_to_the_next():
    class Seen(TeacherStep):
        def __call__(self, teacher, path, x, t, s, y=None):
            seen.update(zip(t.tolist(), s.tolist(), strict=True))
            return super().__call__(teacher, path, x, t, s, y)

    seen = {}
    SpeedUpNet(classes(), 1, ExactBranch(), segments=Segments(4), step=Seen()).loss(labelled(60))
    assert seen == {1.0: 0.75, 0.75: 0.5, 0.5: 0.25, 0.25: 0.0}


def test_many_short_steps_are_matched_through_all_long_ones():
    world, n = ring(FLOW), 8
    student, teacher = generator(Table(8)), generator(Exact(world))
    with torch.no_grad():
        student.denoiser.net.k.copy_(uniform(9, seed=2))
    x, t, s = normal(n, 2), torch.full((n,), 1.0).double(), torch.full((n,), 0.25).double()
    f, ends = student.denoiser.bind(), TeacherStep(DDIM(), 6)
    loss = multi_step_loss(f, teacher.denoiser.bind(), FLOW, x, t, s, ends, steps=3)
    loss.sum().backward()
    grad = student.denoiser.net.k.grad
    assert grad[[8, 6, 4]].abs().min() > 1e-3  # at t = 1, 0.75, 0.5
    assert grad[[0, 1, 2, 3, 5, 7]].abs().max() == 0
    assert teacher.denoiser.net.gain.grad is None
    own = sample(f, x, FLOW, DDIM(), torch.tensor([1.0, 0.75, 0.5, 0.25]).double())
    far = sample(teacher.denoiser.bind(), x, FLOW, DDIM(), torch.linspace(1, 0.25, 7).double())
    torch.testing.assert_close(loss, (own - far).square().mean(1))
    k, z = student.denoiser.net.k.detach().requires_grad_(), x
    for i, j in ((8, 6), (6, 4), (4, 2)):
        z = z * (j / i + (1 - j / 8 - (1 - i / 8) * j / i) * k[i])
    torch.testing.assert_close(grad, torch.autograd.grad((z - far.detach()).square().mean(1).sum(), k)[0])


def test_negatives_are_those_of_others_or_empty():
    n, guidance = 4000, NegativeGuidance(1.0, 5.0, empty=0.25)
    cond = {"label": torch.arange(n) % 3, "size": normal(n, 2)}
    torch.manual_seed(0)
    drawn = guidance.draw_negatives(small(), cond)
    assert drawn.keys() == {"label", "size", "negative_label"}
    shares = torch.bincount(drawn["negative_label"], minlength=4) / n
    torch.testing.assert_close(shares, torch.full((4,), 0.25), rtol=0, atol=0.03)
    for own in range(3):  # whatever the own label is
        rows = drawn["negative_label"][cond["label"] == own]
        torch.testing.assert_close(torch.bincount(rows, minlength=4) / len(rows), shares, rtol=0, atol=0.05)


@pytest.mark.parametrize("options", [{"empty": -0.5}, {"empty": 1.5}, {"low": 3.0, "high": 1.0}])
def test_impossible_negative_guidance_is_refused(options):
    with pytest.raises(ValueError, match="|".join(map(str, options.values()))):
        NegativeGuidance(**options)


def test_the_teacher_is_guided_away_from_the_negatives():
    teacher, w = classes(), uniform(6, low=1.0, high=5.0)
    x, t, label = normal(6, 2), uniform(6, low=0.1), torch.arange(6) % 3
    negative = (label + 1) % 3
    guided = NegativeGuidance().teacher(teacher, {"label": label, "negative_label": negative}, None, w)
    c, n, u = (teacher.denoiser.net.x0(x, t, k) for k in (label, negative, torch.full_like(label, 3)))
    torch.testing.assert_close(guided(x, t).x0, c + (w - 1)[:, None] * (c - n))
    without = NegativeGuidance().teacher(teacher, {"label": label}, None, w)(x, t).x0
    torch.testing.assert_close(without, c + (w - 1)[:, None] * (c - u))


def test_only_the_branch_is_trained_and_it_fits_other_networks():
    model = SpeedUpNet(small(), 9, label_branch(16, 2).double())
    wide, batch = model.student.denoiser.net, labelled(12)
    base = digest(small().denoiser.net.parameters())
    assert wide.net is model.teacher.denoiser.net
    model.train()
    assert wide.branch.training
    assert not any(m.training for m in wide.net.modules())
    steps_of_adam(model, batch)
    assert digest(wide.net.parameters()) == base
    assert {id(p) for p in model.student.parameters() if p.requires_grad} == {id(p) for p in wide.branch.parameters()}
    x, t, w, label = normal(5, 2), uniform(5), torch.full((5,), 3.0).double(), torch.arange(5) % 3
    told = {"w": w, "label": label, "negative_label": label.flip(0)}
    assert (wide(x, t, **told) - wide.net(x, t, label=label)).abs().max() > 1e-3
    other = NegativeBranch(small(7).denoiser.net, wide.branch)
    gain = other(x, t, **told) - other.net(x, t, label=label)
    assert gain.abs().max() > 1e-3
    # Callers that say neither w nor a negative get the middle of the range against the empty condition.
    noise, cond = normal(5, 2), {"label": label}
    full = {**cond, "w": w, "negative_label": torch.full((5,), 3)}
    assert torch.equal(model.student.generate(noise, cond), model.student.generate(noise, full))
    assert model.evaluate(model.student, batch)["agreement"].isfinite().all()


def test_a_branch_travels_with_its_network(tmp_path):
    student = small(dtype=torch.float32)
    branch = scrambled(label_branch(8, 1))
    student.denoiser = Denoiser(NegativeBranch(student.denoiser.net, branch), FLOW, U(), {"w": 2.0})
    save(student, tmp_path / "artifact")
    noise, cond = torch.randn(4, 2), {"label": torch.arange(4), "negative_label": torch.zeros(4, dtype=torch.long)}
    assert torch.equal(load(tmp_path / "artifact").generate(noise, cond), student.generate(noise, cond))


def test_what_is_trained_is_the_adapters_where_there_are_any():
    plain = trainable(small().requires_grad_(False))
    assert all(p.requires_grad for p in plain.parameters())
    wide = trainable(NegativeBranch(small().denoiser.net, label_branch(8, 1)).requires_grad_(True))
    assert not any(p.requires_grad for p in wide.net.parameters())
    assert all(p.requires_grad for p in wide.branch.parameters())


# --- the teacher begins ------------------------------------------------------------------------------------------


SOLVERS = [DDIM(), GammaSampling(1.0), Heun(), DPMpp2M()]


def same(a, b):
    """Two samplings with the same generators."""
    return torch.equal(*(f(torch.Generator().manual_seed(4)) for f in (a, b)))


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
@pytest.mark.parametrize("kind", [TeacherFirst, TeacherSketch])
def test_no_first_step_is_the_student(kind, solver):
    student, noise, cond = small(1, steps=4, solver=solver), normal(8, 2), {"label": torch.arange(8) % 3}
    both = kind(student, small(2), first=0, cfg=3.0)
    assert same(lambda g: both.generate(noise, cond, generator=g), lambda g: student.generate(noise, cond, generator=g))


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
@pytest.mark.parametrize("first", [4, 9])
def test_all_steps_first_is_the_guided_teacher(solver, first):
    student, teacher = small(1, steps=4, solver=solver), small(2)
    noise, cond = normal(8, 2), {"label": torch.arange(8) % 3}
    both = TeacherFirst(student, teacher, first)
    assert same(
        lambda g: both.generate(noise, cond, generator=g),
        lambda g: teacher.generate(noise, cond, steps=4, solver=solver, generator=g),
    )
    guided = CFG(teacher.denoiser, 3.0, {"label": torch.tensor([3])}).bind(cond)
    both = TeacherFirst(student, teacher, first, cfg=3.0)
    assert same(
        lambda g: both.generate(noise, cond, generator=g),
        lambda g: sample(guided, noise, FLOW, solver, Uniform()(FLOW, 4), generator=g),
    )
    both = TeacherSketch(student, teacher, first, cfg=3.0, stop=0.0)
    assert same(
        lambda g: both.generate(noise, cond, generator=g),
        lambda g: sample(guided, noise, FLOW, DDIM(), Uniform()(FLOW, 8), generator=g),
    )


def test_the_steps_are_shared_out():
    student, teacher = classes(steps=4), classes()
    noise, cond = normal(6, 2), {"label": torch.arange(6) % 3}
    with torch.no_grad():
        student.denoiser.net.gain.fill_(0.7)
    for first in range(5):
        student.denoiser.net.calls = teacher.denoiser.net.calls = 0
        end = TeacherFirst(student, teacher, first, cfg=2.0).generate(noise, cond)
        assert (teacher.denoiser.net.calls, student.denoiser.net.calls) == (2 * first, 4 - first)
        x, net = noise, teacher.denoiser.net
        for i, t in enumerate((1.0, 0.75, 0.5, 0.25)):
            at = torch.full((6,), t).double()
            c, u = (net.x0(x, at, k) for k in (cond["label"], torch.full((6,), 3)))
            x0 = 2 * c - u if i < first else 0.7 * c
            x = x + (x0 - x) * 0.25 / t
        torch.testing.assert_close(end, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [TeacherFirst, TeacherSketch])
def test_an_anchor_is_kept(kind):
    path = ResidualShift(steps=4, kappa=0.5)
    y, noise = normal(5, 2), normal(5, 2, seed=1)
    world = gaussian(path, 0.4, 0.3, dim=2, y=y)
    net = generator(Exact(world), path, steps=4, solver=GammaSampling(1.0))
    g = lambda: torch.Generator().manual_seed(3)
    wanted = net.generate(noise, None, y, generator=g())
    if kind is TeacherFirst:
        for first in range(5):
            got = kind(net, net, first).generate(noise, None, y, generator=g())
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
        return
    grid = net.grid(path, 4)
    got = kind(net, net, 2, stop=float(grid[1]) + 0.01).generate(noise, None, y, generator=g())
    h = g()
    x1 = sample(net.denoiser.bind(None, y), path.start(noise, y), path, net.solver, grid[:2], y, h)
    x0 = net.denoiser.bind(None, y)(x1, float(grid[1])).x0
    xi = torch.randn(5, 2, dtype=torch.float64, generator=h)
    x2 = path.sample(x0, xi, grid[2].expand(5), y)
    wanted = sample(net.denoiser.bind(None, y), x2, path, net.solver, grid[2:], y, h)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_the_more_steps_the_teacher_takes_the_more_diverse_the_samples():
    world = ring(FLOW)
    weights = torch.tensor([0.65] + [0.05] * 7).double()  # a student that has nearly collapsed
    collapsed = Mixture(FLOW, world.means, 0.01 * torch.eye(2).double().expand(8, 2, 2), weights)
    student, teacher = generator(Exact(collapsed), steps=8), generator(Exact(world))
    noise, far = normal(1500, 2), []
    for first in range(9):
        with torch.no_grad():
            x = TeacherFirst(student, teacher, first).generate(noise)
        share = torch.bincount(torch.cdist(x, world.means).argmin(1), minlength=8) / len(x)
        far.append((share - 1 / 8).abs().sum().item() / 2)
    assert all(a >= b - 0.01 for a, b in pairwise(far)), far
    assert far[0] > 5 * far[-1], far


def test_a_sketch_stops_where_the_official_code_does():
    """t[:(t > stop).argmax() + 2][:-1] of data times warped by -(cos(pi t/2) - 1 + t); at the last one x0 is taken."""
    t = torch.linspace(0, 1, 17).double()
    t = t - (torch.cos(math.pi / 2 * t) - 1 + t)
    official = t[: int((t > 0.07).float().argmax()) + 2][:-1]
    assert len(official) == 5  # four Euler steps

    class Times(Exact):
        seen = []

        def forward(self, x, t):
            self.seen.append(t[0].item())
            return super().forward(x, t)

    teacher = generator(Times(ring(FLOW)), steps=16)
    teacher.grid = Explicit(tuple((1 - t).tolist()))
    grid = Explicit(tuple(math.cos(math.pi / 8 * k) for k in range(4)) + (0.0,))
    student = Generator(Denoiser(Exact(ring(FLOW)), FLOW, X0()), GammaSampling(1.0), grid, 4)
    both, noise = TeacherSketch(student, teacher, 1), normal(7, 2)
    x = noise
    for a, b in pairwise(official):  # dx/dt = x0 - eps in the time of the data
        e = ring(FLOW)(x, 1 - a.item())
        x = x + (b - a) * (e.x0 - e.eps)
    e = ring(FLOW)(x, 1 - official[-1].item())
    torch.testing.assert_close(both.sketch(noise, {}), x + (1 - official[-1]) * (e.x0 - e.eps), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.tensor(Times.seen), (1 - official).float())
    g = torch.Generator().manual_seed(0)
    own, g = both.generate(noise, generator=g), torch.Generator().manual_seed(0)
    x0 = both.sketch(noise, {})
    for s in grid.times[1:4]:
        fresh = torch.randn(7, 2, generator=g, dtype=torch.float64)
        x0 = ring(FLOW)((1 - s) * x0 + s * fresh, s).x0
    torch.testing.assert_close(own, x0, rtol=1e-12, atol=1e-12)


def test_a_sketch_is_made_below_its_time():
    teacher, noise = generator(Exact(ring(FLOW)), steps=4), normal(5, 2)
    for stop, at in ((0.76, 0.75), (0.75, 0.5), (0.5, 0.25), (2.0, 1.0)):
        both = TeacherSketch(generator(Exact(ring(FLOW))), teacher, stop=stop)
        x = noise
        for t in (1.0, 0.75, 0.5):
            if t > at:
                x = x + 0.25 * (ring(FLOW)(x, t).x0 - ring(FLOW)(x, t).eps)
        torch.testing.assert_close(both.sketch(noise, {}), ring(FLOW)(x, at).x0, rtol=1e-10, atol=1e-10)


def test_a_generator_that_the_teacher_begins_is_saved_whole(tmp_path):
    both = TeacherSketch(small(1, torch.float32, steps=3), small(2, torch.float32), 1, 2.0, 0.8)
    save(both, tmp_path / "artifact")
    again, noise, cond = load(tmp_path / "artifact"), torch.randn(4, 2), {"label": torch.arange(4) % 3}
    assert same(lambda g: again.generate(noise, cond, generator=g), lambda g: both.generate(noise, cond, generator=g))
    assert again.prepare({"x0": noise, **cond}).cond.keys() == {"label"}
    assert again.steps == 3


def test_students_that_cannot_start_in_the_middle_are_refused():
    with pytest.raises(ValueError, match="JumpGenerator"):
        TeacherFirst(JumpGenerator.of(generator(MLP(2, 8, 1))), small())
    with pytest.raises(ValueError, match="-1"):
        TeacherFirst(small(), small(), -1)


def test_a_schedule_without_stages_is_itself():
    assert [EachStage(Constant(3), (Stage(1, 0),))(i, 9) for i in range(9)] == [Constant(3)(i, 9) for i in range(9)]
