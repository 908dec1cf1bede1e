"""Small generators of clips for tests."""

import torch

from fewstep.denoiser import Denoiser
from fewstep.grids import Uniform
from fewstep.paths import RectifiedFlow
from fewstep.prediction import U
from fewstep.solvers import DDIM, GammaSampling
from fewstep_video.causal_video import CausalVideo
from fewstep_video.nets import Classes, Wan
from fewstep_video.video_generator import VideoGenerator

WAN = {
    "patch_size": (2, 4, 4),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 3,
    "out_channels": 3,
    "text_dim": 8,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
}


def wan(seed=0, classes=3, **changed):
    torch.manual_seed(seed)
    return Wan({**WAN, **changed}, Classes(classes, 2, 8))


def teacher(seed=0, shape=(3, 8, 8, 8), steps=4, **changed):
    denoiser = Denoiser(wan(seed, in_channels=shape[0], out_channels=shape[0], **changed), RectifiedFlow(), U())
    return VideoGenerator(denoiser, DDIM(), Uniform(), steps, shape)


def causal(seed=0, shape=(3, 8, 8, 8), size=2, window=4, sink=2, steps=2, **changed):
    model = CausalVideo.of(teacher(seed, shape, **changed), size=size, window=window, sink=sink)
    model.solver, model.steps = GammaSampling(1.0), steps
    return model


def clips(n=2, shape=(3, 8, 8, 8), seed=0):
    g = torch.Generator().manual_seed(seed)
    return {"video": torch.rand(n, *shape, generator=g) * 2 - 1, "label": torch.arange(n) % 3}
