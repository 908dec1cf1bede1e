"""Text to mel spectrogram (CoMoSpeech, arXiv:2305.06908; Matcha-TTS, arXiv:2309.03199): a text encoder and a few-step decoder.

    (mu_x, log d_x) = encoder(symbols, speaker)          mu = each mu_x for the frames it lasts
    x0 = (mel - mean)/scale                              x_t = a x0 + s eps,  or x0 + t (mu + eps) on `PriorEDM`
    decoder                                              net(x_t, t, mu, mask, speaker)

In training the durations are those of the monotonic alignment of mu_x and x0, in synthesis ceil(d_x / speed). The encoder learns with
the teacher (training.py); distillers train the decoder alone, with the encoder at rest: its dropout would make mu noisy.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from fewstep.denoiser import Cond, Denoiser
from fewstep.generator import Generator, Prepared
from fewstep.grids import Grid
from fewstep.jump import JumpGenerator
from fewstep.sampling import Callback, Noise
from fewstep.solvers.base import Solver
from fewstep_audio.mels import Mel
from fewstep_audio.text import Symbols
from fewstep_audio.text.symbols import TextError
from fewstep_audio.tts.alignment import log_likelihood, monotonic_alignment, stretch
from fewstep_audio.tts.encoder import TextEncoder
from fewstep_audio.tts.masks import length_mask
from fewstep_audio.tts.noise import PaddedNoise


class Aligned(NamedTuple):
    """A batch of texts laid over their mels: x0, mu (B, bands, T), mask (B, 1, T); of the symbols durations and their predicted
    logarithms (B, Tx), text mask (B, 1, Tx); speaker (B, width)."""

    x0: Tensor
    mu: Tensor
    mask: Tensor
    durations: Tensor
    log_durations: Tensor
    text_mask: Tensor
    speaker: Tensor | None


class Spoken(NamedTuple):
    """Mels (B, bands, T) of a batch of texts, their numbers of frames (B,), and the frames of each symbol (B, Tx)."""

    mel: Tensor
    frames: Tensor
    durations: Tensor


class TextToSpeech(Generator):
    """Symbols and speaker -> mel spectrogram.

    Data batches: {"text": (B, Tx) ids, "symbols": (B,) how many, "mel": (B, bands, T), "frames": (B,) how many, "speaker": (B,) numbers}.

    Args:
        denoiser: of the decoder, whose network takes mu, mask and speaker.
        solver, grid, steps: how it is sampled.
        symbols: what texts are written in.
        encoder: of the texts.
        mel: the spectrograms.
        mean, scale: x0 = (mel - mean)/scale; the deviation of x0 over the data should be that of the prediction's sigma_data.
        speakers: their names, as many as the encoder has.
        longest: piece of text, in characters, that the model is asked for at once.
        crop: frames of a random window of each item that learning looks at; None: all.
    Raises:
        ValueError: parts that do not belong together.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        solver: Solver,
        grid: Grid,
        symbols: Symbols,
        encoder: TextEncoder,
        mel: Mel,
        steps: int = 50,
        mean: float = 0.0,
        scale: float = 1.0,
        speakers: Sequence[str] = (),
        longest: int = 200,
        crop: int | None = None,
    ) -> None:
        super().__init__(denoiser, solver, grid, steps)
        self._accept(symbols, encoder, mel, speakers)
        self.symbols, self.encoder, self.mel, self.mean, self.scale = symbols, encoder, mel, mean, scale
        self.speakers, self.longest, self.crop = tuple(speakers), longest, crop

    @staticmethod
    def _accept(symbols: Symbols, encoder: TextEncoder, mel: Mel, speakers: Sequence[str]) -> None:
        for what, has, wants in (
            ("symbols", encoder.symbols, symbols.count),
            ("mel bands", encoder.bands, mel.bands),
            ("speakers", encoder.speakers, len(speakers)),
        ):
            if has != wants:
                raise ValueError(f"the encoder is for {has} {what}, the model has {wants}")

    def train(self, mode: bool = True) -> Self:
        """The decoder alone is set to training."""
        super().train(mode)
        self.encoder.eval()
        return self

    # --- learning ---------------------------------------------------------------------------------------------------

    def align(self, batch: Mapping[str, Tensor]) -> Aligned:
        """Lay texts over mels, with gradients of the encoder.

        Raises:
            AlignmentError: a mel with fewer frames than its text has symbols.
        """
        text_mask = length_mask(batch["symbols"], batch["text"].shape[1]).to(batch["mel"])
        mask = length_mask(batch["frames"], batch["mel"].shape[2]).to(batch["mel"])
        mu_x, log_durations, speaker = self.encoder(batch["text"], text_mask, batch.get("speaker"))
        x0 = (batch["mel"] - self.mean) / self.scale * mask
        durations = monotonic_alignment(log_likelihood(mu_x.detach(), x0), batch["symbols"], batch["frames"])
        mu = stretch(mu_x, durations, x0.shape[2])
        if self.training and self.crop is not None and self.crop < x0.shape[2]:
            x0, mu, mask = windows(batch["frames"], self.crop, x0, mu, mask)
        return Aligned(x0, mu, mask, durations, log_durations, text_mask, speaker)

    @torch.no_grad()
    def prepare(self, batch: Mapping[str, Tensor]) -> Prepared:
        """Without gradients of the encoder, which rests."""
        aligned = self.align(batch)
        return self.prepared(aligned)

    def prepared(self, aligned: Aligned) -> Prepared:
        """x0, the conditions of the decoder, and the anchor where the path has one."""
        return Prepared(aligned.x0, *self._told(aligned.mu, aligned.mask, aligned.speaker))

    def _told(self, mu: Tensor, mask: Tensor, speaker: Tensor | None) -> tuple[Cond, Tensor | None]:
        cond = {"mu": mu, "mask": mask} | ({} if speaker is None else {"speaker": speaker})
        return cond, mu if self.denoiser.path.anchored else None

    def mask(self, cond: Cond) -> Tensor | None:
        return cond["mask"]

    def example(self) -> Prepared:
        first = next(self.denoiser.parameters())
        x0 = torch.zeros(2, self.mel.bands, 16).to(first)
        speaker = torch.zeros(2, self.encoder.speaker_width).to(first) if self.speakers else None
        return Prepared(x0, *self._told(x0, torch.ones_like(x0[:, :1]), speaker))

    def generate(
        self,
        noise: Tensor,
        cond: Cond | None = None,
        y: Tensor | None = None,
        steps: int | None = None,
        solver: Solver | None = None,
        generator: Noise | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Tensor:
        """As of every generator, and 0 in the padding."""
        inside = (cond or {})["mask"]
        return super().generate(noise * inside, cond, y, steps, solver, generator, callbacks) * inside

    def scores(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """spread: the deviation of a sample around its own mean, over that of the recording."""
        x0, cond, y = self.prepare(batch)
        own = self.generate(torch.randn_like(x0), cond, y)
        return {"spread": spread(own, cond["mask"]) / spread(x0, cond["mask"])}

    def preview(self, batch: Mapping[str, Tensor], items: int = 4) -> dict[str, Tensor]:
        """The first recordings, the mean mu of each and a sample, below each other, low bands at the bottom."""
        x0, cond, y = self.prepare({k: v[:items] for k, v in batch.items()})
        own = self.generate(torch.randn_like(x0), cond, y)
        rows = torch.cat([v.flip(1).transpose(0, 1).flatten(1) for v in (x0, cond["mu"], own)])
        low, high = x0.amin(), x0.amax()
        return {"recording_mean_sample": ((rows - low) / (high - low)).clamp(0, 1).expand(3, -1, -1)}

    # --- synthesis --------------------------------------------------------------------------------------------------

    def speaker_number(self, name: str | None) -> int | None:
        """The number of a speaker; the first one where none is named.

        Raises:
            TextError: a name that the model does not know, or any name where it has one voice.
        """
        if name is not None and name not in self.speakers:
            known = ", ".join(self.speakers) or "no other: the model has one voice"
            raise TextError(f"unknown speaker {name!r}; the model has {known}")
        return None if not self.speakers else self.speakers.index(name or self.speakers[0])

    @staticmethod
    def durations(log_durations: Tensor, text_mask: Tensor, speed: float = 1.0) -> Tensor:
        """ceil(d / speed), at least 1, rounded after the speed: the frames that each symbol is spoken for, (B, Tx) int64, 0 in the padding.

        log_durations: log d of the encoder, (B, Tx); text_mask: (B, 1, Tx).
        """
        return ((log_durations.exp() / speed).ceil().clamp(min=1) * text_mask[:, 0]).long()

    def forward(
        self,
        texts: Sequence[Tensor],
        generators: Sequence[torch.Generator],
        speaker: int | None = None,
        speed: float = 1.0,
        steps: int | None = None,
        solver: Solver | None = None,
    ) -> Spoken:
        """Mels of texts given as ids; each item draws its noise from a generator of its own, on the CPU.

        Raises:
            ValueError: a speed that is not positive.
        """
        if not speed > 0:
            raise ValueError(f"the speed is a positive factor, not {speed}")
        device = next(self.parameters()).device
        lengths = torch.tensor([len(t) for t in texts])
        ids = torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True).to(device)
        text_mask = length_mask(lengths, ids.shape[1]).to(device)
        who = None if speaker is None else torch.full((len(ids),), speaker, device=device)
        mu_x, log_durations, voice = self.encoder(ids, text_mask, who)
        durations = self.durations(log_durations, text_mask, speed)
        frames = durations.sum(1)
        size = int(frames.max())
        mu, mask = stretch(mu_x, durations, size), length_mask(frames, size)
        noise = PaddedNoise(generators, self.mel.bands, frames.tolist())
        cond, y = self._told(mu, mask, voice)
        fresh = lambda row: noise.draw().to(mu)
        x = self.generate(noise.draw().to(mu), cond, y, steps, solver, fresh)
        return Spoken(x * self.scale + self.mean, frames, durations)


class SpeechJumps(TextToSpeech, JumpGenerator):
    """A text-to-speech model whose decoder jumps (MeanFlow, CTM), see `JumpGenerator`."""

    def __init__(
        self,
        denoiser: Denoiser,
        solver: Solver,
        grid: Grid,
        symbols: Symbols,
        encoder: TextEncoder,
        mel: Mel,
        steps: int = 1,
        mean: float = 0.0,
        scale: float = 1.0,
        speakers: Sequence[str] = (),
        longest: int = 200,
        crop: int | None = None,
        gamma: float = 0.0,
        nu: float = 1.0,
    ) -> None:
        super().__init__(denoiser, solver, grid, symbols, encoder, mel, steps, mean, scale, speakers, longest, crop)
        self.gamma, self.nu = gamma, nu


def windows(frames: Tensor, size: int, *signals: Tensor) -> list[Tensor]:
    """A random window of `size` frames inside the `frames` (B,) of each item, the same of all signals (B, C, T)."""
    room = (frames - size).clamp(min=0)
    start = (torch.rand(len(frames), device=frames.device) * (room + 1)).long()
    index = (start[:, None] + torch.arange(size, device=frames.device))[:, None]
    return [v.gather(2, index.expand(-1, v.shape[1], -1)) for v in signals]


def spread(x: Tensor, mask: Tensor) -> Tensor:
    """The deviation of all valid elements of each item, (B,)."""
    count = mask.sum((1, 2)) * x.shape[1]
    mean = (x * mask).sum((1, 2), keepdim=True) / count[:, None, None]
    return (((x - mean) * mask).square().sum((1, 2)) / count).sqrt()
