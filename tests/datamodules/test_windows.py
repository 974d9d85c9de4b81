"""Which windows a step trains on."""

from collections import Counter

import numpy as np
import pytest

from app.run.errors import ConfigurationError
from datamodules.windows import TrainWindows, micro_batch_index, permuted, shard


def epoch_starts(windows: TrainWindows, epoch: int) -> np.ndarray:
    return windows.starts(np.arange(windows.n_tiles) + epoch * windows.n_tiles)


def permutation(size: int, seed: int, epoch: int) -> list[int]:
    place = np.arange(size, dtype=np.uint64)
    return permuted(place, size, seed, np.full(size, epoch, dtype=np.uint64)).tolist()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 16, 17, 255, 1000, 4097])
@pytest.mark.parametrize("seed", [0, 1337, 2**63 - 1])
def test_permutation_visits_every_element_once(size: int, seed: int) -> None:
    for epoch in (0, 1, 2, 10**9):
        assert sorted(permutation(size, seed, epoch)) == list(range(size))


def test_permutation_golden_values() -> None:
    # A change here changes the data order of every run that is resumed afterwards.
    assert permutation(10, 1337, 0) == [8, 0, 4, 2, 6, 3, 5, 1, 9, 7]
    assert permutation(10, 1337, 1) == [0, 8, 7, 2, 4, 1, 3, 9, 6, 5]
    windows = TrainWindows(n_tokens=1_003_854, block_size=256, seed=1337)
    starts = windows.starts(np.array([0, 1, 2, 3919, 3920, 10**9]))
    assert starts.tolist() == [610855, 960551, 157479, 319783, 25469, 773970]


def test_permutations_differ_between_epochs_and_seeds() -> None:
    orders = [tuple(permutation(1000, seed, epoch)) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25
    # No element stays in place more often than chance allows (expected: one per permutation).
    assert sum(i == element for order in orders for i, element in enumerate(order)) < 60


def test_small_permutations_are_about_equally_likely() -> None:
    n_epochs = 6000
    place = np.tile(np.arange(3, dtype=np.uint64), n_epochs)
    epochs = np.repeat(np.arange(n_epochs, dtype=np.uint64), 3)
    orders = permuted(place, 3, 7, epochs).reshape(n_epochs, 3)
    counts = Counter(map(tuple, orders.tolist()))
    assert len(counts) == 6  # 1000 each, standard deviation 29
    assert min(counts.values()) > 850
    assert max(counts.values()) < 1150


def test_neighbours_in_the_text_are_not_neighbours_in_the_order() -> None:
    order = np.array(permutation(1000, 1, 0))
    assert np.abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.1
    assert np.abs(np.corrcoef(np.arange(1000), order)[0, 1]) < 0.1


@pytest.mark.parametrize("n_tokens", [9, 12, 15, 16, 17, 23, 24, 31, 100, 8000, 8007])
def test_an_epoch_tiles_the_text_from_its_phase(n_tokens: int) -> None:
    block_size = 8
    windows = TrainWindows(n_tokens, block_size, seed=3)
    for epoch in range(20):
        starts = np.sort(epoch_starts(windows, epoch))
        assert (np.diff(starts) == block_size).all()  # disjoint, without gaps
        assert starts[0] >= 0
        assert starts[-1] + block_size <= n_tokens - 1
        assert starts[0] + (n_tokens - 1 - starts[-1] - block_size) == windows.slack < 2 * block_size


@pytest.mark.parametrize("n_tokens", [16, 17, 24, 25, 1000])
def test_there_are_at_least_block_size_phases(n_tokens: int) -> None:
    # With fewer, the epochs of many texts would repeat the same few thousand windows.
    assert TrainWindows(n_tokens, 8, seed=3).slack >= 7


@pytest.mark.parametrize("n_tokens", [9, 12, 15, 16, 17, 23, 24, 31, 101])
def test_epochs_together_cover_every_token(n_tokens: int) -> None:
    windows = TrainWindows(n_tokens, 8, seed=3)
    starts = windows.starts(np.arange(200 * windows.n_tiles))
    covered = np.unique(starts[:, None] + np.arange(9))
    assert covered.tolist() == list(range(n_tokens))
    phases = {int(epoch_starts(windows, epoch).min()) for epoch in range(200)}
    assert phases == set(range(windows.slack + 1))


def test_windows_do_not_depend_on_the_company_they_are_asked_in() -> None:
    windows = TrainWindows(1000, 7, seed=5)
    index = np.arange(500)
    together = windows.starts(index)
    assert [int(windows.starts(np.array([i]))[0]) for i in index] == together.tolist()
    shuffled = np.random.default_rng(0).permutation(500)
    assert windows.starts(shuffled).tolist() == together[shuffled].tolist()


def test_repeat_windows_repeats_the_first_ones() -> None:
    free = TrainWindows(1000, 7, seed=5)
    windows = TrainWindows(1000, 7, seed=5, repeat_windows=3)
    assert windows.starts(np.arange(9)).tolist() == free.starts(np.arange(3)).tolist() * 3


def test_a_fixed_order_is_that_of_the_first_epoch_for_ever() -> None:
    moving, fixed = (TrainWindows(1000, 7, seed=3, order=order) for order in ("reshuffled", "fixed"))
    n = moving.n_tiles
    starts = fixed.starts(np.arange(3 * n)).reshape(3, n)
    assert (starts == moving.starts(np.arange(n))).all()
    assert (starts != moving.starts(np.arange(3 * n)).reshape(3, n)).any(1).tolist() == [False, True, True]


def test_random_windows_begin_anywhere_alike() -> None:
    windows = TrainWindows(108, 8, seed=3, order="random")
    starts = windows.starts(np.arange(20_000))
    counts = np.bincount(starts, minlength=100)
    assert len(counts) == 100, "the last one reads the last token as its target"
    # Chi-squared of 99 degrees of freedom: its mean and seven standard deviations.
    assert ((counts - 200) ** 2 / 200).sum() < 99 + 7 * (2 * 99) ** 0.5
    assert (windows.starts(np.arange(50, 60)) == starts[50:60]).all()
    assert (starts[:100] != TrainWindows(108, 8, seed=4, order="random").starts(np.arange(100))).any()


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_global_batch_is_the_same_for_every_division(world_size: int, accumulation: int) -> None:
    batches = []
    for step in range(3):
        ranks = [
            [
                micro_batch_index(
                    12 * step, micro, rank, batch_size=12, world_size=world_size, accumulation=accumulation
                ).tolist()
                for micro in range(accumulation)
            ]
            for rank in range(world_size)
        ]
        batches.append([i for rank in ranks for micro in rank for i in micro])  # contiguous slices, in order
    assert batches == [list(range(12 * step, 12 * step + 12)) for step in range(3)]


def test_numbers_that_do_not_divide_are_named() -> None:
    assert shard(12, 3, 2) == 2
    with pytest.raises(ConfigurationError) as caught:
        shard(10, 2, 3)
    message = str(caught.value)
    assert all(part in message for part in ("batch_size: 10", "2 rank", "3 accumulated", "= 6", "6 or 12"))
    with pytest.raises(ConfigurationError, match="Set batch_size to 8,"):
        shard(3, 8, 1)
