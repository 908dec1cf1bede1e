"""What the adapters share: a diffusers model built from its configuration, conditions as its text tokens, one layout.

    out = net(x, t, label=... or text=..., w=..., ...)         x, out (B, C, F, H, W), t (B,)

The model sees time_scale t: 1000 for flow times in [0, 1], 1 for the indices of a diffusers schedule. Further scalars such as the guidance
scale "w" are added to all tokens by embeddings that start at 0, so a network that gets one is what it was.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from fewstep.nets.embedding import TimeEmbedding
from fewstep_video.model_config import model_config
from fewstep_video.nets.conditions import Classes, Conditions


class VideoNetwork(nn.Module, ABC):
    """Subclasses name the model's class in diffusers and write `call` and `fits`.

    Args:
        config: arguments of the model's class; those not given have its defaults.
        condition: what it is conditioned on; its tokens must be as wide as the model's text.
        scalars: name -> scale of its values in the embedding (see `nets.embedding.Embeddings`).
        time_scale: factor of the times.
    Raises:
        ValueError: arguments that the class does not have, tokens of another width.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        config: Mapping[str, Any],
        condition: Conditions,
        scalars: Mapping[str, float] | None = None,
        time_scale: float = 1000.0,
    ) -> None:
        super().__init__()
        self.config, self.condition, self.scalars = model_config(config), condition, dict(scalars or {})
        self.time_scale = time_scale
        cls = self.model_class()
        allowed = list(inspect.signature(cls.__init__).parameters)[1:]
        if unknown := sorted(set(self.config) - set(allowed)):
            raise ValueError(f"{self.kind} has no argument {', '.join(unknown)}; it takes {', '.join(allowed)}")
        self.model: nn.Module = cls(**self.config)
        if condition.dim != (width := self.text_width(self.model)):
            raise ValueError(f"the condition has tokens of {condition.dim}, this {self.kind} takes {width}")
        self.told = Told(condition.dim, self.scalars)

    @classmethod
    def model_class(cls) -> Any:
        """The model's class."""
        return getattr(import_module("diffusers"), cls.kind)

    @classmethod
    def of(cls, model: nn.Module, condition: Conditions, time_scale: float = 1.0) -> Self:
        """The network of an existing model, whose weights are taken over."""
        allowed = list(inspect.signature(cls.model_class().__init__).parameters)[1:]
        config = {k: v for k, v in model.config.items() if k in allowed}  # pyright: ignore
        net = cls(config, condition, None, time_scale)
        net.model.load_state_dict(model.state_dict())
        return net

    @property
    def classes(self) -> int:
        """How many it knows, where it is conditioned on classes; else 0."""
        return self.condition.count if isinstance(self.condition, Classes) else 0

    @staticmethod
    @abstractmethod
    def text_width(model: nn.Module) -> int:
        """Width of the tokens that the model's cross-attention takes."""

    @abstractmethod
    def call(self, x: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        """The model's output in the layout of x."""

    @abstractmethod
    def fits(self, frames: int, height: int, width: int) -> str | None:
        """Why the model cannot take clips of this size, with the nearest it can take; None where it can."""

    def forward(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """x: (B, C, F, H, W); t: (B,); conditions: the network's own and its scalars (B,).

        Raises:
            ValueError: sizes or conditions that it does not take.
        """
        wanted = {self.condition.name, *self.scalars}
        if conditions.keys() != wanted:
            raise ValueError(f"the network takes {sorted(wanted)}, it was given {sorted(conditions)}")
        if (why := self.fits(*x.shape[2:])) is not None:
            raise ValueError(why)
        tokens = self.told(self.condition(conditions[self.condition.name]).to(x.dtype), conditions)
        out = self.call(x, t * self.time_scale, tokens)
        return out[:, : x.shape[1]] if out.shape[1] == 2 * x.shape[1] else out


class Told(nn.Module):
    """Adds the embeddings of further scalars to tokens (B, L, dim); they start at 0."""

    def __init__(self, dim: int, scalars: Mapping[str, float]) -> None:
        super().__init__()
        self.further = nn.ModuleDict({name: TimeEmbedding(64, dim, scale) for name, scale in scalars.items()})
        for embedding in self.further.values():
            assert isinstance(embedding, TimeEmbedding)
            last = embedding.mlp[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, tokens: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        for name, embedding in self.further.items():
            tokens = tokens + embedding(values[name])[:, None]
        return tokens


def whole_patches(kind: str, frames: int, height: int, width: int, patch: tuple[int, int, int]) -> str | None:
    """Why a clip is not made of whole patches, or None."""
    given = (frames, height, width)
    if all(n >= p and n % p == 0 for n, p in zip(given, patch, strict=True)):
        return None
    nearest = (max(p, round(n / p) * p) for n, p in zip(given, patch, strict=True))
    return (
        f"this {kind} has patches of {'x'.join(map(str, patch))}: clips of {'x'.join(map(str, given))} "
        f"(frames x height x width) do not fit, the nearest that do are {'x'.join(map(str, nearest))}"
    )
