"""Texts as tokens without a text encoder: every word has a random vector of its own, or somebody else's embeddings are stored beside the clip."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


class TextError(ValueError):
    """A text that cannot be used. One line: what is wrong, what is allowed."""


@dataclass(frozen=True)
class WordVectors:
    """Text -> (length, dim): N(0, 1) vectors drawn from each word's SHA-256, in order, zeros behind them; further words are left out.

    Words are told apart and nothing more: what they have in common is for the network to learn.
    """

    length: int = 8
    dim: int = 32

    def __call__(self, text: str) -> Tensor:
        """Raises TextError of a text without words."""
        words = re.findall(r"[\w']+", text.lower())[: self.length]
        if not words:
            raise TextError(f"the text {text!r} has no words; allowed: at least one")
        tokens = torch.zeros(self.length, self.dim)
        for i, word in enumerate(words):
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:7], "big")
            tokens[i] = torch.randn(self.dim, generator=torch.Generator().manual_seed(seed))
        return tokens


def stored_text(path: str | Path) -> Tensor:
    """The tensor `text` (L, D) of a .safetensors file, float32.

    Raises:
        TextError: a file that is missing, damaged, or without such a tensor.
    """
    try:
        held = load_file(path)
    except (SafetensorError, OSError) as error:
        raise TextError(f"{path}: cannot be read ({error}); allowed: .safetensors with a tensor `text`") from error
    text = held.get("text")
    if text is None or text.ndim != 2 or not text.is_floating_point():
        given = "no tensor `text`" if text is None else f"`text` of shape {tuple(text.shape)}"
        raise TextError(f"{path}: holds {given}; allowed: floats (tokens, width)")
    return text.float()
