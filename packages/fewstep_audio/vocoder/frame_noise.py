"""Noise of an utterance as a function of (seed, item, frame): alone, in a batch and in a stream the same frames get the same noise.

Drawn on the CPU in blocks of 64 frames, each from a seed of its own, so that a part far into a long file costs no more than its own length.
"""

import hashlib

import torch
from torch import Tensor

BLOCK = 64


def frame_noise(seed: int, item: int, first: int, frames: int, numbers: int) -> Tensor:
    """Standard normal (frames, numbers), of the frames first, ..., first + frames - 1."""
    blocks = range(first // BLOCK, (first + frames - 1) // BLOCK + 1)
    drawn = torch.cat([_block(seed, item, block, numbers) for block in blocks])
    start = first - blocks[0] * BLOCK
    return drawn[start : start + frames]


def _block(seed: int, item: int, block: int, numbers: int) -> Tensor:
    digest = hashlib.blake2b(f"{seed}/{item}/{block}".encode(), digest_size=8).digest()
    own = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(BLOCK, numbers, generator=own)
