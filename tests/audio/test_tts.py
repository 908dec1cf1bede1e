"""The text-to-speech model: boundary, padding, seeds, evaluations; the losses of its teacher; students."""

import pytest
import torch
from small_tts import SYMBOLS, WAYS, batch, small

from fewstep.artifacts import load, save
from fewstep.denoiser import Denoiser
from fewstep.distances import SquaredL2
from fewstep.distill.consistency import ConsistencyDistillation
from fewstep.distill.intervals import Adjacent
from fewstep.distill.jump_times import TimePairs
from fewstep.distill.mean_flow import MeanFlow
from fewstep.distill.velocity import OfTeacher
from fewstep.distill.weighting import InverseNoise, InverseOutputScale
from fewstep.grids import Karras
from fewstep.paths import PriorEDM
from fewstep.precondition import ConsistencyPrecondition
from fewstep.solvers import DDIM, GammaSampling, Heun
from fewstep_audio.item_noise import item_generator
from fewstep_audio.text import TextError
from fewstep_audio.tts import SpeechJumps
from fewstep_audio.tts.alignment import AlignmentError
from fewstep_audio.tts.text_to_speech import spread, windows
from fewstep_audio.tts.training import TextToSpeechTraining, diffusion_loss, duration_loss, prior_loss

TEXTS = [SYMBOLS.ids(t) for t in ("abc", "face bed", "hij")]


def say(model, which, seed=0, **kwargs):
    with torch.no_grad():
        return model([TEXTS[i] for i in which], [item_generator(seed, i) for i in which], 1, **kwargs)


def cut(said, n):
    return said.mel[n, :, : said.frames[n]]


@pytest.mark.parametrize("way", ["edm", "prior"])
def test_the_denoiser_is_the_identity_at_the_clean_end(way):
    model = small(way).double()
    x, cond, y = model.prepare({k: v.double() if v.is_floating_point() else v for k, v in batch(20, 12).items()})
    sigma = torch.full((2,), 0.002, dtype=torch.float64)
    wanted = x if y is None else x - 0.002 * y  # D(x, s_min) of the state without its mean
    assert torch.allclose(model.denoiser(x, sigma, cond, y).x0, wanted, atol=1e-14)
    assert (model.denoiser(x, sigma + 1, cond, y).x0 - x).abs().max() > 0.1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("solver", [None, GammaSampling(1.0)])
def test_an_item_sounds_the_same_alone_and_in_a_batch(way, solver):
    model = small(way)
    together = say(model, [0, 1, 2], solver=solver)
    assert together.frames.unique().numel() > 1
    for i in range(3):
        alone = say(model, [i], solver=solver)
        assert alone.frames[0] == together.frames[i]
        assert torch.allclose(cut(alone, 0), cut(together, i), atol=2e-5)
    other = say(model, [0], seed=1, solver=solver)
    assert (cut(other, 0) - cut(together, 0)).abs().max() > 0.01


@pytest.mark.parametrize(
    ("way", "solver", "steps", "nfe"),
    [
        ("edm", None, 4, 7),
        ("edm", DDIM(), 4, 4),
        ("prior", None, 5, 5),
        ("prior", GammaSampling(1.0), 2, 2),
        ("flow", None, 1, 1),
    ],
)
def test_the_network_is_called_as_often_as_said(way, solver, steps, nfe):
    """Heun's last step is one evaluation (2 n - 1); the others one each."""
    model, calls = small(way), []
    model.denoiser.net.register_forward_hook(lambda *_: calls.append(1))
    say(model, [0, 1], steps=steps, solver=solver)
    assert len(calls) == nfe


def test_one_step_is_one_evaluation_at_the_noisy_end():
    """x = f(80 (eps + mu), 80), and with two steps f again after noise around mu: CoMoSpeech's sampler."""
    model = small("prior", 1)
    data, levels = batch(20, 12), Karras()(PriorEDM(), 2)
    x0, cond, mu = model.prepare(data)
    noise = torch.randn(x0.shape) * cond["mask"]
    f = lambda x, t: model.denoiser(x, torch.full((2,), t, dtype=torch.float64), cond, mu).x0
    with torch.no_grad():
        one = f(80 * (noise + mu), 80.0) * cond["mask"]
        assert torch.allclose(model.generate(noise, cond, mu, steps=1), one, atol=1e-4)
        again = torch.randn(x0.shape)
        two = f(f(80 * (noise + mu), 80.0) + levels[1] * (again + mu), float(levels[1])) * cond["mask"]
        found = model.generate(noise, cond, mu, 2, GammaSampling(1.0), lambda row: again)
    assert torch.allclose(found, two.float(), atol=1e-4)


def test_durations_follow_the_speed():
    model = small()
    slow, fast = say(model, [1]), say(model, [1], speed=1.7)
    text_mask = torch.ones(1, 1, len(TEXTS[1]))
    log_d = model.encoder(TEXTS[1][None], text_mask, torch.tensor([1]))[1]
    assert torch.equal(fast.durations, (log_d.exp() / 1.7).ceil().long())
    assert torch.equal(slow.durations.sum(1), slow.frames)
    with pytest.raises(ValueError, match="positive"):
        say(model, [1], speed=0.0)


def test_speakers_are_named():
    model = small()
    assert [model.speaker_number(n) for n in (None, "ann", "bob")] == [0, 0, 1]
    with pytest.raises(TextError, match="unknown speaker 'carl'; the model has ann, bob"):
        model.speaker_number("carl")
    one = small(speakers=())
    assert one.speaker_number(None) is None
    with pytest.raises(TextError, match="one voice"):
        one.speaker_number("ann")
    with torch.no_grad():
        assert one([TEXTS[0]], [item_generator(0, 0)]).frames[0] > 3
    with pytest.raises(ValueError, match="the encoder is for 12 symbols, the model has 36"):
        small().__class__(model.denoiser, Heun(), Karras(), type(SYMBOLS)(), model.encoder, model.mel)


def test_too_short_recordings_are_refused():
    with pytest.raises(AlignmentError, match="item 1: 3 symbols, 2 frames"):
        small().prepare(batch(9, 2))


@pytest.mark.parametrize("way", WAYS)
def test_the_losses_of_the_teacher_are_those_of_its_equations(way):
    """Item by item, in loops."""
    model = small(way).double()
    data = {k: v.double() if v.is_floating_point() else v for k, v in batch(20, 12).items()}
    aligned = model.align(data)
    x0, cond, y = model.prepared(aligned)
    t, eps, path = torch.tensor([0.3, 0.7]).double(), torch.randn(x0.shape).double(), model.denoiser.path
    weighting = InverseNoise(2.0) if way == "flow" else InverseOutputScale(2.0, 0.5)
    weight = weighting(t, torch.zeros_like(t), path)
    found = [
        duration_loss(aligned.log_durations, aligned.durations, aligned.text_mask),
        prior_loss(x0, aligned.mu, aligned.mask),
        diffusion_loss(model.denoiser, x0, eps, t, weight, cond, y),
    ]
    duration, prior, diffusion = [], [], []
    for i, (frames, symbols) in enumerate(zip([20, 12], [5, 3], strict=True)):
        one = slice(i, i + 1)
        duration.append((aligned.log_durations[i, :symbols] - aligned.durations[i, :symbols].log()).square())
        mu, x, e = (v[one, :, :frames] for v in (aligned.mu, x0, eps))
        prior.append(-torch.distributions.Normal(mu, 1.0).log_prob(x).flatten())
        alone = {k: v[one] if k == "speaker" else v[one, :, :frames] for k, v in cond.items()}
        if way == "flow":
            x_t = (1 - t[i]) * x + t[i] * e
            error = (model.denoiser.raw(x_t, t[one], alone) - (e - x)).square()
        else:
            x_t = x + t[i] * (e + mu if way == "prior" else e)
            d = model.denoiser(x_t, t[one], alone, mu if way == "prior" else None).x0
            error = (t[i] ** 2 + 0.25) / (t[i] * 0.5) ** 2 * (d - x).square()
        diffusion.append(error.flatten())
    for value, parts in zip(found, (duration, prior, diffusion), strict=True):
        assert torch.allclose(value, torch.cat(parts).mean(), rtol=1e-10)


def test_the_encoder_learns_with_the_teacher_alone():
    module = TextToSpeechTraining(small(), 3)
    module.train()
    assert module.student.encoder.training
    assert module.student.encoder.blocks[0].drop.training
    sum(module.loss(batch(20, 12)).values()).backward()
    assert all(p.grad is not None for p in module.student.parameters())
    student = ConsistencyDistillation(small(), 3, intervals=Adjacent(4, Karras(clean=False)))
    student.train()
    assert not student.student.encoder.training
    assert student.student.denoiser.training
    sum(student.loss(batch(20, 12)).values()).backward()
    assert all(p.grad is None for p in student.student.encoder.parameters())
    assert all(p.grad is not None for p in student.student.denoiser.parameters())


@pytest.mark.parametrize("way", ["edm", "prior"])
def test_the_student_agrees_with_itself_on_an_exact_trajectory(way):
    """A teacher whose D is the mean of a point: its trajectories are straight, f = D everywhere, and so the loss is 0."""
    model = small(way)
    data = batch(20, 12)
    x0, cond, y = model.prepare(data)

    class Exact(torch.nn.Module):
        def forward(self, x, t, mu, mask, speaker):
            sigma = (4 * t).exp()[:, None, None].double()
            shifted = sigma - 0.002
            skip, out = 0.25 / (shifted**2 + 0.25), shifted * 0.5 / (sigma**2 + 0.25).sqrt()
            return ((x0 - skip * x * (sigma**2 + 0.25).sqrt()) / out).float() * mask

    model.denoiser = Denoiser(Exact(), model.denoiser.path, ConsistencyPrecondition())
    method = ConsistencyDistillation(model, 3, intervals=Adjacent(6, Karras(clean=False)), distance=SquaredL2(), mu=0.0)
    torch.manual_seed(0)
    t, s = method.times(x0)
    x_t, t, x_s, s = method.states(x0, cond, y, torch.ones(2))
    inside = s > 0.01
    assert inside.any()
    assert method.compare(x_t, t, x_s, s, cond, y)[inside].max() < 1e-6


def test_mean_flow_makes_a_student_that_jumps():
    teacher = small("flow")
    method = MeanFlow(teacher, 3, times=TimePairs(equal=0.5), velocity=OfTeacher(), c=1.0)
    model = method.student.eval()
    assert isinstance(model, SpeechJumps)
    x0, cond, y = teacher.prepare(batch(20, 12))
    noise = torch.randn(x0.shape)
    with torch.no_grad():
        assert torch.allclose(model.generate(noise, cond, y), teacher.generate(noise, cond, y, steps=1), atol=1e-5)
    assert torch.allclose(cut(say(model, [0, 1]), 0), cut(say(model, [0]), 0), atol=1e-5)
    data = batch(20, 12)
    beyond = {**data, "mel": torch.where(torch.arange(20) < data["frames"][:, None, None], data["mel"], 50.0)}
    losses = []
    for given in (data, beyond):
        torch.manual_seed(0)
        losses.append(method.loss(given)["mean_flow"])
    assert losses[0] == losses[1] > 0


def test_learning_looks_at_windows():
    frames = torch.tensor([20, 6])
    time = torch.arange(20.0).expand(2, 1, 20)
    mask = (time < frames[:, None, None]).float()
    starts = set()
    for seed in range(40):
        torch.manual_seed(seed)
        cut_time, cut_mask = windows(frames, 8, time, mask)
        assert torch.equal(cut_time[0, 0], cut_time[0, 0, 0] + torch.arange(8))
        assert cut_mask[0].all()
        assert cut_time[1, 0].tolist() == list(range(8))
        assert cut_mask[1].sum() == 6
        starts.add(int(cut_time[0, 0, 0]))
    assert starts == set(range(13))
    model = small(crop=8)
    assert model.prepare(batch(20, 12)).x0.shape[2] == 20
    assert model.train().prepare(batch(20, 12)).x0.shape[2] == 8


def test_an_artifact_speaks_as_its_model(tmp_path):
    model = small("prior", crop=8)
    again = load(save(model, tmp_path / "model"))
    assert torch.equal(say(model, [0, 1]).mel, say(again, [0, 1]).mel)
    assert again.mel.fingerprint == model.mel.fingerprint
    jumps = MeanFlow(small("flow"), 3).student.eval()
    assert torch.equal(say(jumps, [1]).mel, say(load(save(jumps, tmp_path / "jumps")), [1]).mel)


def test_figures_and_pictures():
    model, data = small(), batch(20, 12)
    x0, cond, _ = model.prepare(data)
    wanted = torch.stack([x0[i, :, :n].std(correction=0) for i, n in enumerate([20, 12])])
    assert torch.allclose(spread(x0, cond["mask"]), wanted, atol=1e-6)
    assert set(model.scores(data)) == {"spread"}
    assert model.preview(data)["recording_mean_sample"].shape == (3, 24, 40)
    figures = TextToSpeechTraining(model, 3).evaluate(model, data)
    assert set(figures) == {"duration", "prior", "diffusion", "spread"}
    assert all(bool(v.isfinite().all()) for v in figures.values())
    assert model.example().x0.shape == (2, 8, 16)
