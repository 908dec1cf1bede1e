"""A text-to-speech model of the smallest size, with random weights, and batches for it."""

import torch

from fewstep.denoiser import Denoiser
from fewstep.grids import Karras, Uniform
from fewstep.paths import EDM, PriorEDM, RectifiedFlow
from fewstep.precondition import ConsistencyPrecondition
from fewstep.prediction import U
from fewstep.solvers import DDIM, Heun
from fewstep_audio.mels import Mel
from fewstep_audio.text import Characters
from fewstep_audio.tts import Residual1d, TextEncoder, TextToSpeech

MEL = Mel(8000, 256, 256, 128, 8, 0, 4000, log="log10", clamp=1e-3)
SYMBOLS = Characters("abcdefghij ", silent=".,;")
WAYS = {
    "edm": (EDM, ConsistencyPrecondition, Heun, Karras),
    "prior": (PriorEDM, ConsistencyPrecondition, DDIM, Karras),
    "flow": (RectifiedFlow, U, DDIM, Uniform),
}


def small(way="edm", steps=3, speakers=("ann", "bob"), symbols=SYMBOLS, mel=MEL, **kwargs):
    """The model; weights random everywhere."""
    path, prediction, solver, grid = WAYS[way]
    torch.manual_seed(0)
    voice = 4 if speakers else 0
    encoder = TextEncoder(
        symbols.count, mel.bands, 12, 16, 2, 1, duration_width=8, speakers=len(speakers), speaker_width=voice
    )
    net = Residual1d(mel.bands, 16, (1, 2), speaker_width=voice)
    model = TextToSpeech(
        Denoiser(net, path(), prediction()),
        solver(),
        grid(),
        symbols,
        encoder,
        mel,
        steps,
        -2.0,
        0.3,
        speakers,
        **kwargs,
    )
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * (0.1 if p.ndim < 2 else 0.5 * p[0].numel() ** -0.5))
        encoder.durations.out.bias.fill_(1.0)  # about three frames for each symbol
    return model.eval()


def batch(*lengths, seed=0, texts=(5, 3, 7)):
    """Random mels of these numbers of frames, with random texts."""
    g = torch.Generator().manual_seed(seed)
    symbols = torch.tensor(texts[: len(lengths)])
    return {
        "text": torch.randint(12, (len(lengths), max(symbols)), generator=g),
        "symbols": symbols,
        "mel": torch.randn(len(lengths), 8, max(lengths), generator=g) * 0.3 - 2,
        "frames": torch.tensor(lengths),
        "speaker": torch.arange(len(lengths)) % 2,
    }
