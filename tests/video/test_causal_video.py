"""Clips made block by block: prefixes, flat cost, the core's trainings."""

from itertools import islice

import pytest
import torch
from small import causal, clips, teacher

from fewstep.artifacts import load, save
from fewstep.distill.dmd import DMD
from fewstep.distill.rollout import LastStep, Rollout
from fewstep.solvers import DDIM
from fewstep.train.teacher_forcing import TeacherForcing
from fewstep_video.causal_video import CausalVideo
from fewstep_video.causal_video import causal as made_causal

LABELS = torch.tensor([0, 2])


def test_a_longer_clip_begins_as_a_shorter_one_bit_for_bit():
    model = causal()
    assert torch.equal(model(LABELS, 48, seed=3)[:, :, :24], model(LABELS, 24, seed=3))


def test_a_clip_is_the_same_alone_and_beside_others():
    model = causal()
    both, alone = model(LABELS, 12), model(LABELS[1:], 12, clips=[1])
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-5)
    assert not torch.equal(both[0], both[1])


def test_the_stream_has_no_end_and_the_cache_no_growth():
    model, sizes = causal(), []
    told, past = {"label": LABELS}, torch.zeros(2, 3, 0, 8, 8)
    for _ in range(40):
        told = model.continued(told, past)
        past = torch.zeros(2, 3, 2, 8, 8)
        sizes.append(told["cache"].numel())
    assert sizes[2:] == [sizes[2]] * 38 and sizes[0] == 0
    blocks = [*islice(model.stream(LABELS), 7)]
    assert torch.equal(torch.cat(blocks, 2).clamp(-1, 1), model(LABELS, 14))
    assert next(model.stream(LABELS, area=(12, 16))).shape == (2, 3, 2, 12, 16)


def test_every_block_costs_the_same_evaluations_on_the_same_tokens():
    model, calls = causal(steps=2), []
    hook = model.denoiser.net.net.model.blocks[0].register_forward_pre_hook(lambda m, a: calls.append(a[0].shape[1]))
    model(LABELS, 20)
    hook.remove()
    # Two steps for each of ten blocks, and one look at each but the last.
    assert len(calls) == 10 * 2 + 9 and set(calls) == {4}


def test_the_core_samples_as_the_stream_does():
    model = causal()
    noise = torch.randn(2, 3, 12, 8, 8)
    found = model.generate(noise, {"label": LABELS}, solver=DDIM())
    told, past = {"label": LABELS}, noise[:, :, :0]
    for n, block in enumerate(noise.split(2, 2)):
        told = model.continued(told, past)
        past = super(type(model).__mro__[1], model).generate(block, told, solver=DDIM())
        assert torch.equal(past, found[:, :, 2 * n : 2 * n + 2])


def test_the_rollout_of_self_forcing_is_its_own_sampling():
    model = causal(steps=3)
    model.solver = DDIM()
    noise = torch.randn(2, 3, 8, 8, 8)
    reached = Rollout(LastStep())(model, noise, {"label": LABELS})
    torch.testing.assert_close(reached.estimate.x0, model.generate(noise, {"label": LABELS}), rtol=0, atol=2e-6)
    reached.estimate.x0[:, :, 6:].sum().backward()
    assert all(p.grad is not None for p in model.denoiser.net.net.model.blocks.parameters())


def test_teacher_forcing_is_the_loss_of_every_block_given_the_data_before():
    model = TeacherForcing(causal(), 10)
    batch = clips()
    torch.manual_seed(1)
    whole = model.forced(model.student, batch)
    torch.manual_seed(1)
    t, eps = model.times(2, model.student.denoiser.path), torch.randn_like(batch["video"])
    told, x0, losses, past = {"label": batch["label"]}, batch["video"], [], batch["video"][:, :, :0]
    for n in range(4):
        told = model.student.continued(told, past)
        past = x0[:, :, 2 * n : 2 * n + 2]
        e = eps[:, :, 2 * n : 2 * n + 2]
        x_t = model.student.denoiser.path.sample(past, e, t)
        losses.append((model.student.denoiser.raw(x_t, t, told) - (e - past)).square().flatten(1).mean(1))
    torch.testing.assert_close(whole, torch.stack(losses).mean(0), rtol=1e-5, atol=1e-6)


def test_a_bidirectional_teacher_scores_clips_of_a_causal_student():
    model = DMD(teacher(), 10, student=causal(), steps=2, ratio=1)
    with torch.no_grad():
        for p in model.fake.denoiser.net.model.proj_out.parameters():
            p += 0.1
    sum(model.loss(clips()).values()).backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in model.student.denoiser.net.net.model.blocks.parameters()
    )


def test_artifacts_hold_causal_clips(tmp_path):
    model = causal()
    save(model, tmp_path / "model")
    found = load(tmp_path / "model")
    assert isinstance(found, CausalVideo) and found.size == 2
    assert torch.equal(found(LABELS, 12), model(LABELS, 12))


def test_what_it_refuses():
    model = causal()
    with pytest.raises(ValueError, match="7 frames are not made of blocks of 2; the nearest number that is: 8"):
        model(LABELS, 7)
    with pytest.raises(ValueError, match="not guided"):
        model(LABELS, 4, cfg=2.0)
    with pytest.raises(ValueError, match="needs a network with a cache"):
        CausalVideo(teacher().denoiser, DDIM(), model.grid, shape=(3, 8, 8, 8))
    assert made_causal(teacher(), window=6).denoiser.net.window == 6


def test_without_a_sink_the_past_is_forgotten_and_with_one_it_is_not():
    """One layer, so that nothing is handed down: the first block moves a far one through the sink alone."""
    for sink, moves in ((2, True), (0, False)):
        model = causal(sink=sink, window=4, num_layers=1)
        far = []
        for change in (0.0, 1.0):
            told, past = {"label": LABELS}, torch.zeros(2, 3, 0, 8, 8)
            for k in range(8):
                told = model.continued(told, past)
                past = torch.full((2, 3, 2, 8, 8), 0.1 * k + (change if k == 0 else 0))
            x = torch.ones(2, 3, 2, 8, 8)
            far.append(model.denoiser(x, torch.full((2,), 0.5), told).x0)
        assert (not torch.equal(*far)) == moves
