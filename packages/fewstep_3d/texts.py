"""Texts as vectors without a model: hashed bags of words and of pairs of neighbours (arXiv:0902.2206).

    v_i = sum over words w with h(w) = i of sign(w),   scaled to length sqrt(D)

Texts with words in common are near each other; nothing is known of what words mean. A text model's embedding, given as a vector of the
same size, serves as well.
"""

import hashlib
import math
import re
from itertools import pairwise

import torch
from torch import Tensor


def hashed(text: str, dim: int) -> Tensor:
    """(dim,) of length sqrt(dim).

    Raises:
        ValueError: a text without a letter or digit, a dimension below 1.
    """
    words = re.findall(r"\w+", text.lower())
    if not words or dim < 1:
        raise ValueError(f"a text needs a word and at least 1 dimension, not {text!r} and {dim}")
    out = torch.zeros(dim)
    for word in [*words, *(f"{a} {b}" for a, b in pairwise(words))]:
        code = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
        out[(code >> 1) % dim] += 1 if code & 1 else -1
    return out / out.norm().clamp_min(1e-6) * math.sqrt(dim)
