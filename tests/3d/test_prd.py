"""Score distillation through a renderer: identities of the losses, the bookkeeping of progressive steps, gradients that reach everything."""

import numpy as np
import pytest
import torch
from torch.nn.functional import mse_loss

from fewstep.denoiser import Denoiser
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.score_gradient import ByTime
from fewstep.distill.sds import ClampedGuidance, sds_loss
from fewstep.distill.weighting import Even
from fewstep.estimate import Estimate
from fewstep.grids import Uniform
from fewstep.lora import LowRank
from fewstep.paths import VP, RectifiedFlow
from fewstep.prediction import X0, U
from fewstep.solvers import DDIM
from fewstep_3d.annealing import Annealed
from fewstep_3d.conditions import ConditionedUNet, without
from fewstep_3d.multi_view import MultiViewGenerator, masks, stacked
from fewstep_3d.opacity import NeuS
from fewstep_3d.prd import RenderedASD, RenderedDMD, RenderedSDS, RenderedSIM, progressive
from fewstep_3d.renderer import Renderer
from fewstep_3d.rigs import Rig, azimuths
from fewstep_3d.samplers import Stratified
from fewstep_3d.shape_data import ShapeViews
from fewstep_3d.triplane import TriplaneDecoder
from fewstep_3d.triplane_generator import PlaneHead, TriplaneGenerator

RIG = Rig(views=2, size=8)
RENDERER = Renderer(NeuS(20.0), Stratified(8), normals=True)
EVEN = ByTime(Even())


def randomised(module, seed=0, scale=0.1):
    """Untrained U-Nets output 0; these do not."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn(p.shape, generator=g))
    return module


def teacher(seed=0, **kw):
    torch.manual_seed(seed)
    net = ConditionedUNet(8, 8, (1, 2), 1, (), **({"classes": 3, "views": 2} | kw))
    return randomised(MultiViewGenerator(Denoiser(net, RectifiedFlow(), U()), DDIM(), Uniform(), 4, RIG))


def student(seed=1, **kw):
    torch.manual_seed(seed)
    net = ConditionedUNet(4, 8, (1, 2), 1, (), **({"classes": 3} | kw))
    parts = PlaneHead(4, 8, 4), TriplaneDecoder(4, 8, 1, colours=0)
    made = TriplaneGenerator(Denoiser(net, RectifiedFlow(), X0()), DDIM(), Uniform(), *parts, latent_side=4, side=10)
    return randomised(made, 1, 0.05)


def module(kind=RenderedSDS, steps=1, seed=0, **kw):
    kw = {"renderer": RENDERER, "steps": steps, "guidance": TeacherGuidance(2.0, 2.0)} | kw
    return kind(teacher=teacher(), iterations=3, student=student(), **kw)


BATCH = {"label": torch.tensor([0, 2])}


# --- losses -----------------------------------------------------------------------------------------------------------


def test_the_clamp():
    model = teacher()
    cond = {"label": torch.tensor([0]), "camera": RIG.told(RIG.draw(1))}
    x, t = 9 * torch.randn(1, 8, 8, 8), torch.tensor([0.9])
    free = ClampedGuidance(4.0, 4.0, most=1e6).teacher(model, cond, None, torch.tensor([4.0]))(x, t).x0
    held = ClampedGuidance(4.0, 4.0).teacher(model, cond, None, torch.tensor([4.0]))(x, t).x0
    assert free.abs().max() > 1.1
    torch.testing.assert_close(held, free.clamp(-1.1, 1.1))


# --- rendering --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RenderedSDS, RenderedASD, RenderedDMD, RenderedSIM])
@pytest.mark.parametrize("steps", [1, 3])
def test_every_method_reaches_every_parameter_of_the_student(kind, steps):
    made = module(kind, steps)
    torch.manual_seed(0)
    terms = made.loss(BATCH)
    assert {"score", "eikonal"} <= terms.keys()
    assert ("fake" in terms) == (kind in (RenderedDMD, RenderedSIM))
    sum(terms.values()).backward()
    for name, p in made.student.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
    reached = [n for n, p in made.student.named_parameters() if p.grad.abs().max() > 0]
    assert {n.split(".")[0] for n in reached} == {"denoiser", "head", "decoder"}
    assert all(p.grad is None for p in made.teacher.parameters())


def test_cameras_of_a_batch_are_looked_with():
    made, cameras = module(steps=2), RIG.draw(4, torch.Generator().manual_seed(5))
    made.loss(BATCH | {"c2w": cameras.c2w})
    for name in ("c2w", "focal", "centre", "size"):
        assert np.array_equal(getattr(made._cameras, name), getattr(cameras, name))


def test_vsd_of_a_fake_score_that_is_the_teacher_without_guidance_vanishes():
    for adapters in (None, LowRank(2)):
        kw = {"weight": EVEN, "adapters": adapters, "guidance": TeacherGuidance(), "eikonal": 0.0}
        made = module(RenderedDMD, **kw)
        torch.manual_seed(0)
        assert made.loss(BATCH)["score"].item() == 0.0


def test_progressive_steps_are_those_of_one_after_another():
    """One batch of all steps has the gradient of a backward per step with states detached between them."""
    made, k = module(steps=3), 3
    torch.manual_seed(5)
    made.loss(BATCH)["score"].backward()
    together = [p.grad.clone() for p in made.student.parameters()]
    made.zero_grad()
    own, path = made.student, made.student.denoiser.path
    torch.manual_seed(5)
    drawn = made.drawn(BATCH)
    cams, times = made._cameras, own.grid(path, k)
    state, cond, z0s = own.begin(drawn.noise), {"label": BATCH["label"]}, []
    for n in range(k):
        t = times[n].expand(2)
        state = path.sample(z0s[-1].detach(), torch.randn_like(drawn.noise), t) if n else state
        z0s.append(own.denoiser.bind(cond)(state, t).x0)
    views = [stacked(RENDERER.views(own.table(z), cams[list(range(4 * n, 4 * n + 4))], 2)) for n, z in enumerate(z0s)]
    t = made.times(6, made.teacher.denoiser.path)
    eps = torch.randn(6, *made.teacher.shape)
    denoise = made.guidance.teacher(made.teacher, drawn.cond, None, drawn.w)
    x_t = made.teacher.denoiser.path.sample(torch.cat(views).detach(), eps, t)
    wanted = denoise(x_t, t).x0.detach()
    for n, x in enumerate(views):
        part = slice(2 * n, 2 * n + 2)
        ready = lambda _x, _t, w=wanted[part]: Estimate(w, w)
        loss = sds_loss(x, x_t[part], t[part], ready, made.teacher.denoiser.path, made.weight).mean() / k
        loss.backward()
    for a, p in zip(together, made.student.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-3, atol=1e-7)


def test_later_steps_give_earlier_ones_no_gradient():
    own = student()
    noise = torch.randn(2, 4, 4, 4)
    z0, states, t = progressive_at(own, noise, 2)
    assert t.tolist() == [1.0, 1.0, 0.5, 0.5]
    assert torch.equal(states[:2], noise)
    assert not states.requires_grad  # the state of the second step holds no graph of the first
    assert z0.requires_grad


def progressive_at(own, noise, steps):
    own.steps = steps
    return progressive(own, noise, {"label": torch.tensor([0, 1])})


def test_one_step_is_pure_noise_at_the_last_time():
    _, states, t = progressive_at(student(), torch.ones(2, 4, 4, 4), 1)
    assert t.tolist() == [1.0, 1.0]
    assert (states == 1).all()


def test_cameras_of_all_steps_differ_and_are_told_to_the_teacher():
    made = module(steps=2)
    drawn = made.drawn(BATCH)
    assert drawn.cond["camera"].shape == (4, 2, 16)
    assert len({tuple(row.flatten().tolist()) for row in drawn.cond["camera"]}) == 4
    assert drawn.cond["label"].tolist() == [0, 2, 0, 2]
    assert len(drawn.noise) == 2
    torch.testing.assert_close(RIG.told(made._cameras), drawn.cond["camera"])


def test_times_are_annealed():
    made = module(annealed=Annealed((0.6, 0.0), (0.8, 0.2)))
    made.loss(BATCH)
    assert (made.times.low, made.times.high) == (0.6, 0.8)
    made.done = 3
    made.loss(BATCH)
    assert (made.times.low, made.times.high) == (0.0, 0.2)
    with pytest.raises(ValueError, match="annealing"):
        Annealed((0.9, 0.0), (0.8, 0.2))


def test_a_fixed_shape_is_learnt_from_a_teacher_that_knows_it_alone():
    """The teacher always answers with the views of one shape, so SDS is regression on its renders."""
    made = module(guidance=TeacherGuidance(), eikonal=0.0)
    target = student(7).eval()
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(3)).expand(2, -1, -1, -1)
    with torch.no_grad():
        table = target.table(2 * latents)

    def knows(*args):
        views = stacked(RENDERER.views(table, made._cameras, 2)).detach()
        return lambda x, t: Estimate(views, views)

    made.guidance.teacher = knows
    optimizer, errors = torch.optim.Adam(made.student.parameters(), 3e-3), []
    for _ in range(40):
        optimizer.zero_grad()
        loss = made.loss(BATCH)["score"]
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            own = stacked(RENDERER.views(made._fields, made._cameras, 2))
            errors.append(mse_loss(own, knows()(None, None).x0).item())
    assert sum(errors[-5:]) < 0.3 * sum(errors[:5])


# --- generators and data ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["label", "text", "image"])
def test_teachers_and_students_take_labels_texts_and_pictures(kind):
    sizes = {"label": {"classes": 3}, "text": {"classes": 0, "text": 5}, "image": {"classes": 0, "image": 4}}[kind]
    value = {"label": torch.tensor([1, 2]), "text": torch.randn(2, 5), "image": torch.randn(2, 4, 8, 8)}[kind]
    big, small = teacher(**sizes), student(**sizes)
    cond = {kind: value, "camera": RIG.told(RIG.draw(2))}
    noise = torch.randn(2, *big.shape)
    out = big.generate(noise, cond)
    assert out.shape == noise.shape
    other = big.generate(noise, {**cond, "camera": RIG.told(RIG.draw(2))})
    assert (out - other).abs().max() > 1e-5
    assert (out - big.generate(noise, big.unconditional(cond))).abs().max() > 1e-5
    assert small({kind: value}).values.shape == (2, 1, 10, 10, 10)
    with pytest.raises(ValueError, match="wants|is given no label"):
        big.generate(noise, {"camera": cond["camera"], "text" if kind != "text" else "image": value})


def test_cameras_alone_cannot_be_dropped():
    with pytest.raises(ValueError, match="no unconditional branch"):
        without({"camera": torch.zeros(1, 2, 16)}, 0)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="8 channels"):
        net = ConditionedUNet(12, 8, (1,), views=2)
        MultiViewGenerator(Denoiser(net, VP(), U()), DDIM(), Uniform(), 4, RIG)
    with pytest.raises(ValueError, match="each pair is equal"):
        net = ConditionedUNet(4, 8, (1,), classes=3)
        parts = PlaneHead(4, 8, 5), TriplaneDecoder(4, 8, 1, colours=0)
        TriplaneGenerator(Denoiser(net, RectifiedFlow(), X0()), DDIM(), Uniform(), *parts)


def test_the_canvas_says_where():
    """Conditions scale channels alike everywhere: where the state is empty and no border near, the output has no places unless there is a canvas."""
    cond = {"label": torch.tensor([1]), "camera": RIG.told(RIG.at(torch.tensor([30.0]), torch.zeros(1)))}
    empty, t = torch.zeros(1, 8, 64, 64), torch.ones(1)

    def middle(canvas):
        torch.manual_seed(0)
        net = ConditionedUNet(8, 8, (1, 2), classes=3, views=2, canvas=canvas)
        assert not net(empty, t, **cond).any()
        out = randomised(net)(empty, t, **cond)
        return out[:, :, 30:34, 30:34].flatten(2)

    assert middle(0).abs().amax() > 1e-3
    assert middle(0).std(2).max() < 1e-6
    assert middle(32).std(2).min() > 1e-3
    assert middle(7).std(2).min() > 1e-3  # interpolated


def test_rigs_are_rings_of_cameras():
    rig = Rig(views=4, elevations=(10.0, 30.0))
    cams = rig.draw(3, torch.Generator().manual_seed(0))
    az, el = azimuths(cams)
    turns = az.view(3, 4).diff(dim=1).remainder(360)
    torch.testing.assert_close(turns, torch.full((3, 3), 90.0), atol=1e-3, rtol=0)
    assert (el.view(3, 4).std(1) < 1e-3).all()
    assert ((el >= 9.9) & (el <= 30.1)).all()
    told = rig.told(cams).view(3, 4, 4, 4)
    torch.testing.assert_close(told[..., :3, 3].norm(dim=-1), torch.ones(3, 4))
    with pytest.raises(ValueError, match="elevations"):
        Rig(elevations=(30.0, 10.0))


def test_data_of_shapes(tmp_path):
    data = ShapeViews(
        ("sphere", "chair"), per_class=3, rig=RIG, renderer=RENDERER, side=16, batch_size=2, members=4, images=True
    )
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert {k: tuple(v.shape) for k, v in batch.items()} == {
        "x0": (2, 8, 8, 8),
        "camera": (2, 2, 16),
        "label": (2,),
        "image": (2, 4, 8, 8),
    }
    assert batch["x0"].abs().max() <= 1 + 1e-5
    assert masks(batch["x0"]).shape == (2, 2, 8, 8)
    assert masks(data.train.columns["x0"]).mean() > 0.02
    (val,) = list(data.val_dataloader())
    assert val["inside"].shape == (2, 4, 16, 16, 16)
    assert val["label"].tolist() == [0, 1]
    again = ShapeViews(
        ("sphere", "chair"), per_class=3, rig=RIG, renderer=RENDERER, side=16, batch_size=2, members=4, images=True
    )
    again.setup()
    assert torch.equal(again.train.columns["x0"], data.train.columns["x0"])
    with pytest.raises(ValueError, match="tree"):
        ShapeViews(("tree",))


def test_scores_of_a_member_are_perfect_for_its_class():
    own = randomised(student(), 5, 0.3)
    inside = own({"label": torch.tensor([0, 1, 2])}, generator=torch.Generator().manual_seed(0)).values[:, 0] < 0
    torch.manual_seed(0)
    batch = {"label": torch.tensor([0, 1, 2]), "inside": torch.zeros(3, 2, 10, 10, 10, dtype=torch.bool)}
    batch["inside"][:, 0] = inside
    torch.manual_seed(0)
    noise_first = own(own.prepare(batch).cond)
    batch["inside"][:, 1] = noise_first.values[:, 0] < 0
    torch.manual_seed(0)
    figures = own.scores(batch)
    assert figures["iou"].tolist() == [1, 1, 1]
    torch.manual_seed(0)
    first, second = (own(own.prepare(batch).cond).values[:, 0] < 0 for _ in range(2))
    wanted = [1 - float((a & b).sum() / (a | b).sum()) for a, b in zip(first, second, strict=True)]
    assert figures["apart"].tolist() == pytest.approx(wanted)
    assert max(wanted) > 0
