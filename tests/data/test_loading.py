from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tna_lightning.data.loading import (
    BatchLoader,
    BatchSet,
    IndexBatches,
    derive_seed,
    split_hash,
    stratified_split,
)


class TestStratifiedSplit:
    @given(
        st.lists(st.integers(0, 5), min_size=1, max_size=200),
        st.floats(0, 0.99),
        st.integers(0, 1000),
    )
    def test_partition_in_proportion(self, labels: list[int], fraction: float, seed: int) -> None:
        labels = torch.tensor(labels)
        rest, chosen = stratified_split(labels, fraction, seed)
        assert torch.equal(torch.cat([rest, chosen]).sort().values, torch.arange(len(labels)))
        assert torch.equal(rest, rest.sort().values)
        assert torch.equal(chosen, chosen.sort().values)
        assert -1e-6 <= len(chosen) - fraction * len(labels) < 1
        for label in labels.unique():
            share = (labels == label).sum() * len(chosen) / len(labels)
            assert abs((labels[chosen] == label).sum() - share) < 1

    def test_balanced_classes_give_the_same_number_each(self) -> None:
        labels = torch.arange(10).repeat(1000)
        rest, chosen = stratified_split(labels, 0.1, seed=3)
        assert labels[chosen].bincount().tolist() == [100] * 10
        assert labels[rest].bincount().tolist() == [900] * 10

    def test_is_a_function_of_the_seed(self) -> None:
        labels = torch.arange(10).repeat(20)
        _, first = stratified_split(labels, 0.25, seed=1)
        torch.manual_seed(99)
        _, again = stratified_split(labels, 0.25, seed=1)
        _, other = stratified_split(labels, 0.25, seed=2)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    @pytest.mark.parametrize("fraction", [-0.1, 1.0])
    def test_fraction_out_of_range(self, fraction: float) -> None:
        with pytest.raises(ValueError, match=rf"^fraction={fraction}: must lie in \[0, 1\)"):
            stratified_split(torch.arange(3), fraction, seed=0)


def test_split_hash_depends_on_members_and_not_on_their_order() -> None:
    train, val, test = torch.arange(0, 6), torch.arange(6, 8), torch.arange(8, 10)
    value = split_hash(train, val, test)
    assert len(value) == 64
    assert split_hash(train.flip(0), val, test) == value
    assert split_hash(torch.arange(0, 7), torch.arange(7, 8), test) != value
    assert split_hash(val, train, test) != value


def test_derived_seeds_do_not_collide_along_the_diagonal() -> None:
    assert len({derive_seed(seed, epoch) for seed in range(20) for epoch in range(20)}) == 400


class TestTrainingOrder:
    @given(st.integers(1, 100), st.integers(1, 20), st.integers(1, 4), st.integers(0, 5))
    def test_ranks_share_each_global_batch(self, num_samples: int, batch_size: int, ranks: int, epoch: int) -> None:
        if num_samples < ranks:
            return
        samplers = [
            IndexBatches(num_samples, batch_size, shuffle=True, rank=r, num_replicas=ranks) for r in range(ranks)
        ]
        alone = IndexBatches(num_samples, batch_size * ranks, shuffle=True)
        for sampler in (*samplers, alone):
            sampler.set_epoch(epoch)
        by_rank = [list(sampler) for sampler in samplers]
        assert {len(batches) for batches in by_rank} == {len(sampler) for sampler in samplers}
        global_batches = [sorted(chain(*shares)) for shares in zip(*by_rank, strict=True)]
        # several devices take the steps that one device takes with a batch as large as all of theirs
        steps = [sorted(batch) for batch in alone]
        assert global_batches == steps[: len(global_batches)]
        seen = list(chain(*global_batches))
        assert len(seen) == len(set(seen))
        left_out = num_samples - len(seen)
        assert left_out < 2 * ranks
        sizes = [len(batch) for batches in by_rank for batch in batches]
        assert max(sizes) <= batch_size
        if len(global_batches) > 1 and batch_size > 1:
            assert min(sizes) > 1  # a single sample has no variance for batch normalisation

    def test_order_changes_with_epoch_and_seed_and_repeats(self) -> None:
        def order(seed: int, epoch: int) -> list[int]:
            sampler = IndexBatches(50, 8, shuffle=True, seed=seed)
            sampler.set_epoch(epoch)
            return list(chain(*sampler))

        assert order(0, 0) == order(0, 0)
        assert order(0, 1) != order(0, 0)
        assert order(1, 0) != order(0, 0)
        assert order(1, 0) != order(0, 1)
        assert sorted(order(0, 7)) == list(range(50))

    def test_last_batch(self) -> None:
        assert [len(batch) for batch in IndexBatches(10, 4, shuffle=True)] == [4, 4, 2]
        assert [len(batch) for batch in IndexBatches(9, 4, shuffle=True)] == [4, 4]
        assert [len(batch) for batch in IndexBatches(1, 4, shuffle=True)] == [1]
        assert [len(batch) for batch in IndexBatches(3, 1, shuffle=True)] == [1, 1, 1]


class TestEvaluationOrder:
    @given(st.integers(1, 100), st.integers(1, 20), st.integers(1, 4))
    def test_each_sample_once_over_all_ranks(self, num_samples: int, batch_size: int, ranks: int) -> None:
        if num_samples < ranks:
            return
        samplers = [
            IndexBatches(num_samples, batch_size, shuffle=False, rank=r, num_replicas=ranks) for r in range(ranks)
        ]
        by_rank = [list(sampler) for sampler in samplers]
        assert {len(batches) for batches in by_rank} == {len(samplers[0])}
        sizes = [len(batch) for batches in by_rank for batch in batches]
        assert min(sizes) >= 1
        assert max(sizes) <= max(batch_size, 2)  # 3 samples, 2 devices, batch size 1: one device takes 2 at once
        assert sorted(index for batches in by_rank for batch in batches for index in batch) == list(range(num_samples))

    def test_one_device_sees_the_order_of_the_set(self) -> None:
        assert list(chain(*IndexBatches(10, 4, shuffle=False))) == list(range(10))


def test_fewer_samples_than_devices() -> None:
    with pytest.raises(ValueError, match=r"^batch_size=4: 2 samples cannot be shared by 3 devices"):
        IndexBatches(2, 4, shuffle=True, rank=0, num_replicas=3)


def test_batches_gather_the_subset() -> None:
    inputs = torch.arange(20, dtype=torch.uint8).view(10, 2)
    batches = BatchSet(inputs, torch.arange(10) * 100, subset=torch.tensor([9, 3, 5]))
    batch = batches[[2, 0]]
    assert batch.index.tolist() == [5, 9]
    x, target = batch
    assert len(batches) == 3
    assert x.tolist() == [[10, 11], [18, 19]]
    assert target.tolist() == [500, 900]


def test_loader_draws_nothing_from_the_global_generator() -> None:
    loader = BatchLoader(BatchSet(torch.zeros(10, 1), torch.arange(10)), IndexBatches(10, 4, shuffle=True))
    before = torch.get_rng_state()
    assert sorted(torch.cat([target for _, target in loader]).tolist()) == list(range(10))
    assert len(loader) == 3
    assert torch.equal(torch.get_rng_state(), before)
