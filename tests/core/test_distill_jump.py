"""Methods that learn jumps or their derivatives: JVP, jump generators, CTM, SoundCTM, sCM, MeanFlow, shortcut
models."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from worlds import normal, uniform

import fewstep
from fewstep.convert import OnPath
from fewstep.converted import Converted, on_path
from fewstep.denoiser import Denoiser
from fewstep.distances import PseudoHuber, SquaredL2
from fewstep.distill.consistency import consistency_loss
from fewstep.distill.ctm import CTM, ctm_loss, gradient_norm, last_layer
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.jump_times import Halvings, TeacherSpans, TimePairs
from fewstep.distill.mean_flow import MeanFlow, mean_flow_loss, mean_flow_target
from fewstep.distill.scm import SCM, LogVariance, Normalise, scm_loss, tangent
from fewstep.distill.shortcut import Shortcut, shortcut_target
from fewstep.distill.sound_ctm import SoundCTM
from fewstep.distill.teacher_features import TeacherFeatures
from fewstep.distill.velocity import OfData, OfTeacher
from fewstep.generator import Generator, Prepared
from fewstep.grids import Explicit, Uniform
from fewstep.jump import JumpGenerator, jump_student, jumps
from fewstep.jvp import forward_mode_gap, jvp
from fewstep.nets import MLP
from fewstep.nets.unet import UNet
from fewstep.null_conditions import drop_conditions
from fewstep.paths import EDM, VE, VP, AnchoredFlow, RectifiedFlow, Trig, expand
from fewstep.per_sample import sample_each
from fewstep.precondition import EDMPrecondition
from fewstep.prediction import X0, Eps, U, V
from fewstep.solvers import DDIM, Heun
from fewstep.toy import Mixture, gaussian, ring
from fewstep.trig_flow import TrigFlow

FLOW = RectifiedFlow()


def close(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


class Exact(nn.Module):
    """The exact x0 of a world, times a weight of 1; calls counts its evaluations."""

    def __init__(self, world):
        super().__init__()
        self.world, self.calls = world, []
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x, t):
        self.calls.append(len(x))
        return self.weight * self.world(x, t).x0


class ExactJump(nn.Module):
    """The exact average velocity over [s, t] of a world on a straight path, where labels are times; times a weight of
    1."""

    def __init__(self, world):
        super().__init__()
        self.world, self.scalars = world, {"s": 1.0}
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.last = nn.Linear(2, 2, dtype=torch.float64)  # the identity, so that there is a last layer
        with torch.no_grad():
            self.last.weight.copy_(torch.eye(2))
            self.last.bias.zero_()

    def forward(self, x, t, s):
        now = self.world(x, t)
        end = torch.where(s == t, t + 1, s)  # anything else
        average = (x - self.world.flow_map(x, t, end)) / expand(t - end, x)
        velocity = self.world.path.velocity(now.x0, now.eps, t)
        return self.last(self.weight * torch.where(expand(s == t, x).bool(), velocity, average))


class Tanh(nn.Module):
    """An arbitrary smooth network of state, time, label and further scalars, in float64, with a last layer."""

    def __init__(self, dim=2, scalars=None, classes=0):
        super().__init__()
        self.dim, self.scalars, self.classes, self.time_scale = dim, dict(scalars or {}), classes, 1.0
        generator = torch.Generator().manual_seed(3)

        def matrix(*shape):
            return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.5)

        self.into, self.time, self.label = matrix(dim, 16), matrix(16), matrix(classes + 1, 16)
        self.embed = nn.Module()
        self.embed.further = nn.ParameterDict({k: matrix(16) for k in sorted(self.scalars)})
        self.last = nn.Linear(16, dim, dtype=torch.float64)
        with torch.no_grad():
            self.last.weight.copy_(matrix(dim, 16))
            self.last.bias.zero_()
        self.calls = []

    def forward(self, x, t, label=None, **scalars):
        self.calls.append(len(x))
        h = x @ self.into + t[:, None] * self.time
        h = h if label is None else h + self.label[label]
        for k, v in scalars.items():
            h = h + v[:, None] * self.embed.further[k]
        return self.last(h.tanh())


class Labelled(Generator):
    def prepare(self, batch):
        return Prepared(batch["x0"], {"label": batch["label"]}, None)

    def unconditional(self, cond):
        return {**cond, "label": torch.full_like(cond["label"], self.denoiser.net.classes)}


class LabelledJumps(JumpGenerator, Labelled):
    pass


def generator(net, path=FLOW, prediction=None, kind=Generator, steps=8):
    return kind(Denoiser(net, path, prediction or U()), Heun(), Uniform(), steps)


def jumper(net, path=FLOW, prediction=None, kind=JumpGenerator, **kwargs):
    return kind(Denoiser(net, path, prediction or U()), **kwargs)


def exact_teacher(world):
    return generator(Exact(world), world.path, X0())


def labelled_teacher():
    return generator(Tanh(classes=3), kind=Labelled)


def labelled_batch(n=12):
    return {"x0": normal(n, 2), "label": torch.arange(n) % 3}


def gradients(loss, module):
    return torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)


def velocity(world, x, t):
    e = world(x, t)
    return world.path.velocity(e.x0, e.eps, t)


# --- derivatives -------------------------------------------------------------------------------------------------


class Layers(nn.Module):
    """One of each layer with a rule of its own, with and without weights, and some without."""

    def __init__(self):
        super().__init__()
        self.conv, self.grouped = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1, groups=4, bias=False)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.norm, self.plain = nn.GroupNorm(4, 8), nn.GroupNorm(2, 8, affine=False)
        self.qkv, self.row, self.out = nn.Linear(8, 24), nn.LayerNorm(8), nn.Conv1d(8, 3, 1)
        self.time = nn.Linear(1, 8)

    def forward(self, x, t, **scalars):
        h = self.conv(x) + self.time(t[:, None])[:, :, None, None]
        h = self.up(self.plain(self.grouped(F.silu(self.norm(h)))))
        tokens = self.row(h.flatten(2).mT)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind()
        attended = F.scaled_dot_product_attention(q, k, v)
        fixed = F.scaled_dot_product_attention(q.mean() + torch.zeros_like(q), k, torch.ones_like(v), scale=0.3)
        h = tokens + (attended + fixed).movedim(1, 2).flatten(2)
        return self.out(h.mT).unflatten(-1, x.shape[2:])


def reference(f, at, along):
    """torch's own forward mode, one reverse pass through it."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.func.jvp(f, at, along)[1].detach()


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_the_derivative_through_every_kind_of_layer_is_torchs_own(memory):
    torch.manual_seed(0)
    net, x, t = Layers().double(), normal(3, 3, 4, 4), uniform(3)
    dx, dt = normal(3, 3, 4, 4, seed=1), normal(3, seed=2)
    expected = reference(net, (x, t), (dx, dt))
    ours = jvp(net.to(memory_format=memory), (x.contiguous(memory_format=memory), t), (dx, dt))
    close(ours, expected)
    assert not ours.requires_grad
    close(jvp(net, (x, t), (dx, dt), "difference", 1e-5), expected, 1e-6)


@pytest.mark.parametrize(
    ("net", "shape"),
    [(MLP(2, 16, 2, scalars={"s": 100.0}), (2,)), (UNet(3, 8, scalars={"s": 100.0}), (3, 8, 8))],
    ids=["mlp", "unet"],
)
def test_forward_mode_works_through_our_networks(net, shape):
    torch.manual_seed(0)
    net = net.double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    x, t, s, dx = normal(2, *shape), uniform(2), uniform(2, seed=1), normal(2, *shape, seed=2)
    f = lambda x, t: net(x, t, s=s)
    expected = reference(f, (x, t), (dx, torch.ones_like(t)))
    close(jvp(f, (x, t), (dx, torch.ones_like(t))), expected)
    close(jvp(f, (x, t), (dx, torch.ones_like(t)), "difference"), expected, 1e-5 * expected.abs().max().item())
    assert forward_mode_gap(net, x, t, s=s) is None


@pytest.mark.parametrize(
    "f",
    [
        lambda x, y: x * y + 2 * x - y * 3,
        lambda x, y: x / y - 2 / y + x / 3,
        lambda x, y: torch.add(x, y, alpha=2.0) + (x[:, :1] + y) + 1.0,
        lambda x, y: x @ y.mT + torch.div(y @ x.mT, 2.0, rounding_mode=None),
        lambda x, y: (x.float() * y).double() + x * y[:1],
    ],
)
def test_arithmetic_with_what_does_not_move(f):
    x, y, dx = normal(3, 3), 2 + uniform(3, 3), normal(3, 3, seed=1)
    zero = torch.zeros_like(x)
    close(jvp(f, (x, y), (dx, None)), torch.func.jvp(f, (x, y), (dx, zero))[1], 1e-7)
    close(jvp(f, (x, y), (None, dx)), torch.func.jvp(f, (x, y), (zero, dx))[1], 1e-7)
    close(jvp(f, (x, y), (dx, dx)), torch.func.jvp(f, (x, y), (dx, dx))[1], 1e-7)


def test_forward_mode_works_in_half_precision():
    torch.manual_seed(0)
    net = UNet(3, 8)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    x, t, dx = torch.randn(2, 3, 8, 8), torch.rand(2), torch.randn(2, 3, 8, 8)
    exact = jvp(net, (x, t), (dx, torch.ones(2)))
    with torch.autocast("cpu", torch.bfloat16):
        half = jvp(net, (x, t), (dx, torch.ones(2)))
    assert (half.float() - exact).norm() < 0.1 * exact.norm()


def test_an_argument_without_a_direction_stays():
    x, t, r = normal(4, 2), uniform(4), uniform(4, seed=1)
    f = lambda x, t, r: torch.sin(x * t[:, None]) * r[:, None]
    zero = torch.zeros_like(r)
    close(jvp(f, (x, t, r), (x, t, None)), jvp(f, (x, t, r), (x, t, zero)))
    for mode in ("forward", "difference"):
        assert torch.equal(jvp(lambda x, t, r: torch.cos(r), (x, t, r), (x, t, None), mode), zero)


@pytest.mark.parametrize("mode", ["forward", "difference"])
def test_dropout_masks_are_those_of_the_next_evaluation(mode):
    x = normal(64, 8)
    drop = lambda x: F.dropout(x, 0.5)  # linear: its derivative along x is itself
    torch.manual_seed(1)
    rate = jvp(drop, (x,), (x,), mode)
    close(rate, drop(x), 1e-6)


def test_weights_that_move_keep_torchs_rules():
    x, w = normal(3, 4), normal(4, 4, seed=1)
    close(jvp(lambda w: F.linear(x, w), (w,), (w,)), x @ w.mT)
    close(jvp(lambda w: F.linear(w, w), (w,), (w,)), 2 * w @ w.mT)


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x


class Kernel(nn.Module):
    def forward(self, x):
        return Twice.apply(x)


class Detach(nn.Module):
    def forward(self, x):
        return x.detach()


@pytest.mark.parametrize("odd", [Kernel, Detach])
def test_the_module_without_forward_mode_is_named_in_one_line(odd):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(2, 2)
            self.inner = nn.Sequential(nn.SiLU(), odd())

        def forward(self, x, t):
            return self.first(x) + self.inner(x)

    line = forward_mode_gap(Net(), torch.randn(2, 2), torch.rand(2))
    assert line is not None
    assert line.startswith(f"inner.1 ({odd.__name__})")
    assert "\n" not in line


# --- jumps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [VE(), FLOW, Trig(1.43), EDM()], ids=lambda p: type(p).__name__)
def test_i1_the_closed_form_jump_solves_the_flow(path):
    world = gaussian(path, 0.7, 0.6, dim=2)
    (t, s), n = {"VE": (0.6, 0.4), "EDM": (2.0, 0.5)}.get(type(path).__name__, (0.9, 0.2)), 60
    x = x0 = normal(8, 2)
    f = lambda x, t: velocity(world, x, torch.full((8,), t, dtype=torch.float64))
    h = (s - t) / n
    for i in range(n):
        a = t + i * h
        k1 = f(x, a)
        k2 = f(x + h / 2 * k1, a + h / 2)
        k3 = f(x + h / 2 * k2, a + h / 2)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + f(x + h * k3, a + h))
    close(x, world.flow_map(x0, t, s), 1e-6)


@pytest.mark.parametrize("path", [FLOW, EDM()], ids=lambda p: type(p).__name__)
def test_i6_jumps_compose_and_tend_to_the_denoiser(path):
    world = gaussian(path, 0.7, 0.6, dim=2)
    student, x = jumper(ExactJump(world), path), normal(8, 2)
    t, s, r = uniform(8, low=0.6, high=0.9), uniform(8, low=0.3, high=0.5), uniform(8, low=0.0, high=0.2)
    close(student.jump(student.jump(x, t, s), s, r), student.jump(x, t, r))
    close(student.jump(x, t, s), world.flow_map(x, t, s))
    near = t * (1 - 1e-6)
    g = student.estimate(x, t, near).x0
    close(g, world(x, t).x0, 3e-6)
    if isinstance(path, EDM):
        k = expand(near / t, x)
        close(g, (world.flow_map(x, t, near) - k * x) / (1 - k), 3e-6)
    average = (x - student.jump(x, t, s)) / expand(t - s, x)
    close(student.velocity(x, t, s), average)
    close(student.velocity(x, t, t), velocity(world, x, t))


@pytest.mark.parametrize("prediction", [X0(), Eps(), V(), U(), EDMPrecondition()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("path", [FLOW, Trig(), EDM(), AnchoredFlow(0.3)], ids=lambda p: type(p).__name__)
def test_a_jump_to_where_one_is_stays_there_exactly(path, prediction):
    student = jumper(Tanh(scalars={"s": 1.0}), path, prediction)
    x, y = normal(5, 2), normal(5, 2, seed=1) if path.anchored else None
    t = torch.tensor([0.0, 1e-3, 0.3, 0.7, 0.9], dtype=torch.float64)
    if isinstance(prediction, (X0, EDMPrecondition)):
        assert torch.equal(student.jump(x, t, t, y=y), x)
    assert torch.equal(student.jump(x, t, t, y=y)[1:], x[1:])


def test_before_training_a_jump_is_the_teachers_ddim_step():
    teacher = generator(MLP(2, 16, 2).double(), EDM(), EDMPrecondition())
    student = jumps(teacher)
    x, t, s = normal(6, 2), uniform(6, low=0.5, high=3.0), uniform(6, high=0.4)
    close(student.jump(x, t, s), DDIM().step(EDM(), x, teacher.denoiser(x, t), t, s))
    assert student.denoiser.net is not teacher.denoiser.net
    student.denoiser.net.first.weight.data.add_(1)
    assert not torch.equal(student.denoiser.net.first.weight, teacher.denoiser.net.first.weight)


def test_deterministic_jumps_of_the_exact_world_are_its_flow_map():
    world = gaussian(FLOW, 0.7, 0.6, dim=2)
    student, noise = jumper(ExactJump(world)), normal(8, 2)
    for steps in (1, 3):
        close(student.generate(noise, steps=steps), world.flow_map(noise, 1.0, 0.0))


def test_an_anchored_jump_keeps_the_anchor():
    path, y = AnchoredFlow(0.3), normal(6, 2, seed=4)
    world = Mixture(path, torch.full((1, 2), 0.7, dtype=torch.float64), 0.3 * torch.eye(2).double()[None], y=y)
    student, x = jumper(Tanh(scalars={"s": 1.0}), path, X0()), normal(6, 2)
    t, s = uniform(6, low=0.5, high=0.9), uniform(6, high=0.4)
    x0 = student.estimate(x, t, s, y=y).x0
    b_t, b_s = (expand(path.schedule(v)[1], x) for v in (t, s))
    z = DDIM().step(path, x - b_t * y, student.estimate(x, t, s, y=y), t, s)
    close(student.jump(x, t, s, y=y), z + b_s * y)
    close(student.velocity(x, t, s, y=y), (x - student.jump(x, t, s, y=y)) / expand(t - s, x))
    assert world.y is not None
    assert x0.shape == x.shape


def test_jumps_keep_the_front_end_of_their_teacher():
    teacher = labelled_teacher()
    student = jumps(teacher, gamma=0.3, nu=2.0)
    assert type(student) is LabelledJumps
    assert (student.gamma, student.nu, student.steps) == (0.3, 2.0, 1)
    assert jump_student(student, None) is not student
    with pytest.raises(ValueError, match="Generator does not jump"):
        jump_student(teacher, generator(MLP(2)))

    class Own(Generator):
        pass

    with pytest.raises(ValueError, match="front end of Own"):
        jumps(generator(MLP(2), kind=Own))


def test_nu_mixes_the_jumps_of_both_branches():
    student, noise = jumps(labelled_teacher()), normal(6, 2)
    with torch.no_grad():
        student.denoiser.net.into.mul_(3)
    label = torch.arange(6) % 3
    branch = lambda label: student.generate(noise, {"label": label})
    conditional, null = branch(label), branch(torch.full_like(label, 3))
    for nu in (0.0, 1.0, 2.5):
        student.nu = nu
        close(branch(label), nu * conditional + (1 - nu) * null)


def test_classes_of_images_jump():
    net = UNet(1, 8, classes=4, scalars={"s": 100.0})
    student = fewstep.jump.ClassJumps(Denoiser(net, FLOW, U()), steps=2)
    assert student(torch.tensor([0, 3]), noise=torch.randn(2, 1, 8, 8)).shape == (2, 1, 8, 8)


def test_jump_generators_are_artifacts(tmp_path):
    student = jumps(generator(MLP(2, 16, 2)), gamma=0.5)
    fewstep.save(student, tmp_path / "student")
    again, noise = fewstep.load(tmp_path / "student"), torch.randn(4, 2)
    runs = []
    for model in (student, again):
        runs.append(model.generate(noise, steps=2, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(*runs)


# --- times -------------------------------------------------------------------------------------------------------


def test_time_pairs_have_their_share_of_equal_times_at_the_end():
    torch.manual_seed(0)
    t, r, m = TimePairs(equal=0.75)(4000, FLOW)
    assert m == 1000
    assert (r[:m] < t[:m]).all()
    assert torch.equal(r[m:], t[m:])
    # t is the larger of two logit-normal draws in all of the batch: the same distribution in both parts.
    assert abs(t[:m].mean() - t[m:].mean()) < 0.03
    first, second = (torch.sigmoid(-0.4 + normal(4000, seed=k)) for k in (1, 2))
    assert abs(t.mean() - torch.maximum(first, second).mean()) < 0.02


def test_spans_lie_on_the_grid_and_end_above_s():
    torch.manual_seed(0)
    spans, grid, lengths, at_end = TeacherSpans(6), Uniform()(FLOW, 6), [], []
    for _ in range(400):
        times, s = spans(8, FLOW)
        k = times.shape[1] - 1
        first = (grid[:, None] == times[:, 0]).int().argmax(0)
        assert torch.equal(times, grid[first[:, None] + torch.arange(k + 1)])
        assert ((grid[:, None] == s).any(0) & (s <= times[:, -1])).all()
        lengths.append(k)
        at_end.append((s == 0).double().mean().item())
    counts = torch.bincount(torch.tensor(lengths), minlength=7)[1:] / 400
    assert (counts - torch.arange(1, 7) / 21).abs().max() < 0.06  # P(k) ~ k
    assert torch.tensor(at_end)[torch.tensor(lengths) == 6].min() == 1  # no other end is left
    with pytest.raises(ValueError, match="7"):
        TeacherSpans(6, longest=7)


def test_halvings_are_binary_jumps_on_their_multiples():
    torch.manual_seed(0)
    t, s, m = Halvings(16, 0.5)(4000, FLOW)
    assert m == 2000
    parts = 1 / (t - s)[:m]
    assert torch.equal(parts.log2().round(), parts.log2())
    assert set(parts.tolist()) == {1.0, 2.0, 4.0, 8.0, 16.0}
    assert (torch.bincount(parts.log2().long()) / m - 0.2).abs().max() < 0.04
    assert torch.equal((s[:m] * parts).round(), s[:m] * parts)
    assert torch.equal(t[m:], s[m:])
    assert t[m:].min() == 1 / 16
    for bad in ((12, 0.5), (0, 0.5), (16, 1.5)):
        with pytest.raises(ValueError, match=str(bad[0])):
            Halvings(*bad)


def test_dropped_conditions_are_those_of_the_unconditional_branch():
    teacher, batch = labelled_teacher(), labelled_batch(3000)
    torch.manual_seed(0)
    cond, kept = drop_conditions(teacher, {"label": batch["label"]}, batch["x0"], 0.1)
    assert torch.equal(cond["label"], torch.where(kept, batch["label"], 3))
    assert abs(kept.double().mean() - 0.9) < 0.02
    state = torch.get_rng_state()
    drop_conditions(teacher, cond, batch["x0"], 0.0)
    assert torch.equal(state, torch.get_rng_state())


# --- CTM ---------------------------------------------------------------------------------------------------------


def spanned(n=16, seed=0):
    return uniform(n, seed=seed, low=0.7, high=1.0), uniform(n, seed=seed + 1, low=0.4, high=0.6), uniform(n, high=0.3)


def test_the_exact_jump_has_zero_ctm_loss_and_zero_gradient():
    world = gaussian(FLOW, 0.7, 0.6, dim=2)
    student, x_t = jumper(ExactJump(world)), normal(16, 2)
    t, u, s = spanned()
    push = lambda x, s: student.jump(x, s, torch.zeros_like(s))
    loss = ctm_loss(student.jump, student.jump, push, x_t, t, world.flow_map(x_t, t, u), u, s, SquaredL2())
    assert loss.shape == (16,)
    assert loss.max() < 1e-20
    assert all(g.abs().max() < 1e-9 for g in gradients(loss.mean(), student))
    wrong = ctm_loss(student.jump, student.jump, push, x_t, t, x_t, u, s, SquaredL2())
    assert wrong.min() > 1e-4


@pytest.mark.parametrize("path", [FLOW, EDM(3.0)], ids=lambda p: type(p).__name__)
def test_the_loss_of_the_exact_jump_is_the_error_of_the_teachers_steps(path):
    world, losses = gaussian(path, 0.7, 0.6, dim=2), []
    for steps in (8, 16, 32):
        spans = TeacherSpans(steps, Uniform(), longest=steps // 8, power=50.0)  # always the longest
        model = CTM(exact_teacher(world), 1, jumper(ExactJump(world), path), spans, denoising=0.0, distance=SquaredL2())
        torch.manual_seed(0)
        losses.append(model.loss({"x0": world.draw(256)})["consistency"].item())
    assert losses[2] < 1e-6
    assert losses[0] / losses[1] > 8  # Heun's error over an interval falls as h^2, its square as h^4
    assert losses[1] / losses[2] > 8


def test_jumps_to_the_clean_end_are_consistency_distillation():
    teacher = generator(Tanh())
    student = JumpGenerator(Denoiser(Tanh(scalars={"s": 1.0}), FLOW, U()))
    x_t, x_u = normal(16, 2), normal(16, 2, seed=1)
    (t, u, _), end = spanned(), torch.zeros(16, dtype=torch.float64)
    f = lambda x, t: student.estimate(x, t, torch.zeros_like(t)).x0
    push = lambda x, s: student.jump(x, s, torch.zeros_like(s))
    ours = ctm_loss(student.jump, student.jump, push, x_t, t, x_u, u, end, PseudoHuber())
    assert torch.equal(ours, consistency_loss(f, f, x_t, t, x_u, u, end, PseudoHuber()))
    assert teacher.steps == 8


def test_ctm_gradients_go_through_the_online_jump_alone():
    model = CTM(generator(Tanh()), 10, jumper(Tanh(scalars={"s": 1.0})), TeacherSpans(6), mu=0.9)
    with torch.no_grad():
        model.target.net.denoiser.net.into.mul_(1.3)  # so that it is not the student
    torch.manual_seed(0)
    terms = model.loss({"x0": normal(8, 2)})
    ours = gradients(terms["consistency"], model.student)
    # By hand, with the same draws.
    torch.manual_seed(0)
    grid, s = model.spans(8, FLOW)
    x_t = FLOW.sample(normal(8, 2), torch.randn(8, 2, dtype=torch.float64), grid[:, 0])
    net, frozen, zero = model.student, model.target.net, torch.zeros(8, dtype=torch.float64)
    with torch.no_grad():
        x_u = sample_each(model.teacher.denoiser.bind(), x_t, FLOW, Heun(), grid)
        wanted = frozen.jump(net.jump(x_u, grid[:, -1], s), s, zero)
    by_hand = PseudoHuber()(frozen.jump(net.jump(x_t, grid[:, 0], s), s, zero), wanted).mean()
    close(terms["consistency"], by_hand)
    for a, b in zip(ours, gradients(by_hand, net), strict=True):
        close(a, b)
    sum(terms.values()).backward()
    assert all(p.grad is None for p in [*model.teacher.parameters(), *frozen.parameters()])
    assert all(p.grad is not None for n, p in net.named_parameters() if not n.endswith("label"))


class WithMore(CTM):
    """CTM with a further term, as an adversary would be."""

    scale = 1.0

    def further(self, x0, x_t, t, cond, y):
        fake = self.student.jump(x_t, t, torch.zeros_like(t), cond, y)
        return {"more": self.scale * fake.square().mean()}


def test_terms_are_balanced_by_their_gradients_at_the_last_layer():
    def terms(scale, denoising=1.0):
        model = WithMore(generator(Tanh()), 10, jumper(Tanh(scalars={"s": 1.0})), TeacherSpans(6), denoising=denoising)
        model.scale = scale
        torch.manual_seed(0)
        losses = model.loss({"x0": normal(32, 2)})
        return losses, {k: gradient_norm(v, last_layer(model.student)).item() for k, v in losses.items()}

    norms = terms(1.0)[1]
    assert norms.keys() == {"consistency", "denoising", "more"}
    assert norms["denoising"] == pytest.approx(norms["consistency"], rel=0.01)
    assert norms["more"] == pytest.approx(norms["consistency"], rel=0.01)
    assert terms(1e-9, 2.0)[1]["more"] == pytest.approx(1e-8 * terms(1.0, 0.0)[1]["more"] / ratio(terms), rel=0.01)


def ratio(terms):
    """The balancing factor of the further term at scale 1."""
    losses, _ = terms(1.0, 0.0)
    plain, _ = terms(1e-9, 0.0)
    return (losses["more"] / (plain["more"] / 10 * 1e9)).item()


def test_ctm_needs_a_frozen_average():
    with pytest.raises(ValueError, match="mu"):
        CTM(generator(MLP(2)), 1, mu=0.0)


def test_the_last_layer_is_the_one_that_is_trained():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2), nn.Embedding(2, 2))
    assert last_layer(net) is net[1].weight
    net[1].requires_grad_(False)
    assert last_layer(net) is net[0].weight
    with pytest.raises(ValueError, match="Embedding"):
        last_layer(nn.Embedding(2, 2))


# --- SoundCTM ----------------------------------------------------------------------------------------------------


def test_the_distance_in_the_teachers_layers():
    net = MLP(2, 16, 3).double()
    x, near, t = normal(6, 2), normal(6, 2) + 1e-3, uniform(6)
    measure = TeacherFeatures(Denoiser(net, FLOW, U()), t, ("rest.0", "rest.1"))
    assert torch.equal(measure(x, x), torch.zeros(6, dtype=torch.float64))
    layer = {}
    for name in ("0", "1"):
        net.rest[int(name)].register_forward_hook(lambda m, i, out, name=name: layer.__setitem__(name, out))

    def features(v):
        net(v, t)
        return [F.normalize(layer[k], dim=1) for k in ("0", "1")]

    expected = sum((a - b).square().mean(1) for a, b in zip(features(x), features(near), strict=True))
    close(measure(x, near), expected)
    b = near.requires_grad_(True)
    grad = torch.autograd.grad(measure(x.requires_grad_(True), b).sum(), (x, b), allow_unused=True)
    assert grad[0].abs().max() > 0
    assert grad[1] is None
    for layers in ((), ("rest.7",)):
        with pytest.raises(ValueError, match=r"rest\.0"):
            TeacherFeatures(Denoiser(net, FLOW, U()), t, layers)(x, near)


def test_sound_ctm_compares_at_s_and_tells_the_student_its_guidance():
    seen = []

    class Recording(SoundCTM):
        def measure(self, s, cond, y):
            distance = super().measure(s, cond, y)
            assert torch.equal(distance.t, s)
            assert "w" not in distance.cond
            seen.append(distance.cond["label"])
            return distance

    teacher = labelled_teacher()
    # `tell` rebuilds networks from their arguments: the student's is made with its conditions here.
    student = jumper(Tanh(scalars={"s": 1.0, "w": 0.1}, classes=3), kind=LabelledJumps)
    model = Recording(teacher, 10, ("last",), student=student, spans=TeacherSpans(4), drop=1.0)
    torch.manual_seed(0)
    terms = model.loss(labelled_batch())
    assert (seen[0] == 3).all()  # every condition is dropped
    assert model.student.denoiser.told["w"] == 3.5
    assert {k for k, v in terms.items() if torch.isfinite(v)} == {"consistency", "denoising"}
    sum(terms.values()).backward()
    assert all(p.grad is None for p in model.target.net.parameters())
    assert model.student.denoiser.net.embed.further["w"].grad.abs().max() > 0
    assert not torch.is_grad_enabled() or model.teacher.denoiser.net.into.grad is None


def test_a_student_that_is_the_teachers_flow_has_zero_sound_ctm_loss():
    world = gaussian(FLOW, 0.7, 0.6, dim=2)
    student, x_t = jumper(ExactJump(world)), normal(16, 2)
    t, u, s = spanned()
    measure = TeacherFeatures(Denoiser(MLP(2, 16, 2).double(), FLOW, U()), s, ("first", "last"))
    loss = ctm_loss(student.jump, student.jump, lambda x, s: x, x_t, t, world.flow_map(x_t, t, u), u, s, measure)
    assert loss.max() < 1e-20
    assert all(g.abs().max() < 1e-9 for g in gradients(loss.mean(), student))


# --- sCM ---------------------------------------------------------------------------------------------------------

SD = 1.43


class ExactConsistency(nn.Module):
    """The F of the exact consistency function of one Gaussian on the trigonometric path, shown x/sd; times a weight of
    1."""

    def __init__(self, world):
        super().__init__()
        self.world = world
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x, t):
        sd = self.world.path.sigma_data
        x = x * sd
        f = self.world.flow_map(x, t, torch.zeros_like(t))
        return self.weight * (expand(t.cos(), x) * x - f) / (sd * expand(t.sin(), x))


def scm(world, net, **kwargs):
    path = world.path
    student = generator(net, path, TrigFlow(path.sigma_data))
    return SCM(exact_teacher(world), 10, student=student, warmup=kwargs.pop("warmup", 0), **kwargs)


@pytest.mark.parametrize("sd", [1.0, SD])
def test_i2_the_tangent_is_the_derivative_of_the_consistency_function(sd):
    path = Trig(sd)
    net, x, dx = Denoiser(Tanh(), path, TrigFlow(sd)), normal(16, 2), normal(16, 2, seed=1)
    t = uniform(16, low=0.05, high=1.5)

    def F(x, t):
        e = net(x, t)
        return path.velocity(e.x0, e.eps, t) / sd

    speed = t.cos() * t.sin()
    g = tangent(F(x, t), jvp(F, (x, t), (expand(speed, x) * dx, speed)), x, dx, t, sd, 1.0)
    h = 1e-5
    ahead, behind = (net(x + k * dx, t + k).x0 for k in (h, -h))
    close(g, expand(t.cos(), x) * (ahead - behind) / (2 * h), 1e-7)
    close(net(x, t).x0, expand(t.cos(), x) * x - sd * expand(t.sin(), x) * net.net(x / sd, t))


def test_the_trivial_world_has_no_flow_and_a_student_that_is_not_its_teacher():
    world, x, t = gaussian(Trig(SD), 0.0, SD, dim=2), normal(16, 2), uniform(16, low=0.1, high=1.5)
    close(velocity(world, x, t), torch.zeros_like(x))
    close(world.flow_map(x, t, 0.0), x)
    close(ExactConsistency(world)(x / SD, t), -expand((t / 2).tan(), x) * x / SD)


@pytest.mark.parametrize("per_element", [False, True])
def test_i3_the_exact_consistency_function_has_zero_tangent_loss_and_gradient(per_element):
    world = gaussian(Trig(SD), 0.7, 0.6, dim=2)
    model = scm(world, ExactConsistency(world), normalise=Normalise(per_element=per_element))
    loss = model.loss({"x0": world.draw(64)})["scm"]
    assert loss.abs() < 1e-20
    assert gradients(loss, model.student)[0].abs() < 1e-12
    with torch.no_grad():
        model.student.denoiser.net.weight.fill_(1.1)
    assert gradients(model.loss({"x0": world.draw(64)})["scm"], model.student)[0] > 1e-3


@pytest.mark.parametrize("sd", [1.0, 0.5])
def test_i4_a_flow_taken_to_trigflow_is_sana_sprints_transformation(sd):
    # The flow knows the data z, TrigFlow's are sd z: SANA's unit.
    flow = gaussian(FLOW, torch.tensor([0.7, -0.2]), torch.tensor([0.6, 1.3]), dim=2)
    trig = gaussian(Trig(sd), sd * flow.means[0], sd * flow.ev[0].flip(0).sqrt(), dim=2)
    trig.ev, trig.q = sd**2 * flow.ev, flow.q
    velocity_net = lambda x, t: velocity(flow, x, t)
    x, t = normal(16, 2), uniform(16, low=0.02, high=1.55)
    sin, cos = t.sin(), t.cos()
    t_f = sin / (sin + cos)
    k = (t_f**2 + (1 - t_f) ** 2).sqrt()
    x_f = expand(k, x) * x / sd
    sana = (expand(1 - 2 * t_f, x) * x_f + expand(1 - 2 * t_f + 2 * t_f**2, x) * velocity_net(x_f, t_f)) / expand(k, x)
    close(sana, velocity(trig, x, t) / sd)

    class Net(nn.Module):
        def forward(self, x, t):
            return velocity_net(x, t)

    ours = Denoiser(Net(), Trig(), Converted(U(), FLOW))
    e = ours(x / sd, t)
    close(ours.path.velocity(e.x0, e.eps, t), sana)
    close(OnPath(lambda x, t: Denoiser(Net(), FLOW, U())(x, t), FLOW, Trig())(x / sd, t).x0, e.x0)


@pytest.mark.parametrize("prediction", [X0(), Eps(), U(), EDMPrecondition()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("trained", [FLOW, VP(), EDM(), AnchoredFlow(0.3)], ids=lambda p: type(p).__name__)
def test_a_converted_network_is_the_wrapper_and_moves_in_time(trained, prediction):
    sampled = AnchoredFlow(0.5) if trained.anchored else Trig(0.8)
    net = Denoiser(Tanh(), trained, prediction)
    ours = Denoiser(net.net, sampled, Converted(prediction, trained))
    x, t, y = normal(8, 2), uniform(8, low=0.1, high=0.95), normal(8, 2, seed=1) if trained.anchored else None
    wrapper = OnPath(net.bind(y=y), trained, sampled, y)
    estimate, expected = ours(x, t, y=y), wrapper(x, t)
    close(estimate.x0, expected.x0)
    close(estimate.eps, expected.eps)
    x0 = lambda x, t: ours(x, t, y=y).x0
    h = 1e-6
    difference = (x0(x + h * x, t + h) - x0(x - h * x, t - h)) / (2 * h)
    close(jvp(x0, (x, t), (x, torch.ones_like(t))), difference, 1e-6)


def test_a_converted_generator_samples_as_its_teacher():
    teacher = generator(Exact(ring(FLOW)), FLOW, X0(), steps=64)
    trig, noise = on_path(teacher, Trig(), Uniform()), normal(32, 2)
    close(trig.generate(noise), teacher.generate(noise), 0.02)
    assert trig.denoiser.net is not teacher.denoiser.net


def test_the_scm_gradient_is_that_of_the_tangent():
    net = Denoiser(Tanh(), Trig(SD), TrigFlow(SD))
    x, t, g, w = normal(8, 2), uniform(8, low=0.1, high=1.5), normal(8, 2, seed=1), normal(8, seed=2)
    out = net.net(x / SD, t)
    loss = scm_loss(out, g, t, SD, w)
    close(loss, (-w).exp() / (SD * t.tan()) * g.square().mean(1) + w)
    expected = -2 * g / (2 * SD * t.tan() * w.exp())[:, None]  # 2 elements
    close(torch.autograd.grad(loss.sum(), out, retain_graph=True)[0], expected)


def test_the_learned_weight_settles_at_the_log_of_the_loss():
    out, g, t = normal(8, 2), normal(8, 2, seed=1), uniform(8, low=0.1, high=1.5)
    w = (g.square().mean(1) / (SD * t.tan())).log().requires_grad_(True)
    close(torch.autograd.grad(scm_loss(out, g, t, SD, w).sum(), w)[0], torch.zeros(8, dtype=torch.float64))
    weight = LogVariance().double()
    assert torch.equal(weight(t), torch.zeros_like(t))
    with torch.no_grad():
        weight.series.copy_(normal(16))
    close(weight(t), sum(a * torch.cos(2 * k * t) for k, a in enumerate(weight.series)))


def test_tangents_are_normalised_by_the_whole_sample_or_per_element():
    g = normal(4, 3, 5)
    whole, each = Normalise(0.1), Normalise(0.1, per_element=True)
    close(whole(g)[1], g[1] / (g[1].norm() + 0.1))
    close(each(g)[1], g[1] / (g[1].norm() / math.sqrt(15) + 0.1))


def test_the_warm_up_follows_the_iterations_done():
    world = gaussian(Trig(), 0.7, 0.6, dim=2)
    model = scm(world, Tanh(), warmup=4)
    shares = []
    for model.done in range(6):
        shares.append(model.warm)
    assert shares == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    x, dx, f, rate, t = (normal(4, 2, seed=k) for k in range(4)), None, None, None, uniform(4)
    x, dx, f, rate = x
    cos = expand(t.cos(), x)
    close(tangent(f, rate, x, dx, t, 1.0, 0.0), -(cos**2) * (f - dx))


def test_scm_from_data_is_scm_from_the_teacher_in_the_mean():
    # The tangent is linear in dx/dt, whose mean over the pairs of a state is the teacher's.
    path = Trig()
    world, net = gaussian(path, 0.7, 0.6, dim=2), Denoiser(Tanh(), path, U())
    x = torch.full((40_000, 2), 0.4, dtype=torch.float64)
    t = torch.full((40_000,), 0.8, dtype=torch.float64)
    torch.manual_seed(0)
    mean, var = world(x[:1], t[:1]).x0, 1 / (1 / 0.36 + (math.cos(0.8) / math.sin(0.8)) ** 2)
    x0 = mean + math.sqrt(var) * torch.randn_like(x)  # of the posterior at x
    eps = (x - math.cos(0.8) * x0) / math.sin(0.8)
    F = lambda x, t: net.net(x, t)
    speed = t.cos() * t.sin()

    def g(dx):
        return tangent(F(x, t), jvp(F, (x, t), (expand(speed, x) * dx, speed)), x, dx, t, 1.0, 1.0).mean(0)

    own, taught = OfData(), OfTeacher()
    close(g(own(world, path, x0, eps, x, t)), g(taught(world, path, x0, eps, x, t)), 0.02)


def test_scm_evaluates_the_teacher_once_and_the_student_twice():
    world = gaussian(Trig(), 0.7, 0.6, dim=2)
    net = Tanh()
    model = scm(world, net)
    calls = model.student.denoiser.net.calls
    calls.clear()
    model.loss({"x0": world.draw(8)})["scm"].backward()
    assert calls == [8, 8]
    assert model.teacher.denoiser.net.calls == [8]
    assert model.teacher.denoiser.net.weight.grad is None
    assert model.weight.series.grad is not None


def test_the_optimiser_has_the_weight_and_the_student_that_is_saved_has_not():
    model = scm(gaussian(Trig(), 0.7, 0.6, dim=2), Tanh())
    trained = {id(p) for group in model.configure_optimizers().param_groups for p in group["params"]}
    assert trained == {id(p) for p in [*model.student.parameters(), model.weight.series]}
    assert "weight.series" in model.state_dict()
    assert not any("series" in k for k in model.student.state_dict())


def test_scm_is_on_the_trigonometric_path():
    with pytest.raises(ValueError, match="RectifiedFlow"):
        SCM(generator(MLP(2)), 1)


# --- MeanFlow ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [FLOW, EDM(3.0)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("mode", ["forward", "difference"])
def test_i5_the_exact_average_velocity_is_its_own_target(path, mode):
    world = gaussian(path, 0.7, 0.6, dim=2)
    student, x = jumper(ExactJump(world), path), normal(16, 2)
    t, r = uniform(16, low=0.5, high=1.0), uniform(16, high=0.45)
    target = mean_flow_target(student.velocity, x, velocity(world, x, t), t, r, mode)
    close(target, student.velocity(x, t, r), 1e-12 if mode == "forward" else 1e-7)
    assert not target.requires_grad


def test_a_student_that_is_the_flow_has_zero_mean_flow_loss_and_gradient():
    world = gaussian(FLOW, 0.7, 0.6, dim=2)
    for equal in (0.0, 0.75):
        model = MeanFlow(
            exact_teacher(world), 1, jumper(ExactJump(world)), TimePairs(equal=equal), OfTeacher(), power=0.0
        )
        loss = model.loss({"x0": world.draw(64)})["mean_flow"]
        assert loss < 1e-20
        assert all(g.abs().max() < 1e-9 for g in gradients(loss, model.student))


def test_mean_flow_without_intervals_is_flow_matching():
    model = MeanFlow(generator(Tanh()), 1, jumper(Tanh(scalars={"s": 1.0})), TimePairs(equal=1.0), power=0.0)
    x0 = normal(16, 2)
    torch.manual_seed(0)
    ours = model.loss({"x0": x0})["mean_flow"]
    torch.manual_seed(0)
    eps = torch.randn_like(x0)
    t = model.times(16, FLOW)[0]
    x_t = FLOW.sample(x0, eps, t)
    out = model.student.denoiser.net(x_t, t, s=t)
    close(ours, (out - (eps - x0)).square().sum(1).mean(), 1e-12)


@pytest.mark.parametrize(("power", "c"), [(0.0, 1.0), (1.0, 1e-2), (0.75, 1e-3)])
def test_the_adaptive_weight_has_no_gradient(power, c):
    pred, target = normal(6, 2, 3).requires_grad_(True), normal(6, 2, 3, seed=1).requires_grad_(True)
    loss = mean_flow_loss(pred, target, power, c)
    d = (pred - target).detach()
    square = d.square().flatten(1).sum(1)
    close(loss, square / (square + c) ** power)
    grads = torch.autograd.grad(loss.sum(), (pred, target), allow_unused=True)
    close(grads[0], 2 * d / expand((square + c) ** power, d))
    assert grads[1] is None


def test_the_guided_velocity_is_made_inside_the_target():
    teacher = labelled_teacher()
    model = MeanFlow(teacher, 1, w=2.0, k=0.3, student=jumper(Tanh(scalars={"s": 1.0}, classes=3), kind=LabelledJumps))
    x, t, v, label = normal(6, 2), uniform(6), normal(6, 2, seed=1), torch.arange(6) % 3
    u = lambda label: model.student.velocity(x, t, t, {"label": label})
    expected = 2.0 * v + 0.3 * u(label) + (1 - 2.3) * u(torch.full_like(label, 3))
    close(model.guided(v, x, t, {"label": label}, None), expected)
    # What has lost its condition is trained on the plain velocity.
    batch = labelled_batch(64)
    targets = {}
    for w in (1.0, 2.0):
        model.w, model.k, model.drop, model.power = w, 0.0, 1.0, 0.0
        torch.manual_seed(0)
        targets[w] = model.loss(batch)["mean_flow"]
    assert torch.equal(targets[1.0], targets[2.0])


@pytest.mark.parametrize(("equal", "calls"), [(0.75, [4, 16]), (0.0, [16, 16]), (1.0, [16])])
def test_the_derivative_is_taken_where_times_differ_alone(equal, calls):
    model = MeanFlow(generator(Tanh()), 1, jumper(Tanh(scalars={"s": 1.0})), TimePairs(equal=equal))
    net = model.student.denoiser.net
    model.loss({"x0": normal(16, 2)})
    assert net.calls == calls
    assert model.teacher.denoiser.net.calls == []  # the data's velocity needs none


def test_conditions_follow_their_samples_into_the_derivative():
    teacher = labelled_teacher()
    model = MeanFlow(teacher, 1, jumper(Tanh(scalars={"s": 1.0}, classes=3), kind=LabelledJumps), power=0.0)
    batch = labelled_batch(16)
    torch.manual_seed(0)
    ours = model.loss(batch)["mean_flow"]
    torch.manual_seed(0)
    eps = torch.randn_like(batch["x0"])
    t, r, _ = model.times(16, FLOW)
    x_t, v = FLOW.sample(batch["x0"], eps, t), eps - batch["x0"]
    u = lambda x, t, r: model.student.velocity(x, t, r, {"label": batch["label"]})
    close(ours, mean_flow_loss(u(x_t, t, r), mean_flow_target(u, x_t, v, t, r), 0.0).mean())


def test_a_guided_teacher_gives_the_velocity_and_tells_its_scale():
    teacher = labelled_teacher()
    student = jumper(Tanh(scalars={"s": 1.0, "w": 0.1}, classes=3), kind=LabelledJumps)
    guidance = TeacherGuidance(2.0, 2.0, told=True)
    model = MeanFlow(teacher, 1, student, TimePairs(equal=1.0), OfTeacher(), guidance=guidance, power=0.0)
    batch = labelled_batch(8)
    torch.manual_seed(0)
    ours = model.loss(batch)["mean_flow"]
    torch.manual_seed(0)
    eps = torch.randn_like(batch["x0"])
    t = model.times(8, FLOW)[0]
    x_t, null = FLOW.sample(batch["x0"], eps, t), torch.full((8,), 3)
    c, u = (teacher.denoiser.net(x_t, t, label=v) for v in (batch["label"], null))
    out = student.denoiser.net(x_t, t, label=batch["label"], s=t, w=torch.full((8,), 2.0).double())
    close(ours, (out - (u + 2 * (c - u))).square().sum(1).mean())


@pytest.mark.parametrize("method", [MeanFlow, Shortcut])
def test_methods_of_straight_jumps_refuse_other_paths(method):
    with pytest.raises(ValueError, match="VP"):
        method(generator(MLP(2), VP()), 1)


# --- shortcut models ---------------------------------------------------------------------------------------------


def test_the_exact_flow_is_consistent_with_its_halves():
    world = gaussian(FLOW, 0.7, 0.6, dim=2)
    student, x = jumper(ExactJump(world)), normal(16, 2)
    t, s = uniform(16, low=0.5, high=1.0), uniform(16, high=0.45)
    far = torch.zeros(16, dtype=torch.bool)
    close(shortcut_target(student.velocity, x, t, s, far), student.velocity(x, t, s))
    # Where halves ask for the velocity they are Euler steps: their error is of first order in t - s.
    gaps = [
        (shortcut_target(student.velocity, x, t, t - h, ~far) - student.velocity(x, t, t - h)).norm()
        for h in (0.02, 0.01)
    ]
    assert (gaps[0] / gaps[1]).item() == pytest.approx(2, rel=0.1)


def test_a_student_that_is_the_flow_has_a_small_shortcut_loss_that_falls_with_the_finest_jump():
    world, losses = gaussian(FLOW, 0.7, 0.6, dim=2), []
    for finest in (16, 64):
        model = Shortcut(exact_teacher(world), 1, jumper(ExactJump(world)), Halvings(finest, 0.5), OfTeacher())
        torch.manual_seed(0)
        losses.append(model.loss({"x0": world.draw(2000)})["shortcut"].item())
    assert losses[1] < 1e-4
    assert losses[0] / losses[1] > 8  # as the square of the finest jump, a little less often drawn


def test_shortcuts_without_jumps_are_flow_matching():
    model = Shortcut(generator(Tanh()), 1, jumper(Tanh(scalars={"s": 1.0})), Halvings(16, 0.0))
    x0 = normal(16, 2)
    torch.manual_seed(0)
    ours = model.loss({"x0": x0})["shortcut"]
    torch.manual_seed(0)
    eps = torch.randn_like(x0)
    t = model.times(16, FLOW)[0]
    out = model.student.denoiser.net(FLOW.sample(x0, eps, t), t, s=t)
    close(ours, (out - (eps - x0)).square().mean())


def test_shortcut_targets_come_from_the_average_and_cost_two_evaluations_of_their_share():
    model = Shortcut(labelled_teacher(), 1, jumper(Tanh(scalars={"s": 1.0}, classes=3), kind=LabelledJumps))
    own, average = model.student.denoiser.net.calls, model.target.net.denoiser.net.calls
    model.loss(labelled_batch(16))["shortcut"].backward()
    assert (own, average) == ([16], [4, 4])
    assert all(p.grad is None for p in model.target.net.parameters())
    before = model.target.net.denoiser.net.into.clone()
    with torch.no_grad():
        model.student.denoiser.net.into.add_(1.0)
    model.after_step()
    close(model.target.net.denoiser.net.into, before + 1e-3)


def resumable(name):
    """A method with a jump student, an average and draws of every kind."""
    student = jumper(Tanh(scalars={"s": 1.0}))
    if name == "scm":
        return scm(gaussian(Trig(), 0.7, 0.6, dim=2), Tanh(), warmup=4)
    if name == "ctm":
        return CTM(generator(Tanh()), 10, student, TeacherSpans(4), mu=0.5)
    if name == "mean_flow":
        return MeanFlow(generator(Tanh()), 10, student)
    return Shortcut(generator(Tanh()), 10, student, Halvings(8), mu=0.5)


@pytest.mark.parametrize("name", ["ctm", "scm", "mean_flow", "shortcut"])
def test_a_restored_method_has_the_same_loss(name):
    def losses(model, n):
        out, optimizer = [], torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(n):
            torch.manual_seed(model.done)
            optimizer.zero_grad()
            out.append(sum(model.loss({"x0": normal(8, 2)}).values()))
            out[-1].backward()
            optimizer.step()
            model.after_step()
            model.done += 1
            model.iteration += 1
        return out

    ours, theirs = resumable(name), resumable(name)
    losses(ours, 3)
    state = {k: v.clone() for k, v in ours.state_dict().items()}
    theirs.load_state_dict(state)
    theirs.on_load_checkpoint({"state_dict": state})
    for a, b in zip(losses(ours, 3), losses(theirs, 3), strict=True):
        assert torch.equal(a, b)


def test_an_explicit_grid_gives_a_second_time():
    student = jumper(ExactJump(gaussian(FLOW, 0.7, 0.6, dim=2)), grid=Explicit((1.0, 0.5, 0.0)), steps=2, gamma=1.0)
    assert student.generate(normal(4, 2)).shape == (4, 2)
