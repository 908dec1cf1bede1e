"""Monotonic alignment search against all paths, and what durations do to symbols."""

from itertools import combinations, pairwise

import pytest
import torch
from torch.distributions import Normal

from fewstep_audio.tts.alignment import AlignmentError, log_likelihood, monotonic_alignment, stretch


def score(log_p, durations):
    """log p of the path with these durations; log_p (Tx, Ty)."""
    rows = torch.repeat_interleave(torch.arange(len(durations)), torch.tensor(durations))
    return log_p[rows, torch.arange(len(rows))].sum().item()


def all_durations(symbols, frames):
    """Every way to cut `frames` into `symbols` parts of at least one."""
    for cuts in combinations(range(1, frames), symbols - 1):
        edges = [0, *cuts, frames]
        yield [b - a for a, b in pairwise(edges)]


@pytest.mark.parametrize("symbols", range(1, 5))
@pytest.mark.parametrize("frames", range(1, 7))
def test_the_path_is_the_best_of_all(symbols, frames):
    if frames < symbols:
        return
    log_p = torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(symbols * 10 + frames))
    found = monotonic_alignment(log_p, torch.full((3,), symbols), torch.full((3,), frames))
    for item, durations in zip(log_p, found, strict=True):
        best = max(all_durations(symbols, frames), key=lambda d: score(item, d))
        assert durations[:symbols].tolist() == best
        assert durations[symbols:].sum() == 0


def test_items_of_a_batch_are_alone():
    generator = torch.Generator().manual_seed(0)
    log_p = torch.randn(4, 12, 40, generator=generator)
    symbols, frames = torch.tensor([12, 7, 1, 5]), torch.tensor([40, 23, 9, 5])
    together = monotonic_alignment(log_p, symbols, frames)
    assert torch.equal(together.sum(1), frames)
    for i in range(4):
        alone = monotonic_alignment(log_p[i : i + 1, : symbols[i], : frames[i]], symbols[i : i + 1], frames[i : i + 1])
        assert torch.equal(alone[0], together[i, : symbols[i]])
        assert alone.min() >= 1


def test_too_few_frames_are_named_and_refused():
    with pytest.raises(AlignmentError, match=r"item 1: 5 symbols, 4 frames\)$"):
        monotonic_alignment(torch.zeros(2, 5, 6), torch.tensor([5, 5]), torch.tensor([5, 4]))


def test_the_likelihood_is_that_of_unit_normals():
    mu, y = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    wanted = Normal(mu[..., None], 1.0).log_prob(y[:, :, None]).sum(1)
    assert torch.allclose(log_likelihood(mu, y), wanted, atol=1e-12)


def test_a_stretched_text_is_found_again():
    durations = torch.tensor([[2, 1, 4], [1, 3, 0]])
    mu = torch.tensor([[[1.0, 5.0, 9.0]], [[2.0, 4.0, 0.0]]])
    y = stretch(mu, durations, 8)
    assert y[:, 0].tolist() == [[1, 1, 5, 9, 9, 9, 9, 0], [2, 4, 4, 4, 0, 0, 0, 0]]
    found = monotonic_alignment(log_likelihood(mu, y), torch.tensor([3, 2]), torch.tensor([7, 4]))
    assert torch.equal(found, durations)
