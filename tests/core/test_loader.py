import itertools

import pytest
import torch

from fewstep.train.loader import StatefulLoader


class Numbers:
    """Item = its index and a random number drawn for it."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def draw(self, index, generator):
        return {"index": torch.tensor(index), "noise": torch.rand(2, generator=generator, dtype=torch.float64)}


def take(loader, n):
    return list(itertools.islice(loader, n))


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)


def positions(n_batches, n, batch_size, ranks, seed=0):
    """Indices in the order of the stream: batch 0 of rank 0, batch 0 of rank 1, ..., batch 1 of rank 0, ..."""
    per_rank = [take(StatefulLoader(Numbers(n), batch_size, seed, r, ranks), n_batches) for r in range(ranks)]
    return [i for k in range(n_batches) for r in range(ranks) for i in per_rank[r][k]["index"].tolist()]


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_gives_the_batches_that_would_have_followed(workers):
    whole = take(StatefulLoader(Numbers(10), 3, seed=5), 12)
    first = StatefulLoader(Numbers(10), 3, seed=5, workers=workers)
    same(take(first, 5), whole[:5])
    second = StatefulLoader(Numbers(10), 3, seed=5, workers=workers)
    second.load_state_dict(first.state_dict())
    same(take(second, 7), whole[5:])
    assert second.state_dict() == {"given": 12}


def test_workers_change_nothing():
    one, two = (take(StatefulLoader(Numbers(11), 4, seed=1, rank=1, ranks=2, workers=w), 6) for w in (0, 2))
    same(one, two)


def test_iterating_again_continues():
    loader = StatefulLoader(Numbers(10), 3)
    same(take(loader, 4) + take(loader, 4), take(StatefulLoader(Numbers(10), 3), 8))


def test_batches_do_not_depend_on_the_global_generator_nor_disturb_it():
    torch.manual_seed(0)
    one = take(StatefulLoader(Numbers(10), 3), 4)
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    same(take(StatefulLoader(Numbers(10), 3), 4), one)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(("n", "batch_size", "ranks"), [(12, 3, 1), (24, 3, 2), (10, 3, 1), (14, 4, 3), (3, 5, 2)])
def test_every_epoch_is_a_permutation_shared_by_the_ranks(n, batch_size, ranks):
    """Also where batches straddle epochs, and where a batch is larger than the data."""
    epochs = 4
    batches = -(-epochs * n // (batch_size * ranks))
    stream = positions(batches, n, batch_size, ranks)[: epochs * n]
    orders = [stream[e * n : (e + 1) * n] for e in range(epochs)]
    assert all(sorted(order) == list(range(n)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_ranks_are_disjoint_within_an_epoch():
    n, batch_size, ranks = 24, 3, 4
    seen = [
        {
            i
            for batch in take(StatefulLoader(Numbers(n), batch_size, 0, r, ranks), n // (batch_size * ranks))
            for i in batch["index"].tolist()
        }
        for r in range(ranks)
    ]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(seen, 2))
    assert set.union(*seen) == set(range(n))


def test_the_stream_does_not_depend_on_how_it_is_divided():
    """4 x 3 on one process, 2 x 3 on two, 1 x 12: the same items with the same draws in the same order."""
    assert positions(6, 10, 12, 1) == positions(6, 10, 6, 2) == positions(24, 10, 3, 1)
    (big,) = take(StatefulLoader(Numbers(10), 6), 1)
    small = [take(StatefulLoader(Numbers(10), 3, 0, r, 2), 1)[0] for r in range(2)]
    assert torch.equal(big["noise"], torch.cat([b["noise"] for b in small]))


def test_draws_are_fresh_in_every_epoch_and_for_every_item():
    noise = torch.cat([b["noise"] for b in take(StatefulLoader(Numbers(4), 4), 5)])
    assert len(noise.unique()) == noise.numel()


def test_seeds_give_different_orders_and_draws():
    one, two = (take(StatefulLoader(Numbers(50), 50, seed=s), 1)[0] for s in (0, 1))
    assert not torch.equal(one["index"], two["index"])
    assert not torch.isin(one["noise"], two["noise"]).any()


def test_batch_size_must_be_positive():
    with pytest.raises(ValueError, match="batch_size"):
        StatefulLoader(Numbers(3), 0)
