"""Long signals in windows: exact length, identity, equality with the whole signal where the receptive field is covered (P12)."""

import itertools

import pytest
import torch
from torch.nn.functional import conv1d

from fewstep_audio.chunks import Chunks, join
from fewstep_audio.resample import resample, resample_blocks

WINDOW = 64
LENGTHS = sorted({k * WINDOW + d for k in (0, 1, 2, 3) for d in (-1, 0, 1)} | set(range(1, 3 * WINDOW, 13)))[1:]
SHAPES = [Chunks(WINDOW, 0), Chunks(WINDOW, 16), Chunks(WINDOW, 32, 5), Chunks(WINDOW, 31, 15)]


def noise(samples, channels=2, seed=0):
    return torch.randn(channels, samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunks", SHAPES)
@pytest.mark.parametrize("block", [1, 50, 10_000])
def test_an_identity_model_gives_the_signal_back(chunks, block):
    for samples in (n for n in LENGTHS if n > 0):
        wave = noise(samples)
        seen = []
        model = lambda x, start: (seen.append((start, x.shape[1])), x)[1]
        out = torch.cat(list(chunks(wave.split(block, 1), model)), 1)
        assert out.shape == wave.shape
        assert (out - wave).abs().max() < 1e-6
        assert all(n == min(WINDOW, samples) for _, n in seen)
        assert seen[-1][0] + seen[-1][1] == samples


@pytest.mark.parametrize("chunks", SHAPES)
def test_the_model_is_told_where_its_window_lies(chunks):
    wave = torch.arange(5 * WINDOW + 7, dtype=torch.float64)[None]
    positions = lambda x, start: start + torch.arange(x.shape[1], dtype=torch.float64)[None]
    assert (torch.cat(list(chunks(wave.split(9, 1), positions)), 1) - wave).abs().max() < 1e-9


@pytest.mark.parametrize("samples", [40, 64, 65, 97, 400])
def test_a_covered_receptive_field_gives_the_result_of_the_whole_signal(samples):
    kernel = noise(2 * 5 + 1, 1)[:, None].double()
    model = lambda x, start=0: conv1d(x[:, None], kernel, padding=5)[:, 0].tanh()
    wave = noise(samples).double()
    covered = torch.cat(list(Chunks(WINDOW, 32, 5)(wave.split(30, 1), model)), 1)
    assert (covered - model(wave)).abs().max() < 1e-12
    if samples > WINDOW:
        bare = torch.cat(list(Chunks(WINDOW, 16)(wave.split(30, 1), model)), 1)
        assert (bare - model(wave)).abs().max() > 1e-3


def test_weights_sum_to_one_and_each_window_fades_as_hann():
    chunks = Chunks(WINDOW, 32)
    first = lambda x, start: torch.full_like(x, float(start == 0))
    out = torch.cat(list(chunks([torch.ones(1, 96).double()], first)), 1)[0]
    expected = torch.cos(torch.pi / 2 * (torch.arange(32).double() + 0.5) / 32) ** 2
    assert torch.equal(out[:32], torch.ones(32).double()) and out[64:].abs().max() == 0
    assert (out[32:64] - expected).abs().max() < 1e-12


def test_memory_does_not_grow_with_the_signal():
    def peak(seconds):
        held = [0]
        blocks = (torch.zeros(1, 4000) for _ in range(2 * seconds))
        model = lambda x, start: (held.append(x.untyped_storage().nbytes()), x)[1]
        total = sum(b.shape[1] for b in Chunks(16000, 4000)(blocks, model))
        assert total == 8000 * seconds
        return max(held)

    assert peak(200) == peak(20) <= 4 * 3 * 16000


def test_a_model_that_changes_the_length_is_refused():
    with pytest.raises(ValueError, match=r"made \(2, 63\) of a window \(2, 64\)"):
        list(Chunks(WINDOW, 16)([noise(100)], lambda x, start: x[:, 1:]))
    with pytest.raises(ValueError, match="overlap 40"):
        Chunks(WINDOW, 40)
    assert list(Chunks(WINDOW, 16)([], lambda x, start: x)) == []


def test_joined_pieces_keep_their_power_through_the_fade():
    fade, pieces = 2000, [noise(20_000, 1, seed) for seed in range(4)]
    out = torch.cat(list(join(pieces, fade)), 1)[0]
    assert out.shape == (4 * 20_000 - 3 * fade,)
    assert torch.equal(out[:18_000], pieces[0][0, :18_000]) and torch.equal(out[-18_000:], pieces[3][0, 2000:])
    for k in (1, 2, 3):
        middle = out[k * 18_000 : k * 18_000 + fade]
        assert middle.square().mean() == pytest.approx(1, abs=4 * (2 / fade) ** 0.5)


def test_joined_constant_pieces_show_the_equal_power_weights():
    ones, zeros = torch.ones(1, 50).double(), torch.zeros(1, 50).double()
    p = torch.pi / 2 * (torch.arange(10).double() + 0.5) / 10
    assert (torch.cat(list(join([ones, zeros], 10)), 1)[0, 40:50] - p.cos()).abs().max() < 1e-12
    assert (torch.cat(list(join([zeros, ones], 10)), 1)[0, 40:50] - p.sin()).abs().max() < 1e-12


@pytest.mark.parametrize("lengths", [(3, 50, 1), (1,), (5, 5, 5), (0, 7, 0)])
def test_short_pieces_are_faded_over_half_their_length_at_most(lengths):
    out = torch.cat(list(join([torch.ones(1, n) for n in lengths], 10)), 1)
    lost = sum(min(10, a // 2, b // 2) for a, b in itertools.pairwise(lengths))
    assert out.shape[1] == sum(lengths) - lost
    assert list(join([], 10)) == []


@pytest.mark.parametrize("rate, to", [(8000, 16000), (44100, 16000), (16000, 44100), (48000, 8000), (8000, 8000)])
@pytest.mark.parametrize("block", [500, 50_000])
def test_resampling_in_blocks_is_resampling_at_once(rate, to, block):
    wave = noise(20_011).double()
    out = torch.cat(list(resample_blocks(wave.split(block, 1), rate, to)), 1)
    whole = resample(wave, rate, to)
    assert out.shape == whole.shape
    assert (out - whole).abs().max() < 1e-12
