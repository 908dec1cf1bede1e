"""Anchors: ranks as normal scores, noise that keeps its law, the gradient of the pull, and what a training does with them."""

import pytest
import torch
from test_prd import BATCH, RENDERER, randomised, student, teacher

from fewstep.denoiser import Denoiser
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.score_gradient import ByTime
from fewstep.distill.sds import BySoftError
from fewstep.distill.weighting import Even
from fewstep.grids import Uniform
from fewstep.paths import RectifiedFlow
from fewstep.prediction import X0
from fewstep.solvers import DDIM
from fewstep_3d.anchors import Anchors, normal_scores, tied
from fewstep_3d.conditions import ConditionedUNet
from fewstep_3d.fields import Grid
from fewstep_3d.prd import RenderedDMD, RenderedSDS
from fewstep_3d.shape_data import ShapeViews
from fewstep_3d.shapes import members
from fewstep_3d.triplane import TriplaneDecoder
from fewstep_3d.triplane_generator import PlaneHead, TriplaneGenerator


def told_means(classes=3, means=True):
    torch.manual_seed(1)
    net = ConditionedUNet(4, 8, (1, 2), 1, (), classes=classes, means=means)
    parts = PlaneHead(4, 8, 4), TriplaneDecoder(4, 8, 1, colours=0)
    made = TriplaneGenerator(Denoiser(net, RectifiedFlow(), X0()), DDIM(), Uniform(), *parts, latent_side=4, side=10)
    return randomised(made, 1, 0.05)


def anchored(kind=RenderedSDS, anchors=None, own=None, **kw):
    kw = {"renderer": RENDERER, "steps": 1, "guidance": TeacherGuidance(2.0, 2.0)} | kw
    anchors = anchors or Anchors(5, 2, steps=2)
    return kind(teacher=teacher(), iterations=3, student=own or told_means(), anchors=anchors, **kw)


def test_normal_scores_are_the_quantiles_of_the_largest_components():
    """Along two orthogonal directions of different spread: the order of the coefficients, and the scores of N(0, 1)."""
    g = torch.Generator().manual_seed(0)
    v = torch.randn(50, 2, generator=g, dtype=torch.float64)
    a, b = torch.linalg.qr(v - v.mean(0))[0].T  # uncorrelated, so that they are the components
    x = 3 + 5 * a[:, None] * torch.tensor([0.6, 0.8, 0.0]) + b[:, None] * torch.tensor([0.0, 0.0, 1.0])
    scores = normal_scores(x, 2)
    wanted = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(50, dtype=torch.float64) + 0.5) / 50)
    for k, coefficients in enumerate((a, b)):
        ordered = scores[coefficients.argsort(), k]
        assert torch.allclose(ordered, wanted, atol=1e-12) or torch.allclose(ordered, wanted.flip(0), atol=1e-12)


def test_tied_noise_has_the_means_and_keeps_everything_else():
    g = torch.Generator().manual_seed(0)
    noise, codes = torch.randn(3, 4, 6, 5, generator=g).double(), torch.randn(3, 2, generator=g).double()
    out = tied(noise, codes)
    assert torch.allclose(out[:, :2].mean((2, 3)) * 30**0.5, codes, atol=1e-12)
    assert torch.equal(out[:, 2:], noise[:, 2:])
    centred = [v[:, :2] - v[:, :2].mean((2, 3), keepdim=True) for v in (noise, out)]
    assert torch.allclose(*centred, atol=1e-12)
    assert torch.allclose(tied(noise, noise[:, :2].mean((2, 3)) * 30**0.5), noise, atol=1e-12)


def test_tied_noise_is_white_where_codes_are_normal():
    g = torch.Generator().manual_seed(0)
    out = tied(torch.randn(40_000, 1, 2, 2, generator=g), torch.randn(40_000, 1, generator=g)).flatten(1)
    assert torch.allclose(torch.cov(out.T), torch.eye(4), atol=0.03)
    assert torch.allclose(out.mean(0), torch.zeros(4), atol=0.02)


def test_the_network_is_told_the_means():
    """A constant added to a channel of the state moves what it is told by sqrt(H W) times as much, and by nothing without `means`."""
    net = told_means().net
    seen = []
    net.of_means.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    x, t, label = torch.randn(2, 4, 4, 4), torch.ones(2), torch.zeros(2, dtype=torch.long)
    net(x, t, label)
    net(x + torch.tensor([0.5, 0, 0, 0]).view(1, 4, 1, 1), t, label)
    assert torch.allclose(seen[1] - seen[0], torch.tensor([2.0, 0, 0, 0]).expand(2, 4), atol=1e-5)
    assert net.wanted == ("label",)


def test_anchors_are_the_teachers_samples_of_their_class():
    model, anchors = teacher(), Anchors(5, 2, steps=3, seed=4)
    state = torch.get_rng_state()
    anchors.fill(model, 3)
    assert torch.equal(torch.get_rng_state(), state)
    generator = torch.Generator().manual_seed(4)
    for c in range(3):
        noise = torch.randn(5, *model.shape, generator=generator)
        cond = model.told({"label": torch.full((5,), c)}, model.rig.at(torch.zeros(5), torch.full((5,), 20.0)))
        wanted = model.generate(noise, cond, steps=3)
        assert torch.equal(anchors.samples[c], wanted)
        assert torch.equal(anchors.codes[c], normal_scores(wanted.flatten(1), 2))
    samples, codes = anchors.draw(torch.tensor([2, 0, 2]), model, 3)
    for sample, code, c in zip(samples, codes, (2, 0, 2), strict=True):
        found = [i for i in range(5) if torch.equal(anchors.samples[c, i], sample)]
        assert len(found) == 1
        assert torch.equal(anchors.codes[c, found[0]], code)


def test_anchors_of_data_are_its_members_as_the_teacher_sees_them():
    """Every one is the stack of its own object, seen by the anchors' rig; the global generator is left alone."""
    names = ("torus", "chair", "box")
    model, data = teacher(), ShapeViews(names, side=16, renderer=RENDERER)
    anchors = Anchors(18, 2, azimuth=30.0, elevation=10.0, seed=4, data=data)
    state = torch.get_rng_state()
    anchors.fill(model, 3)
    assert torch.equal(torch.get_rng_state(), state)
    generator = torch.Generator().manual_seed(4)
    for c, name in enumerate(names):
        sdf = members(name, 18, 16, generator)
        cameras = model.rig.at(torch.tensor([30.0]), torch.tensor([10.0]))
        for i in (0, 17):
            wanted = model.see(RENDERER.views(Grid(sdf[i : i + 1, None]), cameras, 1))[0]
            torch.testing.assert_close(anchors.samples[c, i], wanted)
        assert torch.equal(anchors.codes[c], normal_scores(anchors.samples[c].flatten(1), 2))


def test_anchors_of_data_with_other_classes_are_refused():
    with pytest.raises(ValueError, match="anchors of 2 classes of data for a student of 3"):
        Anchors(5, 2, data=ShapeViews(("torus", "box"))).fill(teacher(), 3)


def test_anchors_come_back_from_a_state():
    anchors = Anchors(5, 2, steps=2)
    anchors.fill(teacher(), 3)
    other = Anchors(5, 2, steps=2)
    other.load_state_dict(anchors.state_dict())
    assert torch.equal(other.samples, anchors.samples)
    assert torch.equal(other.codes, anchors.codes)


def test_the_pull_is_the_weighted_difference():
    g = torch.Generator().manual_seed(0)
    x, samples = torch.randn(2, 2, 8, 3, 3, generator=g).double()
    x.requires_grad_()
    for weight, factors in ((ByTime(Even()), None), (BySoftError(0.05), 1)):
        anchors = Anchors(factor=3.0, weight=weight)
        (grad,) = torch.autograd.grad(anchors.pull(x, samples, RectifiedFlow()).sum(), x)
        difference = (x - samples).detach()
        error = difference.abs().flatten(1).mean(1).view(-1, 1, 1, 1)
        scale = 1 / (error + 0.05) if factors else torch.ones(())
        assert torch.allclose(grad, 3 * scale * difference / 72, rtol=1e-12)


@pytest.mark.parametrize("kind", [RenderedSDS, RenderedDMD])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_training_pulls_objects_to_the_anchors_of_their_noise(kind, steps):
    """The noise of every object has the code of the sample that it is pulled to; without the factor no gradient comes of it."""
    made = anchored(kind, steps=steps)
    torch.manual_seed(0)
    drawn = made.drawn(BATCH)
    codes = drawn.noise[:, :2].mean((2, 3)) * 4
    for i, c in enumerate(BATCH["label"]):
        j = next(j for j in range(5) if torch.equal(made.anchors.samples[c, j], made._samples[i]))
        assert torch.allclose(codes[i], made.anchors.codes[c, j], atol=1e-5)
    assert len(made._samples) == 2 * steps
    reached = made.reach(drawn, made.guidance.student_cond(drawn.cond, drawn.w))
    terms = made.student_terms(reached, drawn, BATCH)
    (grad,) = torch.autograd.grad(terms["anchors"], made.student.decoder.shape_last[-1].weight, retain_graph=True)
    assert grad.abs().max() > 0
    assert "anchors" in made.loss(BATCH)


@pytest.mark.parametrize(
    "own", [lambda: student(means=False), lambda: told_means(means=False), lambda: told_means(classes=0)]
)
def test_a_student_that_cannot_follow_is_refused(own):
    with pytest.raises(ValueError, match="anchors need a student of classes that is told the means"):
        anchored(own=own())


@pytest.mark.parametrize("given", [(1, 1), (5, 0), (5, 6)])
def test_impossible_numbers_are_refused(given):
    with pytest.raises(ValueError, match="anchors are at least 2 samples"):
        Anchors(*given)
