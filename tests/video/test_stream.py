"""Streams: frames in flight against one after the other, residual guidance, what is skipped, the report."""

from itertools import pairwise

import pytest
import torch
from small import causal, teacher

from fewstep.guidance.similarity import SimilarityFilter
from fewstep.sampling import sample
from fewstep.solvers import DDIM, GammaSampling
from fewstep.stepping import step
from fewstep_video.stream.batch import StreamBatch
from fewstep_video.stream.follow import Follow
from fewstep_video.stream.guidance import Full, OnetimeResidual, SelfResidual, Unguided
from fewstep_video.stream.noise_controller import NoiseController
from fewstep_video.stream.report import Spread, StreamReport
from fewstep_video.stream.skipping import Skipping

TIMES = (0.9, 0.6, 0.3, 0.0)
COND, WITHOUT = {"label": torch.tensor([1])}, {"label": torch.tensor([3])}


def frame(seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(1, 3, 8, 8, 8, generator=g, dtype=dtype)


def model():
    return teacher().double()


def in_turn(m, x0, stream, guide=None):
    """The same steps one after the other, with the slots' noise."""
    path, noise = m.denoiser.path, stream.noise
    x = path.sample(x0, noise[:1], torch.tensor([TIMES[0]]).double())
    bound = guide or m.denoiser.bind(COND)
    for k, (t, s) in enumerate(pairwise(TIMES)):
        x = step(path, stream.solver, x, bound(x, torch.tensor([t]).double()), t, s, None, noise[k + 1 : k + 2])
    return x


# --- frames in flight ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [DDIM(), GammaSampling(1.0)])
def test_every_frame_is_what_its_steps_one_after_the_other_make_of_it(solver):
    m = model()
    stream = StreamBatch(m.denoiser, TIMES, solver)
    given = [frame(k) for k in range(5)]
    out = [stream(x, COND) for x in given]
    assert out[0] is None and out[1] is None and stream.latency == 3
    found = [x for x in out if x is not None] + stream.drain()
    assert len(found) == 5
    for x0, x in zip(given, found, strict=True):
        torch.testing.assert_close(x, in_turn(m, x0, stream), rtol=0, atol=1e-6)


def test_equal_inputs_have_equal_outputs_once_it_is_full():
    stream = StreamBatch(model().denoiser, TIMES)
    out = [stream(frame(), COND) for _ in range(6)][2:]
    for x in out[1:]:
        torch.testing.assert_close(x, out[0], rtol=0, atol=1e-6)


def test_the_solvers_own_loop_makes_the_same():
    m = model()
    stream = StreamBatch(m.denoiser, TIMES)
    found = [stream(frame(), COND) for _ in range(3)][2]
    x = m.denoiser.path.sample(frame(), stream.noise[:1], torch.tensor([TIMES[0]]).double())
    wanted = sample(m.denoiser.bind(COND), x, m.denoiser.path, DDIM(), torch.tensor(TIMES).double())
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_one_evaluation_a_frame_whatever_the_steps():
    m, sizes = model(), []
    m.denoiser.net.register_forward_pre_hook(lambda mod, args: sizes.append(len(args[0])))
    for guidance, wanted in ((Unguided(), 3), (SelfResidual(), 3), (OnetimeResidual(), 4), (Full(), 6)):
        stream, sizes[:] = StreamBatch(m.denoiser, TIMES, guidance=guidance), []
        for k in range(4):
            stream(frame(k), COND, WITHOUT)
        assert len(sizes) == 4 and sizes[-1] == wanted


def test_a_frame_keeps_the_conditions_it_came_in_with():
    m, other = model(), {"label": torch.tensor([2])}
    stream = StreamBatch(m.denoiser, TIMES)
    stream(frame(0), COND)
    stream(frame(1), other)
    torch.testing.assert_close(stream(frame(2), other), in_turn(m, frame(0), stream), rtol=0, atol=1e-6)


def test_fewer_frames_than_steps_come_out_too():
    m = model()
    stream = StreamBatch(m.denoiser, TIMES)
    assert stream(frame(), COND) is None
    (found,) = stream.drain()
    torch.testing.assert_close(found, in_turn(m, frame(), stream), rtol=0, atol=1e-6)
    assert StreamBatch(m.denoiser, TIMES).drain() == []


def test_times_decrease_within_the_path():
    with pytest.raises(ValueError, match="decreasing"):
        StreamBatch(model().denoiser, (0.3, 0.6, 0.0))
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        StreamBatch(model().denoiser, (1.2, 0.6, 0.0))


# --- guidance -----------------------------------------------------------------------------------------------------


def run(m, guidance, frames=4):
    stream = StreamBatch(m.denoiser, TIMES, guidance=guidance)
    return [stream(frame(k), COND, WITHOUT) for k in range(frames)][2:], stream


def test_full_is_ordinary_guidance():
    m = model()
    found, stream = run(m, Full(2.0))
    for k, x in enumerate(found):
        torch.testing.assert_close(x, in_turn(m, frame(k), stream, m.bind(COND, None, 2.0)), rtol=0, atol=1e-5)


def test_scale_one_is_no_guidance():
    m = model()
    plain, _ = run(m, Unguided())
    for guidance in (Full(1.0), SelfResidual(1.0), OnetimeResidual(1.0), SelfResidual(1.0, delta=0.5)):
        for a, b in zip(run(m, guidance)[0], plain, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_the_residual_keeps_its_frames_own_reference():
    """self: D_u is the input at every step; onetime: the unconditional x0 of the first step at every step."""
    m = model()
    for guidance in (SelfResidual(1.7), OnetimeResidual(1.7)):
        found, stream = run(m, guidance)
        for k, x in enumerate(found):
            state = m.denoiser.path.sample(frame(k), stream.noise[:1], torch.tensor([0.9]).double())
            ref = frame(k)
            if isinstance(guidance, OnetimeResidual):
                ref = m.denoiser(state, torch.tensor([0.9]).double(), WITHOUT).x0
            for t, s in pairwise(TIMES):
                own = m.denoiser(state, torch.tensor([t]).double(), COND).x0
                x0 = ref + 1.7 * (own - ref)
                state = (1 - s) * x0 + s * (state - (1 - t) * x0) / t
            torch.testing.assert_close(x, state, rtol=0, atol=1e-5)


# --- causal streams -----------------------------------------------------------------------------------------------


def test_at_full_noise_a_stream_that_follows_is_the_models_own():
    m = causal()
    follow = Follow(m, torch.tensor([0]), 1.0)
    blocks = torch.randn(1, 3, 8, 8, 8).split(2, 2)
    found = torch.cat([follow(b) for b in blocks], 2)
    wanted = m(torch.tensor([0]), 8)
    torch.testing.assert_close(found.clamp(-1, 1), wanted, rtol=0, atol=1e-5)
    assert follow.drain() == []


def test_with_little_noise_it_is_the_input_where_the_model_is_sure_of_it():
    m = causal()
    m.denoiser.net.net.call = lambda x, t, c: x * 0  # u = 0: x_0 is x_nu
    follow, block = Follow(m, torch.tensor([0]), 0.02), torch.randn(1, 3, 2, 8, 8)
    assert follow.grid(0.02).tolist() == [0.02, 0.0]
    assert (follow(block) - block).abs().max() < 0.2


def test_the_models_own_times_follow_the_level():
    follow = Follow(causal(steps=4), torch.tensor([0]), 0.6)
    assert follow.grid(0.6).tolist() == [0.6, 0.5, 0.25, 0.0]
    assert follow.grid(0.505).tolist() == [0.505, 0.25, 0.0]
    assert follow.grid(1.0).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_motion_takes_noise_away_and_stillness_gives_it_back():
    control = NoiseController(0.8)
    still = torch.zeros(1, 3, 2, 4, 4)
    assert control(still) == pytest.approx(0.8)
    moving = still.clone()
    moving[:, :, 1] = 0.1  # rms .1 of .2: half of full motion
    assert control(moving) == pytest.approx(0.9 * 0.75 + 0.1 * 0.8)
    for _ in range(20):
        level = control(moving[:, :, 1:].expand(1, 3, 2, 4, 4))
    assert level == pytest.approx(0.8)
    jump = NoiseController(0.8)
    jump(still)
    assert jump.motion(still + 1) == 1.0, "also between blocks, and no more than full"
    with pytest.raises(ValueError, match="span"):
        NoiseController(0.1, span=0.2)


# --- skipping -----------------------------------------------------------------------------------------------------


class Doubled:
    calls = 0

    def __call__(self, x):
        self.calls += 1
        return 2 * x

    def drain(self):
        return []


def test_nine_of_ten_blocks_of_a_still_scene_are_skipped():
    stage = Skipping(Doubled(), SimilarityFilter(0.98, generator=torch.Generator().manual_seed(0)))
    still = torch.randn(1, 3, 2, 8, 8)
    for _ in range(220):
        assert torch.equal(stage(still), 2 * still)
    assert stage.skipped / 220 >= 0.9 and stage.stage.calls + stage.skipped == 220


def test_a_changed_block_is_never_skipped():
    for seed in range(50):
        stage = Skipping(Doubled(), SimilarityFilter(0.98, generator=torch.Generator().manual_seed(seed)))
        g = torch.Generator().manual_seed(seed)
        scene, change = (torch.randn(1, 3, 2, 8, 8, generator=g) for _ in range(2))
        for _ in range(7):
            stage(scene)
        other = scene + 0.25 * change
        assert torch.equal(stage(other), 2 * other)


def test_as_many_blocks_come_out_as_went_in():
    m = teacher()
    pipe = StreamBatch(m.denoiser, TIMES)
    stage = Skipping(lambda_stage(pipe), SimilarityFilter(0.98, generator=torch.Generator().manual_seed(0)))
    out = [stage(frame(0, torch.float32)) for _ in range(30)]
    assert stage.skipped > 10
    assert len([x for x in out if x is not None]) + len(stage.drain()) == 30


def lambda_stage(pipe):
    class One:
        drain = staticmethod(pipe.drain)

        def __call__(self, x):
            return pipe(x, COND)

    return One()


# --- the report ---------------------------------------------------------------------------------------------------


def test_the_report_knows_what_was_late():
    report = StreamReport(10, 100.0)
    report.wrote(1, 100.5, since=100.4)
    report.wrote(2, 100.6, since=100.5)  # frames 1 and 2 are due at .6 and .7
    report.wrote(1, 101.0, since=100.7)  # frame 3 at .8
    found = report.summary()
    assert (found["frames"], found["first_frame_ms"], found["fps"]) == (4, 500.0, 4.0)
    assert found["deadline"] == {"fps": 10, "missed": 1, "share": 0.25, "worst_ms": 200.0}
    assert found["interval_ms"] == 250.0 and found["jitter_ms"] == 150.0
    assert found["latency_ms"]["most"] == 300.0 and found["latency_ms"]["mean"] == 150.0
    assert StreamReport(8, 0.0).summary()["frames"] == 0


def test_quantiles_are_within_two_per_cent():
    spread, values = Spread(), torch.rand(5000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.01
    for v in values.tolist():
        spread.add(v)
    for share in (0.05, 0.5, 0.95):
        assert spread.quantile(share) == pytest.approx(float(values.quantile(share)), rel=0.025)
    assert spread.mean == pytest.approx(float(values.mean())) and spread.deviation == pytest.approx(
        float(values.std(correction=0))
    )
