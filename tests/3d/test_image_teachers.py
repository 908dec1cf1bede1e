"""Diffusers image models as teachers (tiny random ones), prompts of views, Perp-Neg, patches, freed graphs."""

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from test_prd import student

from fewstep.distill.guidance import TeacherGuidance
from fewstep.grids import Uniform
from fewstep.solvers import DDIM
from fewstep_3d.cameras import orbit
from fewstep_3d.fields import Sphere, tabulated
from fewstep_3d.freed import freed
from fewstep_3d.image_teachers import ImageTeacher, joined
from fewstep_3d.opacity import NeuS
from fewstep_3d.patches import PatchRenderer
from fewstep_3d.prd import RenderedASD, RenderedSDS
from fewstep_3d.renderer import Renderer
from fewstep_3d.rigs import Rig
from fewstep_3d.samplers import Stratified
from fewstep_3d.triplane import TriplaneDecoder
from fewstep_3d.view_prompts import (
    NEGATIVES,
    TEXT,
    WANTED,
    WEIGHTS,
    AdaptivePerpNegGuidance,
    PerpNegGuidance,
    ViewPrompts,
)

RENDERER = Renderer(NeuS(20.0), Stratified(6), normals=True)


def prompts():
    g = torch.Generator().manual_seed(0)
    return ViewPrompts(*torch.randn(5, 3, 8, generator=g))


def image_teacher(views=1, camera=False):
    torch.manual_seed(0)
    further = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 16} if camera else {}
    unet = UNet2DConditionModel(
        sample_size=4, block_out_channels=(8,), down_block_types=("CrossAttnDownBlock2D",), mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D",), layers_per_block=1, cross_attention_dim=8, attention_head_dim=2,
        norm_num_groups=4, **further,
    )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
                        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4)  # fmt: skip
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    kw = {"rig": Rig(views=views, size=8), "pixels": 8, "camera": camera, "steps": 2}
    return ImageTeacher.of(unet.eval(), scheduler, vae.eval(), DDIM(), Uniform(), prompts(), **kw)


def coloured_student():
    own = student()
    own.decoder = TriplaneDecoder(4, 8, 1, colours=3)
    return own


def test_codes_of_views_are_those_of_the_vae():
    teacher = image_teacher(2)
    out = RENDERER.views(tabulated(Sphere(), 16, torch.zeros(())), teacher.rig.draw(1))
    code = teacher.see(out)
    assert code.shape == (1, 8, 4, 4) == (1, *teacher.shape)
    picture = 2 * out.features[0].permute(0, 3, 1, 2) - 1
    wanted = teacher.vae.encode(picture).latent_dist.mean * teacher.vae.config.scaling_factor
    torch.testing.assert_close(code[0].unflatten(0, (2, 4)), wanted)


@pytest.mark.parametrize(("views", "camera"), [(1, False), (2, True)])
@pytest.mark.parametrize("kind", [RenderedSDS, RenderedASD])
def test_a_student_learns_from_a_diffusers_model(views, camera, kind):
    teacher = image_teacher(views, camera)
    kw = {"renderer": RENDERER, "guidance": TeacherGuidance(7.5, 7.5), "times": None}
    kw.pop("times")
    made = kind(teacher=teacher, iterations=2, student=coloured_student(), **kw)
    torch.manual_seed(0)
    sum(made.loss({"label": torch.tensor([0, 1])}).values()).backward()
    for name, p in made.student.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
    assert made.student.decoder.colour_last[-1].weight.grad.abs().max() > 0


def test_joined_views_see_each_other_and_single_ones_do_not():
    for camera, views in ((True, 2),):
        teacher = image_teacher(views, camera)
        cond = teacher.told({}, teacher.rig.draw(1))
        x, t = torch.randn(1, 8, 4, 4), torch.tensor([500.0])
        other = x.clone()
        other[:, 4:] += 1
        change = teacher.bind(cond)(x, t).eps[:, :4] - teacher.bind(cond)(other, t).eps[:, :4]
        assert change.abs().max() > 1e-6
    net = image_teacher(1).denoiser.net.net.model
    assert joined(net, 2) == 3


def test_prompts_follow_the_view():
    p = prompts()
    front, side, back, overhead = p.texts
    at = p.at(torch.tensor([0.0, 90.0, 180.0, -90.0, 45.0, 20.0]), torch.tensor([0.0] * 5 + [80.0]))
    for k, text in enumerate((front, side, back, side, 0.5 * front + 0.5 * side, overhead)):
        torch.testing.assert_close(at[TEXT][k], text)
    assert at[WANTED].tolist() == [0, 1, 2, 1, 1, 0]
    assert (at[WEIGHTS] <= 0).all()
    assert at[WEIGHTS][0, 0].abs() < 1e-3  # the front is no negative of itself
    assert at[WEIGHTS][1, 1].abs() < 1e-3
    assert at[WEIGHTS][2, 0] < -1.9  # from behind, the face is unwanted most
    assert (at[WEIGHTS][5] == 0).all()
    with pytest.raises(ValueError, match="one shape"):
        ViewPrompts(*torch.randn(4, 3, 8), torch.randn(2, 8))


def guided(guidance, cond, teacher, x, t):
    return guidance.teacher(teacher, cond, None, torch.full((len(x),), 7.5))(x, t)


def test_perp_neg_without_weights_is_plain_guidance():
    teacher = image_teacher()
    cond = teacher.told({}, orbit(torch.tensor([30.0, 170.0]), size=(8, 8)))
    x, t = torch.randn(2, 4, 4, 4), torch.tensor([500.0, 200.0])
    none = {**cond, WEIGHTS: torch.zeros(2, 3)}
    plain = guided(TeacherGuidance(7.5, 7.5), cond, teacher, x, t).eps
    torch.testing.assert_close(guided(PerpNegGuidance(), none, teacher, x, t).eps, plain, rtol=1e-4, atol=1e-5)
    assert (guided(PerpNegGuidance(), cond, teacher, x, t).eps - plain).abs().max() > 1e-5
    off = guided(AdaptivePerpNegGuidance(k=0.0), cond, teacher, x, t).eps
    torch.testing.assert_close(off, plain, rtol=1e-4, atol=1e-5)
    same = {**cond, NEGATIVES: cond[TEXT].expand(-1, 3, -1, -1)}  # parallel negatives leave no trace
    torch.testing.assert_close(guided(PerpNegGuidance(), same, teacher, x, t).eps, plain, rtol=1e-3, atol=1e-4)
    weights = AdaptivePerpNegGuidance().weights(teacher, cond, x, t)
    assert (weights <= 0).all()
    assert weights.gather(1, cond[WANTED][:, None]).abs().max() == 0
    with pytest.raises(ValueError, match="one guidance scale"):
        PerpNegGuidance(1.0, 2.0)


# --- memory and patches -----------------------------------------------------------------------------------------------


def test_a_freed_graph_changes_neither_value_nor_gradient():
    g = torch.Generator().manual_seed(0)
    w = torch.randn(5, dtype=torch.float64, generator=g).requires_grad_()
    loss = lambda x: (x.sin() * x).flatten(1).sum(1)
    x = torch.outer(torch.arange(1.0, 4.0, dtype=torch.float64), w).tanh()
    a, b = loss(x), freed(loss, x)
    torch.testing.assert_close(a, b)
    for weight in (torch.ones(3), torch.tensor([1.0, 0.0, 2.0])):
        (ga,), (gb,) = (torch.autograd.grad((v * weight).sum(), w, retain_graph=True) for v in (a, b))
        torch.testing.assert_close(ga, gb, rtol=1e-6, atol=1e-12)


def test_a_patch_is_exact_and_the_rest_is_near():
    grid, cams = tabulated(Sphere(), 32, torch.zeros(())), orbit(torch.tensor([0.0, 90.0]), size=(30, 30))
    renderer = Renderer(NeuS(30.0), normals=True)
    whole = renderer.views(grid, cams)
    out = PatchRenderer(renderer, 10, 3).views(grid, cams)
    exact = (out.opacity - whole.opacity).abs() < 1e-6
    assert exact.sum() >= 200
    assert (out.opacity - whole.opacity).abs().mean() < 0.05
    assert out.normals.shape == whole.normals.shape
    with pytest.raises(ValueError, match="larger than the picture"):
        PatchRenderer(renderer, 31, 3).views(grid, cams)
