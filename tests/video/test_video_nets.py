"""Adapters of diffusers' networks, codecs, and generators of diffusers' folders, all with tiny random weights."""

import pytest
import torch
from torch import nn
from video_folders import CASES, COG, COG_VAE, KL, LTXC, MOTION, UNET3D, WAN, WAN_VAE, built, diffusers_folder

from fewstep import Denoiser
from fewstep.artifacts import load, save
from fewstep.grids import Uniform
from fewstep.nets.adapter import trainable
from fewstep.nets.scalars import with_scalars
from fewstep.paths import RectifiedFlow
from fewstep.prediction import U
from fewstep.solvers import DDIM
from fewstep_video.checkpoints import from_folder
from fewstep_video.codecs import CogVideoXCodec, FrameCodec, WanCodec
from fewstep_video.nets import LTX, Classes, CogVideoX, Texts, UNet3D, UNetMotion, Wan
from fewstep_video.texts import WordVectors
from fewstep_video.video_generator import VideoGenerator

NETS = [
    (Wan, WAN),
    (CogVideoX, {**COG, "use_rotary_positional_embeddings": False, "use_learned_positional_embeddings": False}),
    (CogVideoX, {**COG, "use_learned_positional_embeddings": False}),
    (LTX, LTXC),
    (UNetMotion, MOTION),
    (UNet3D, UNET3D),
]
X = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("kind", "config"), NETS, ids=[f"{k.__name__}{i}" for i, (k, _) in enumerate(NETS)])
def test_a_network_answers_in_the_layout_and_learns_from_time_class_and_state(kind, config):
    net = built(kind, config)
    t, label = torch.tensor([0.2, 0.9], requires_grad=True), torch.tensor([0, 2])
    out = net(X, t, label=label)
    assert out.shape == X.shape and out.isfinite().all()
    out.square().sum().backward()
    assert t.grad is not None and (t.grad != 0).all()
    assert (
        net.condition.table.weight.grad[[0, 2]].abs().sum() > 0 and net.condition.table.weight.grad[1].abs().sum() == 0
    )
    # Samples of a batch do not see each other, and frames do.
    with torch.no_grad():
        alone = net(X[:1], t[:1], label=label[:1])
        assert torch.allclose(alone, out[:1], atol=1e-5)
        other = X.clone()
        other[0, :, 0] += 1
        assert (net(other, t, label=label) - out)[0, :, 3].abs().max() > 1e-6
        assert not torch.allclose(net(X, t, label=torch.tensor([1, 2]))[0], out[0], atol=1e-6)


@pytest.mark.parametrize(("kind", "config"), NETS, ids=[f"{k.__name__}{i}" for i, (k, _) in enumerate(NETS)])
def test_a_further_scalar_changes_nothing_at_first(kind, config):
    net = built(kind, config)
    wide = with_scalars(net, {"w": 10.0}).eval()
    t, label = torch.tensor([0.2, 0.9]), torch.tensor([0, 3])
    with torch.no_grad():
        assert torch.allclose(wide(X, t, label=label, w=torch.tensor([1.0, 7.0])), net(X, t, label=label), atol=1e-6)
    with pytest.raises(ValueError, match=r"takes \['label', 'w'\], it was given \['label'\]"):
        wide(X, t, label=label)


@pytest.mark.parametrize(("kind", "config"), NETS, ids=[f"{k.__name__}{i}" for i, (k, _) in enumerate(NETS)])
def test_a_generator_of_it_is_saved_and_loaded(kind, config, tmp_path):
    net = built(kind, config, Texts(2, 12, WordVectors(2, 12)))
    model = VideoGenerator(Denoiser(net, RectifiedFlow(), U()), DDIM(), Uniform(), 2, (3, 4, 8, 8)).eval()
    save(model, tmp_path / "m")
    again = load(tmp_path / "m").eval()
    text = torch.stack([again.condition.words("a red"), again.condition.words("blue")])
    with torch.no_grad():
        clips = model(text, seed=3)
        assert torch.equal(clips, again(text, seed=3)) and clips.abs().max() <= 1
        assert torch.allclose(clips[1:], again(text[1:], seed=3, clips=[1]), atol=1e-5), "whatever is beside it"
        assert not torch.allclose(again(text, seed=3, cfg=3.0), clips)


def test_what_does_not_fit_is_said_with_the_nearest_that_does():
    net = built(Wan, WAN)
    with pytest.raises(ValueError, match=r"clips of 3x8x9 .* the nearest that do are 4x8x8"):
        net(X[:, :, :3, :, :1].expand(-1, -1, -1, -1, 9), torch.zeros(2), label=torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="at most 32 frames, not 40"):
        VideoGenerator(Denoiser(built(UNetMotion, MOTION), RectifiedFlow(), U()), DDIM(), Uniform(), 1, (3, 40, 8, 8))
    with pytest.raises(ValueError, match="positions for 1024 patches"):
        net(torch.zeros(1, 3, 2050, 2, 2), torch.zeros(1), label=torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match="has no argument num_layer; it takes"):
        Wan({"num_layer": 3}, Classes(3))
    with pytest.raises(ValueError, match="tokens of 32, this WanTransformer3DModel takes 12"):
        Wan(WAN, Classes(3))
    with pytest.raises(ValueError, match="learnt positions for clips of 4x8x8, not 3x8x8"):
        built(CogVideoX, COG)(X[:, :, :3], torch.zeros(2), label=torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="2 names for a network of 3 classes"):
        VideoGenerator(Denoiser(net, RectifiedFlow(), U()), DDIM(), Uniform(), 1, (3, 4, 8, 8), names=["a", "b"])
    with pytest.raises(ValueError, match="2 tokens of 12, not"):
        built(Wan, WAN, Texts(2, 12))(X, torch.zeros(2), text=torch.zeros(2, 3, 12))


# --- codecs and folders -------------------------------------------------------------------------------------------------

CODECS = [
    (WanCodec, WAN_VAE, (4, 3, 4, 4), 16),
    (CogVideoXCodec, COG_VAE, (4, 3, 2, 2), 16),
    (FrameCodec, KL, (4, 5, 8, 8), 16),
]


@pytest.mark.parametrize(("kind", "config", "shape", "size"), CODECS, ids=[c[0].__name__ for c in CODECS])
def test_codecs_have_the_shape_they_say_and_the_autoencoders_own_numbers(kind, config, shape, size):
    torch.manual_seed(0)
    frames = 9 if kind is CogVideoXCodec else 5
    codec = kind(config)
    video = torch.rand(1, 3, frames, size, size) * 2 - 1
    with torch.no_grad():
        z = codec.encode(video)
        assert z.shape[1:] == shape == codec.shape(frames, size, size)
        assert codec.decode(z).shape == video.shape
        assert torch.equal(kind.of(codec.model).encode(video), z)
    assert not any(p.requires_grad for p in trainable(nn.ModuleList([codec])).parameters())
    with pytest.raises(ValueError, match="the nearest is"):
        codec.shape(frames, size, size + 1)


def test_wan_latents_are_in_the_units_of_the_pipeline():
    torch.manual_seed(0)
    codec = WanCodec(WAN_VAE)
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    with torch.no_grad():
        raw = codec.model.encode(video).latent_dist.mode()
        mean, std = (torch.tensor(WAN_VAE[k]).reshape(1, 4, 1, 1, 1) for k in ("latents_mean", "latents_std"))
        assert torch.allclose(codec.encode(video), (raw - mean) / std, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_diffusers_folder_is_a_generator(name, tmp_path):
    place = diffusers_folder(tmp_path / "f", name)
    frames = 9 if name == "cogvideox" else 5
    model = from_folder(str(place), frames, 16, 16, 2, steps=2).eval()
    batch = {"video": torch.rand(2, 3, frames, 16, 16) * 2 - 1, "text": torch.randn(2, 2, 12)}
    x0, cond, _ = model.prepare(batch)
    assert x0.shape[1:] == model.shape and torch.equal(x0, model.codec.encode(batch["video"]))
    with torch.no_grad():
        clips = model(batch["text"])
    assert clips.shape == batch["video"].shape and clips.isfinite().all()
    save(model, tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "saved").eval()(batch["text"]), clips)
    latents = from_folder(str(place), *model.shape[1:], 2, latents=True)
    assert latents.codec is None and latents.shape == model.shape
    # The network is the folder's own: its raw output at a time of the schedule.
    t = torch.full((2,), float(model.grid(model.denoiser.path, 2)[0]))
    seen = model.denoiser.net.call(
        x0, model.denoiser.prediction.label(t, model.denoiser.path.coeffs(t, x0)), batch["text"]
    )
    assert torch.allclose(model.denoiser.raw(x0, t, cond), seen, atol=1e-5)


def test_cogvideox_levels_are_those_of_its_scheduler():
    from diffusers import CogVideoXDDIMScheduler

    from fewstep_video.cogvideox_schedule import read_cogvideox

    for config in (
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "snr_shift_scale": 3.0},
        {"snr_shift_scale": 1.0},
    ):
        scheduler, found = CogVideoXDDIMScheduler(**config), read_cogvideox(config)
        a, _, s = found.path.schedule(torch.arange(1000, dtype=torch.float64))
        assert (a**2 - scheduler.alphas_cumprod.double()).abs().max() < 1e-5
        assert torch.allclose(a**2 + s**2, torch.ones(1000, dtype=torch.float64))
        scheduler.set_timesteps(7)
        assert found.times(7)[:-1].tolist() == scheduler.timesteps.tolist()


def test_bad_folders_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="no transformer/config.json and no unet/config.json"):
        from_folder(str(tmp_path), 5, 16, 16, 2)
    place = diffusers_folder(tmp_path / "f", "wan")
    (place / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(ValueError, match="the scheduler says what the network predicts"):
        from_folder(str(place), 5, 16, 16, 2)
    (place / "transformer" / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    with pytest.raises(ValueError, match="holds a FluxTransformer2DModel; supported: WanTransformer3DModel"):
        from_folder(str(place), 5, 16, 16, 2)
