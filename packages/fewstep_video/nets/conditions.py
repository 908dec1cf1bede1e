"""What a video network is conditioned on, as the tokens (B, L, D) that its cross-attention looks at; no text encoder here."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from fewstep_video.texts import WordVectors


class Conditions(nn.Module, ABC):
    """One condition of a network, by its name in batches and conditions."""

    name: ClassVar[str]
    dim: int
    length: int

    @abstractmethod
    def forward(self, value: Tensor) -> Tensor:
        """Tokens (B, length, dim)."""

    @abstractmethod
    def null(self, value: Tensor) -> Tensor:
        """What stands for no condition, shaped like value."""

    @abstractmethod
    def draw(self, generator: torch.Generator) -> Tensor:
        """One of the values, without the dimension of the batch."""


class Classes(Conditions):
    """`label` (B,) -> `length` learnt pseudo text tokens; the label `count` stands for no condition.

    Args:
        count: of the classes; length, dim: of their tokens.
    """

    name = "label"

    def __init__(self, count: int, length: int = 2, dim: int = 32) -> None:
        super().__init__()
        if count < 1 or length < 1:
            raise ValueError(f"there is at least 1 class of 1 token, not {count} of {length}")
        self.count, self.length, self.dim = count, length, dim
        self.table = nn.Embedding(count + 1, length * dim)

    def forward(self, value: Tensor) -> Tensor:
        return self.table(value).unflatten(1, (self.length, self.dim))

    def null(self, value: Tensor) -> Tensor:
        return torch.full_like(value, self.count)

    def draw(self, generator: torch.Generator) -> Tensor:
        return torch.randint(self.count, (), generator=generator)


class Texts(Conditions):
    """`text` (B, length, dim): embeddings that somebody else made; `empty`, zeros unless set, stands for no condition.

    Args:
        length, dim: of the tokens of a text.
        words: what makes them of words, where it is known.
    Raises:
        ValueError: words of another length or width.
    """

    name = "text"

    def __init__(self, length: int, dim: int, words: WordVectors | None = None) -> None:
        super().__init__()
        if words is not None and (words.length, words.dim) != (length, dim):
            raise ValueError(f"texts are of {length} tokens of {dim}, the words of {words.length} of {words.dim}")
        self.empty: Tensor
        self.length, self.dim, self.words = length, dim, words
        self.register_buffer("empty", torch.zeros(length, dim))

    def forward(self, value: Tensor) -> Tensor:
        """(B, L, D) as it is. Raises ValueError for another length or width."""
        if value.shape[1:] != (self.length, self.dim):
            raise ValueError(
                f"the network takes texts of {self.length} tokens of {self.dim}, not {tuple(value.shape[1:])}"
            )
        return value

    def null(self, value: Tensor) -> Tensor:
        return self.empty.to(value).expand_as(value)

    def draw(self, generator: torch.Generator) -> Tensor:
        """Random tokens, since texts cannot be drawn: for shapes and for trainings that need no data."""
        return torch.randn(self.length, self.dim, generator=generator)
