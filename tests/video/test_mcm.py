"""Motion apart from appearance, and MCM: identities of the representations, of the loss and of what the critic sees."""

import math

import pytest
import torch
from small import clips, teacher

from fewstep.discriminators import Adversary
from fewstep.discriminators.losses import Hinge, Relativistic
from fewstep.distances import ElementwiseHuber
from fewstep.distill.consistency import ConsistencyDistillation
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.intervals import Adjacent
from fewstep.distill.rollout import frozen
from fewstep.distill.teacher_step import TeacherStep
from fewstep.paths import VP
from fewstep.solvers import DDIM
from fewstep_video.data.pictures import PictureFolder, Stills, WithPictures
from fewstep_video.data.procedural import Procedural
from fewstep_video.distill.frames import DiffAugment, sampled
from fewstep_video.distill.mcm import MCM
from fewstep_video.distill.motion import Correlation, Differences, HighPass, Learned, LowPass, Raw
from fewstep_video.files import VideoError
from fewstep_video.nets.frame_encoder import FrameEncoder
from fewstep_video.worlds import MovingShapes


def z(seed=0, frames=6, channels=4, side=8):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, frames, side, side, dtype=torch.float64, generator=g)


def adversary(**changed):
    return Adversary(layers=["levels.1", "levels.3"], **{"loss": Hinge(), "weight": 0.5, **changed})


def method(motion=None, **changed):
    torch.manual_seed(0)
    given = {"mixed": 0.0, "intervals": Adjacent(10), "adversary": adversary(), "network": FrameEncoder(3, 16)}
    return MCM(teacher(), 10, motion=motion, **{**given, **changed})


# --- representations ----------------------------------------------------------------------------------------------


def test_the_learnt_head_begins_as_the_identity_with_the_papers_size():
    head = Learned(4)
    assert sum(p.numel() for p in head.parameters()) == 708
    assert torch.equal(head.double()(z()), z())
    deep = Learned(4, 64, layers=5, kernel=3).double()
    assert torch.equal(deep(z()), z()) and len([m for m in deep.head if isinstance(m, torch.nn.Conv2d)]) == 5
    with torch.no_grad():
        head.head[-1].weight += 0.1
    one = z().clone()
    one[:, :, 2] += 1
    changed = (head(one) - head(z())).abs().amax((0, 1, 3, 4)) > 0
    assert changed.tolist() == [False, False, True, False, False, False], "frame by frame"


def test_differences_are_blind_to_what_stays():
    offset = torch.randn(2, 4, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(Differences()(z() + offset), Differences()(z()))
    assert Differences(3)(z()).shape[2] == 3
    with pytest.raises(ValueError, match="longer, not 3"):
        Differences(3)(z(frames=3))


@pytest.mark.parametrize(("frames", "side"), [(6, 8), (5, 9)])
def test_low_and_high_are_the_whole(frames, side):
    x = z(frames=frames, side=side)
    torch.testing.assert_close(LowPass()(x) + HighPass()(x), x, rtol=0, atol=1e-12)
    still = x.mean((2, 3, 4), keepdim=True).expand_as(x)
    torch.testing.assert_close(LowPass()(still), still, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        LowPass()(x), torch.fft.ifftn(torch.fft.fftn(x, dim=(2, 3, 4)) * LowPass().gain(x), dim=(2, 3, 4)).real
    )
    # At the cut-off the gain is a half.
    gain = LowPass(space=0.25, time=0.5).gain(z(frames=8, side=16))
    assert gain[0, 2, 0] == pytest.approx(0.5) and gain[2, 0, 0] == pytest.approx(0.5) and gain[0, 0, 0] == 1


def test_correlation_finds_where_a_point_went():
    x = torch.zeros(1, 4, 2, 8, 8, dtype=torch.float64)
    x[0, :, 0, 3, 3] = 20
    x[0, :, 1, 4, 5] = 20
    everywhere, near = Correlation()(x), Correlation(7)(x)
    assert everywhere.shape == (1, 1, 64, 64) and near.shape == (1, 1, 64, 49)
    assert everywhere[0, 0, 3 * 8 + 3].argmax() == 4 * 8 + 5
    assert near[0, 0, 3 * 8 + 3].argmax() == (1 + 3) * 7 + (2 + 3)
    for m in (everywhere, near):
        torch.testing.assert_close(m.sum(-1), torch.ones_like(m[..., 0]))
    torch.testing.assert_close(Correlation(scaled=True)(x), math.sqrt(8) * everywhere)
    full = Correlation(15)(z())  # every position is within the window
    shifted = torch.zeros(2, 5, 64, 64, dtype=torch.float64)
    for i in range(64):
        for j in range(64):
            shifted[:, :, i, j] = full[:, :, i, (j // 8 - i // 8 + 7) * 15 + j % 8 - i % 8 + 7]
    torch.testing.assert_close(shifted, Correlation()(z()))
    with pytest.raises(ValueError, match="odd side"):
        Correlation(4)


@pytest.mark.parametrize(
    "motion", [Raw(), Differences(), LowPass(), HighPass(), Correlation(), Correlation(7), Learned(4)]
)
def test_equal_clips_have_equal_motion_and_gradients_pass(motion):
    x = z().requires_grad_()
    found = motion.double()(x)
    assert found.shape[0] == 2 and ElementwiseHuber()(found, found.detach()).max() == 0
    (slope,) = torch.autograd.grad(found.square().sum(), x)
    assert slope.isfinite().all() and slope.abs().sum() > 0


# --- the loss -----------------------------------------------------------------------------------------------------


def terms(m, batch):
    torch.manual_seed(5)
    return m.loss(batch)


def test_at_the_start_it_is_plain_consistency_distillation():
    batch, given = clips(), {"distance": ElementwiseHuber(1e-3), "step": TeacherStep(DDIM()), "mu": 0.0}
    guidance = TeacherGuidance(6.0, 16.0)
    torch.manual_seed(0)
    plain = ConsistencyDistillation(teacher(), 10, intervals=Adjacent(10), guidance=guidance, **given)
    learnt, raw = method(Learned(3, 8, groups=4), guidance=guidance), method(guidance=guidance)
    found = terms(learnt, batch)["motion"]
    assert torch.equal(found, terms(raw, batch)["motion"])
    # The same states: those of the plain method, drawn with the same numbers.
    torch.manual_seed(5)
    drawn = learnt.drawn(batch)
    reached = learnt.reach(drawn, drawn.cond)
    own = reached.estimate.x0
    torch.testing.assert_close(found, ElementwiseHuber(1e-3)(own, reached.wanted).mean())
    x_s = plain.step(
        guidance.teacher(plain.teacher, drawn.cond, None, drawn.w),
        plain.student.denoiser.path,
        reached.x,
        reached.t,
        reached.s,
    )
    target = plain.target_point(drawn.cond, None)(x_s, reached.s)
    wanted = torch.where((reached.s <= 0)[:, None, None, None, None], x_s, target)
    torch.testing.assert_close(reached.wanted, wanted)


def test_the_representation_learns_with_the_student_and_targets_lag():
    m = method(Learned(3, 8, groups=4))
    assert m.trained().keys() == {"student", "heads", "motion"}
    sum(m.loss(clips()).values()).backward()
    assert m.motion.head[-1].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in m.motion_target.parameters())
    with torch.no_grad():
        m.motion.head[-1].bias += 1
    m.after_step()
    assert m.motion_target.net.head[-1].bias == pytest.approx(torch.full((3,), 0.05))
    assert method(Differences()).trained().keys() == {"student", "heads"}


def test_the_noisy_end_is_pure_noise_also_where_the_path_keeps_data_there():
    m = method()
    m.student.denoiser.path = path = VP()
    x0, t = 100 * torch.ones(2, 3, 2, 4, 4), torch.tensor([path.t_max, 0.5]).double()
    x = m.state(None, x0, t, None)
    assert x[0].abs().max() < 6 and x[1].mean() > 10


def test_half_of_the_iterations_begin_at_the_students_own_clips():
    m, seen = method(mixed=1.0), []
    own = m.own_clips

    def kept(drawn, cond):
        seen.append(own(drawn, cond))
        return seen[-1]

    m.own_clips = kept
    drawn = m.drawn(clips())
    with torch.no_grad():
        m.reach(drawn, drawn.cond)
    bound = m.student.denoiser.bind(drawn.cond)
    torch.testing.assert_close(seen[0], bound(drawn.noise, 1.0).x0)
    assert seen[0].grad_fn is None
    m.mixed, seen[:] = 0.5, []
    with torch.no_grad():
        for _ in range(100):
            m.reach(drawn, drawn.cond)
    assert 30 < len(seen) < 70
    with pytest.raises(ValueError, match="a share in"):
        method(mixed=1.5)


# --- what the critic sees -----------------------------------------------------------------------------------------


def test_gradients_of_the_critic_reach_the_student_alone():
    m = method(motion=Raw())
    drawn = m.drawn(clips())
    reached = m.reach(drawn, drawn.cond)
    with frozen(m.critics):
        adversarial = m.student_terms(reached, drawn, clips())["adversarial"]
    adversarial.backward()
    assert all(p.grad is None for p in m.heads.parameters())
    assert m.student.denoiser.net.model.proj_out.weight.grad.abs().sum() > 0
    m.zero_grad()
    held = reached._replace(
        estimate=reached.estimate.__class__(reached.estimate.x0.detach(), reached.estimate.eps.detach())
    )
    sum(m.critic_terms(held, drawn, clips()).values()).backward()
    assert all(p.grad is not None for p in m.heads.parameters())
    assert m.student.denoiser.net.model.proj_out.weight.grad is None


def test_pictures_are_the_given_set_or_frames_of_the_data():
    m, batch = method(), clips()
    assert m.pictures(batch).shape == (2, 3, 2, 8, 8)
    image = torch.randn(2, 3, 12, 12)
    assert torch.equal(m.pictures({**batch, "image": image})[:, :, 1], image)
    assert terms(m, {**batch, "image": image})["critic"].isfinite()
    with pytest.raises(ValueError, match=r"pictures are \(B, 3, H, W\)"):
        m.pictures({**batch, "image": image[:, :1]})
    with pytest.raises(ValueError, match="no pairs"):
        method(adversary=adversary(loss=Relativistic()))


def test_frames_come_from_parts_of_their_own():
    video = torch.arange(8.0)[None, None, :, None, None].expand(500, 1, 8, 1, 1)
    found = sampled(video, 2).flatten(1)
    assert set(found[:, 0].tolist()) == {0, 1, 2, 3} and set(found[:, 1].tolist()) == {4, 5, 6, 7}
    assert torch.equal(sampled(video[:3], 8), video[:3])
    with pytest.raises(ValueError, match="9 frames of a clip of 8"):
        sampled(video, 9)


def test_augmentation_is_differentiable_and_can_be_nothing():
    x = torch.randn(64, 3, 2, 12, 12).requires_grad_()
    assert torch.equal(DiffAugment(False, 0, 0)(x), x)
    changed = DiffAugment()(x)
    (slope,) = torch.autograd.grad(changed.sum(), x)
    assert changed.shape == x.shape and slope.isfinite().all()
    ones = torch.ones(2000, 1, 1, 12, 12)
    cut = DiffAugment(False, 0, 0.5)(ones)
    assert set(cut.unique().tolist()) == {0, 1} and (cut == 0).sum((1, 2, 3, 4)).max() == 36
    ramp = torch.arange(12.0).expand(1000, 1, 1, 12, 12) + 1
    moved = DiffAugment(False, 0.125, 0)(ramp)[:, 0, 0, 6]
    assert set((moved[:, 6] - 7).tolist()) == {-2, -1, 0, 1, 2}
    light = DiffAugment(True, 0, 0)(torch.zeros(4000, 3, 1, 2, 2))
    assert light.abs().max() <= 0.5 and light.mean().abs() < 0.02


def test_the_encoder_is_fixed_and_takes_clips_as_pictures():
    a, b = FrameEncoder(3, 16), FrameEncoder(3, 16)
    video = torch.randn(2, 3, 5, 12, 12)
    found = a(video)
    assert torch.equal(found, b(video)) and found.shape == (10, 16, 2, 2)
    torch.testing.assert_close(found[3:4], a(video[:1, :, 3]))
    assert not any(p.requires_grad for p in a.parameters())
    assert 0.3 < float(a(torch.randn(8, 3, 32, 32)).square().mean()) < 3


# --- data ---------------------------------------------------------------------------------------------------------


def test_pictures_beside_clips_are_drawn_with_them():
    data = WithPictures(Procedural(MovingShapes(), 8), Stills(MovingShapes(edge=0.1)), batch_size=4)
    data.setup()
    first, second = (next(iter(data.train_dataloader())) for _ in range(2))
    assert first["image"].shape == (4, 3, 16, 16) and first["video"].shape == (4, 3, 8, 16, 16)
    assert all(torch.equal(first[k], second[k]) for k in first) and "image" not in data.val


def test_a_folder_of_pictures(tmp_path):
    import cv2

    for k in range(3):
        cv2.imwrite(str(tmp_path / f"{k}.png"), torch.full((20, 30, 3), 100 * k, dtype=torch.uint8).numpy())
    images = PictureFolder(str(tmp_path), 8).images(20, torch.Generator().manual_seed(0))
    assert images.shape == (20, 3, 8, 8)
    assert set(((images.mean((1, 2, 3)) + 1) * 127.5).round().tolist()) == {0, 100, 200}
    with pytest.raises(VideoError, match="no pictures"):
        PictureFolder(str(tmp_path / "none"))
    (tmp_path / "3.png").write_bytes(b"x")
    with pytest.raises(VideoError, match=r"3\.png: cannot be read"):
        PictureFolder(str(tmp_path), 8).images(50, torch.Generator())
