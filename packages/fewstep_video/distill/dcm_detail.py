"""The second stage of DCM: the detail expert, with a critic on the teacher's layers and features to match (arXiv:2506.03123).

    L        d(g(x_s), g') + weight relu(1 - C(fake)) + matching |F(fake) - F(real)|^2,     fake, real = g, g' noised again to a node s_a of the part
    critic   relu(1 + C(fake)) + relu(1 - C(real))

g' is the student's own target, not data: the critic moves no fixed point of the consistency. The noising is exact for a state that is already at level
s_e, a_a/a_e on it and sqrt(s_a^2 - (a_a s_e/a_e)^2) on the noise (the official formula has up to 7 % too little noise); both sides get the same noise.
Features are the outputs of every second block of the frozen teacher. The critic reads them as they are; matching compares what the teacher's own
output layer makes of them.
"""

from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoiser import Cond
from fewstep.discriminators import Adversary
from fewstep.discriminators.adversary import Judge
from fewstep.discriminators.discriminator import features
from fewstep.discriminators.heads import Head
from fewstep.distill.alternating import Drawn
from fewstep.distill.base import Distiller
from fewstep.distill.consistency_gan import compared
from fewstep.distill.judged import JudgedStates
from fewstep.distill.line import step
from fewstep.distill.rollout import Reached
from fewstep.distill.segmented_gan import diffused_state
from fewstep.generator import Generator
from fewstep.train.shell import Batch, Terms
from fewstep_video.distill.dcm import Parts, SemanticConsistency
from fewstep_video.nets.experts import Experts
from fewstep_video.nets.wan import Wan


class _Tokens(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        groups = gcd(32, width)
        self.first = nn.Sequential(nn.Conv1d(channels, width, 1), nn.GroupNorm(groups, width), nn.LeakyReLU(0.2))
        self.second = nn.Sequential(nn.Conv1d(width, width, 1), nn.GroupNorm(groups, width), nn.LeakyReLU(0.2))
        self.last = nn.Conv1d(width, 1, 1)

    def forward(self, feature: Tensor) -> Tensor:
        h = self.first(feature.transpose(1, 2))
        return self.last(h + self.second(h)).flatten(1)


@dataclass(frozen=True)
class TokenHead(Head):
    """Of tokens (B, N, D), any number: one logit for each. Normalised over the clip, where the paper's heads are over a frame of fixed size.

    width: 1024 in the paper.
    """

    def build(self, feature: Tensor) -> nn.Module:
        if feature.ndim != 3:
            raise ValueError(f"a head of tokens is for features (B, N, D), not of shape {tuple(feature.shape)}")
        return _Tokens(feature.shape[2], self.width)


class DetailConsistency(JudgedStates, SemanticConsistency):
    """The remaining arguments are those of `JudgedStates` and of `SemanticConsistency`; there is no temporal term unless it is asked for.

    Raises:
        ValueError: a student without experts, or with those of other parts, or that samples at times between them.

    Args:
        student: what `experts` makes of the first stage's.
        adversary: heads on layers whose outputs are tokens (B, N, D); its times are not used.
        matching: weight of the features.
    """

    detail = True

    def __init__(
        self,
        teacher: Generator,
        iterations: int,
        adversary: Adversary,
        parts: Parts = Parts(),
        coherence: float = 0.0,
        matching: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher, iterations, adversary=adversary, parts=parts, coherence=coherence, **kwargs)
        self.matching = matching
        self.check()

    def check(self) -> None:
        """Raise ValueError unless the student has experts of these parts and samples where they are trained."""
        d, path = self.student.denoiser, self.student.denoiser.path
        if not isinstance(d.net, Experts):
            raise ValueError(  # noqa: TRY004 (a wrong choice of student)
                f"the student has a {type(d.net).__name__}, not the Experts that fewstep_video.distill.dcm.experts makes"
            )
        own = self.student.grid(path, self.student.steps)
        times = torch.cat([own[:-1], own.new_tensor([self.parts.boundary(path)])])
        labels = d.prediction.label(times, path.coeffs(times, times))
        if abs(float(labels[-1]) - d.net.boundary) > 1e-6 * max(d.net.boundary, 1e-3):
            raise ValueError(
                f"the student's experts part at {d.net.boundary:g}, those of this training at {float(labels[-1]):g}"
            )
        d.net.is_semantic(labels)

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """As of any distillation: both experts sample."""
        return Distiller.evaluate(self, model, batch)

    def reach(self, drawn: Drawn, cond: Cond) -> Reached:
        """The student at x_t, and the target from x_s."""
        return compared(self, drawn, cond)

    def own(self, reached: Reached, y: Tensor | None) -> Tensor:
        """g(x_t)."""
        t = reached.t
        return step(self.student.denoiser.path, reached.x, reached.estimate.x0, t, self.end(t), y)

    def judged(self, reached: Reached, drawn: Drawn) -> tuple[Judge, Tensor, Tensor]:
        """(the heads at s_a, fake, real)."""
        path, e = self.student.denoiser.path, self.end(reached.t)
        nodes = self.parts.times(path)[self.parts.steps - self.parts.kappa : -1].to(e)
        t = nodes[torch.randint(len(nodes), (len(e),)).to(e.device)]
        xi = torch.randn_like(reached.x)
        ends = (self.own(reached, drawn.y), reached.wanted)
        fake, real = (diffused_state(path, x, e, t, xi, drawn.y) for x in ends)
        return Judge(self.heads, self.backbone, t, drawn.cond, drawn.y), fake, real

    def student_terms(self, reached: Reached, drawn: Drawn, batch: Batch) -> Terms:
        """The distance of both ends, the critic's term and the features'."""
        own, wanted = self.own(reached, drawn.y), reached.wanted
        terms = {"consistency": self.distance(own, wanted).mean()}
        if self.coherence:
            terms["coherence"] = self.changes(own, wanted)
        judge, fake, real = self.judged(reached, drawn)
        found = self.seen(judge, fake)
        with torch.no_grad():
            theirs = self.seen(judge, real)
        logits = self.heads.judge(found)
        terms["adversarial"] = (self.adversary.weight * self.adversary.loss.student(logits, logits)).mean()
        if self.matching:
            pairs = [(self.read(a, judge.t), self.read(b, judge.t)) for a, b in zip(found, theirs, strict=True)]
            terms["matching"] = self.matching * torch.stack([(a - b).square().mean() for a, b in pairs]).mean()
        return terms

    def seen(self, judge: Judge, x: Tensor) -> list[Tensor]:
        """The features of states."""
        return features(judge.backbone, self.adversary.layers, x, judge.t, judge.cond, judge.y)

    def read(self, tokens: Tensor, t: Tensor) -> Tensor:
        """What the teacher's output layer makes of tokens; themselves where its network is no Wan."""
        d = self.teacher.denoiser
        if not isinstance(d.net, Wan):
            return tokens
        return read_out(d.net, tokens, d.prediction.label(t, d.path.coeffs(t, tokens)))


def read_out(net: Wan, tokens: Tensor, label: Tensor) -> Tensor:
    """Wan's modulated normalisation and projection of tokens (B, N, D) at the times it is told: (B, N, numbers of a patch)."""
    model: Any = net.model
    embed = model.condition_embedder
    time = embed.time_embedder(embed.timesteps_proj(label * net.time_scale).to(tokens.dtype))
    shift, scale = (model.scale_shift_table + time[:, None]).chunk(2, 1)
    return model.proj_out((model.norm_out(tokens) * (1 + scale) + shift).to(tokens.dtype))
