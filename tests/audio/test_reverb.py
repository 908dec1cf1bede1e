"""Synthetic rooms: the decay is the one asked for, the speech is the direct sound."""

import pytest
import torch

from fewstep_audio.enhancement.reverb import Reverberation, decay_time, reverberant, room


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("t60", [0.2, 0.5, 1.0])
def test_the_measure_of_an_exact_exponential_is_its_decay(t60):
    """h^2 = q^n has the backward integral q^n / (1 - q): a straight line of -60 dB per T60."""
    n = torch.arange(8000 * 6, dtype=torch.float64)  # so long that the end cut off is below 1e-18
    assert decay_time(10 ** (-3 * n / (t60 * 8000)), 8000) == pytest.approx(t60, rel=1e-6)


@pytest.mark.parametrize(("t60", "rate"), [(0.3, 8000), (0.6, 16000), (1.2, 8000)])
def test_rooms_decay_as_asked(t60, rate):
    """The mean of 40 rooms; a single one varies by a few per cent."""
    found = [decay_time(room(rate, t60, ratio=-20.0, generator=seeded(i)), rate) for i in range(40)]
    mean, deviation = torch.tensor(found).mean().item(), torch.tensor(found).std().item()
    assert mean == pytest.approx(t60, abs=0.01 * t60 + 3 * deviation / 40**0.5)
    assert deviation < 0.15 * t60


def test_the_envelope_falls_sixty_decibels_in_t60():
    """Energy of the first and of the last tenth of the tail over many rooms: nine tenths of T60 apart, 54 dB."""
    tails = torch.stack([room(8000, 0.4, gap=0.0, generator=seeded(i)) for i in range(300)])[:, 1:].square().mean(0)
    first, last = tails[:300].mean(), tails[2880:3180].mean()
    assert 10 * (first / last).log10().item() == pytest.approx(54.0, abs=0.5)


@pytest.mark.parametrize("ratio", [-3.0, 0.0, 10.0])
def test_the_tail_has_the_energy_asked_for_and_begins_after_the_gap(ratio):
    h = room(16000, 0.3, ratio, gap=0.01, generator=seeded()).double()
    assert h[0] == 1
    assert (h[1:160] == 0).all()
    assert h[160] != 0
    assert 10 * torch.log10(1 / h[1:].square().sum()).item() == pytest.approx(ratio, abs=1e-4)


def test_reverberant_speech_is_the_sum_of_delayed_copies():
    clean, h = torch.randn(2, 300, dtype=torch.float64, generator=seeded()), torch.zeros(64, dtype=torch.float64)
    h[0], h[7], h[50] = 1.0, 0.5, -0.25
    by_hand = clean.clone()
    by_hand[:, 7:] += 0.5 * clean[:, :-7]
    by_hand[:, 50:] -= 0.25 * clean[:, :-50]
    torch.testing.assert_close(reverberant(clean, h), by_hand, rtol=0, atol=1e-12)


def test_a_decay_within_the_gap_is_refused():
    with pytest.raises(ValueError, match=r"T60 of 0.001 s and a gap of 0.002 s"):
        room(8000, 0.001)


def test_rooms_as_a_degradation_are_drawn_within_their_bounds(monkeypatch):
    seen = []

    class Corpus:
        rate = 8000

    def spy(rate, t60, ratio, gap, generator):
        seen.append((rate, t60, ratio))
        return room(rate, t60, ratio, gap, generator)

    monkeypatch.setattr("fewstep_audio.enhancement.reverb.room", spy)
    degradation, clean = Reverberation(0.2, 0.6, -5.0, 5.0), torch.randn(4000, generator=seeded())
    out = [degradation(clean, Corpus(), 0, seeded(i)) for i in range(60)]
    assert torch.equal(out[7], degradation(clean, Corpus(), 0, seeded(7)))
    assert not torch.equal(out[7], out[8])
    rates, times, ratios = map(torch.tensor, zip(*seen, strict=True))
    assert set(rates.tolist()) == {8000}
    assert 0.2 <= times.min() < 0.25
    assert 0.55 < times.max() <= 0.6
    assert -5 <= ratios.min() < -4
    assert 4 < ratios.max() <= 5
    # Energy: the tail adds what the ratio says, but for what the end of the clip cuts off.
    added = torch.stack([10 * ((o - clean).square().sum() / clean.square().sum()).log10() for o in out[:10]])
    torch.testing.assert_close(added, -ratios[:10], rtol=0, atol=1.0)
    with pytest.raises(ValueError, match=r"T60 from 0.6 to 0.2 s"):
        Reverberation(0.6, 0.2)
