"""An adversary that knows what a sample should show: heads on a frozen network's layers and the condition (GALIP, arXiv:2301.12959).

    C(x, e) = head(layers of x, e),    e the condition as numbers, e' that of another sample of the batch
    critic    R(C(real, e)) + (F(C(fake, e)) + F(C(real, e')))/2 + gradient |d C(real, e)/d(layers, e)|^6        R, F of the loss
    student   weight loss.student(C(fake, e)) - similarity cos(last layer of fake, e)

It is an `Adversary` for any method that has one; with CLIP as `network` the last layer is the embedding of its pictures, and e that of texts.
The penalty (2 |grad|^6, DF-GAN, arXiv:2008.05865) holds the critic smooth around real samples that match. The factor 4 of the similarity is of the
paper's text. Where a neighbour in the batch has the same condition, it makes no mismatched pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, one_hot

from fewstep.denoiser import Cond, Denoiser
from fewstep.discriminators.adversary import Adversary, Judge
from fewstep.discriminators.discriminator import Discriminator, example_features, features
from fewstep.discriminators.losses import AdversarialLoss, Hinge, per_sample
from fewstep.generator import Generator


@dataclass(frozen=True)
class MatchingAdversary(Adversary):
    """The remaining arguments are those of `Adversary`, but for `penalty`, which is this one's own.

    Args:
        condition: the name of e: (B, E) numbers, or with `classes` (B,) integers below it, taken as E = classes indicators.
        embedding: layer whose output (B, E) lies in the space of e, for the similarity.
    Raises:
        ValueError: a similarity without a layer; a penalty or a loss on pairs.
    """

    loss: AdversarialLoss = Hinge()  # noqa: RUF009
    condition: str = "label"
    classes: int = 0
    gradient: float = 2.0
    similarity: float = 0.0
    embedding: str | None = None

    def __post_init__(self) -> None:
        if self.similarity and self.embedding is None:
            raise ValueError("similarity needs embedding, the layer that is compared with the condition")
        if self.penalty is not None or self.loss.pairs:
            raise ValueError("an adversary of matching pairs has a penalty of its own, and losses without pairs")

    def build(self, generator: Generator, backbone: Denoiser | None = None) -> "MatchingDiscriminator":
        """Heads of features and condition together, each of which is looked at once."""
        found, cond = example_features(generator, self.layers, backbone)
        e = self.numbers(cond, found[0])
        return MatchingDiscriminator(self.layers, [self.head.build(f) for f in pairs(found, e)], self)

    def numbers(self, cond: Cond, like: Tensor) -> Tensor:
        """e: (B, E).

        Raises:
            ValueError: the condition is missing, or is not of that shape.
        """
        if self.condition not in cond:
            raise ValueError(f"no condition {self.condition!r} to match; there are {sorted(cond)}")
        e = cond[self.condition]
        e = one_hot(e, self.classes) if self.classes else e
        if e.ndim != 2:
            raise ValueError(
                f"the condition {self.condition!r} must be (B, E), or (B,) with classes, not {tuple(e.shape)}"
            )
        return e.to(like)

    def student_at(self, judge: Judge, fake: Tensor, real: Tensor) -> Tensor:
        layers = [*self.layers, *([self.embedding] if self.similarity and self.embedding else [])]
        found = self.seen(judge, fake, layers)
        e = self.numbers(judge.cond, found[0])
        own = match(judge, found[: len(self.layers)], e)
        term = self.weight * self.loss.student(own, own)
        return term - self.similarity * cosine_similarity(found[-1], e, dim=1) if self.similarity else term

    def critic_at(self, judge: Judge, fake: Tensor, real: Tensor, iteration: int = 0) -> dict[str, Tensor]:
        with torch.no_grad():
            given, made = (self.seen(judge, x, self.layers) for x in (real, fake))
            e = self.numbers(judge.cond, given[0])
        inputs = [v.detach().requires_grad_() for v in (*given, e)]
        theirs, own = match(judge, inputs[:-1], inputs[-1]), match(judge, made, e)
        fakes, wrong = self.loss.critic(theirs, own), self.loss.critic(theirs, match(judge, given, e.roll(1, 0)))
        terms = {"critic": torch.where((e == e.roll(1, 0)).all(1), fakes, (fakes + wrong) / 2)}
        if self.gradient:
            slopes = torch.autograd.grad(per_sample(theirs).sum(), inputs, create_graph=True)
            square = torch.stack([v.square().flatten(1).sum(1) for v in slopes]).sum(0)
            terms["penalty"] = self.gradient * square**3
        return {name: self.critic_weight * v for name, v in terms.items()}

    def seen(self, judge: Judge, x: Tensor, layers: Sequence[str]) -> list[Tensor]:
        """The features of states."""
        return features(judge.backbone, layers, x, judge.t, judge.cond, judge.y)


class MatchingDiscriminator(Discriminator):
    """One head for each layer, of its feature and the condition."""

    def __init__(self, layers: Sequence[str], heads: Sequence[nn.Module], adversary: MatchingAdversary) -> None:
        super().__init__(layers, heads)
        self.adversary = adversary

    def forward(self, backbone: Denoiser, x: Tensor, t: Tensor, cond: Cond, y: Tensor | None = None) -> Tensor:
        found = features(backbone, self.layers, x, t, cond, y)
        return self.judge(pairs(found, self.adversary.numbers(cond, found[0])))


def match(judge: Judge, found: Sequence[Tensor], e: Tensor) -> Tensor:
    """(B, n): the logits of the layers' features with e."""
    return judge.critic.judge(pairs(found, e))


def pairs(found: Sequence[Tensor], e: Tensor) -> list[Tensor]:
    """Every feature with the condition."""
    return [joined(f, e) for f in found]


def joined(feature: Tensor, e: Tensor) -> Tensor:
    """(B, C + E, ...): the condition at every position, beside the channels."""
    e = e.reshape(*e.shape, *[1] * (feature.ndim - 2)).expand(*e.shape, *feature.shape[2:])
    return torch.cat([feature, e.to(feature)], 1)
