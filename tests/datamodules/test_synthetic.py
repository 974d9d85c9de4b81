"""What holds of every synthetic task, and of the stream and the evaluation that they share."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch

from app.run.errors import ConfigurationError
from datamodules import SyntheticDataModule
from datamodules.task_windows import EvaluationWindows, TaskDataset, TaskWindows
from datamodules.tasks import Drawn, Sizes, rungs, tasks

NAMES = sorted(SyntheticDataModule.tasks())


def every_size(name: str) -> list[Sizes]:
    return rungs(tasks()[name], {}) + rungs(tasks()[name], {}, "evaluation")


def windows(name: str, seed: int = 3, split: str = "val", n: int = 3) -> list[Drawn]:
    drawn = TaskWindows(tasks()[name], seed, split)
    return [drawn.draw(number, sizes) for sizes in every_size(name) for number in range(n)]


@pytest.mark.parametrize("name", NAMES)
class TestEveryTask:
    def test_it_says_what_it_draws(self, name: str) -> None:
        said = inspect.getdoc(tasks()[name]) or ""
        assert "input " in said and "target " in said, "a picture of one input and its targets"
        assert len(inspect.getsource(inspect.getmodule(tasks()[name])).splitlines()) <= 60  # type: ignore[arg-type]

    def test_symbols_lie_in_the_vocabulary_and_something_is_scored(self, name: str) -> None:
        vocab_size = every_size(name)[0]["vocab_size"]
        for window in windows(name):
            assert window.inputs.dtype == window.targets.dtype == np.int64
            assert window.inputs.shape == window.targets.shape
            assert window.inputs.min() >= 0 and window.inputs.max() < vocab_size
            scored = window.targets != -100
            assert scored.any()
            assert window.targets[scored].min() >= 0 and window.targets[scored].max() < vocab_size
            for values in window.slices.values():
                assert np.all(np.broadcast_to(values, scored.shape)[scored] >= 0)
            if window.truth is not None:
                assert window.truth.shape == (len(scored), vocab_size)
                np.testing.assert_allclose(window.truth[scored].sum(1), 1, rtol=1e-5)
                assert np.all(
                    np.take_along_axis(window.truth, window.targets.clip(0)[:, None], 1)[scored] > 0
                )

    def test_a_seed_repeats_and_another_differs(self, name: str) -> None:
        for this, again, other, trained in zip(
            windows(name), windows(name), windows(name, seed=4), windows(name, split="train"), strict=True
        ):
            assert np.array_equal(this.inputs, again.inputs) and np.array_equal(this.targets, again.targets)
            assert not np.array_equal(this.inputs, other.inputs)
            assert not np.array_equal(this.inputs, trained.inputs)

    def test_windows_of_a_size_are_equally_long(self, name: str) -> None:
        for sizes in every_size(name):
            lengths = {len(TaskWindows(tasks()[name], 0).draw(n, sizes).inputs) for n in range(5)}
            assert len(lengths) == 1

    def test_the_global_generator_is_left_alone(self, name: str) -> None:
        before = np.random.get_state()[1].copy()  # type: ignore[index]
        windows(name, n=1)
        assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[arg-type,index]

    def test_the_largest_size_is_refused_when_out_of_its_range(self, name: str) -> None:
        for size, default in every_size(name)[0].items():
            if isinstance(default, int):
                with pytest.raises(ConfigurationError, match=rf"sizes.*{name}.*{size}"):
                    SyntheticDataModule(name, {size: 0})


def recall(**changes: Any) -> SyntheticDataModule:
    options = dict(sizes={"length": [8, 16], "vocab_size": 8}, n_evaluation_windows=5, batch_size=4, seed=1)
    return SyntheticDataModule(**{"task": "in_context_recall"} | options | changes)


def test_a_run_goes_on_where_it_stood_at_sizes_in_turn() -> None:
    data = recall()
    assert [data.training_batch(step, 0)[0].shape[1] for step in range(4)] == [8, 16, 8, 16]
    assert data.block_size == 16
    assert [data.tokens_seen(step) for step in range(4)] == [0, 32, 96, 128]
    loader = iter(data.train_dataloader())
    from_loader = [next(loader) for _ in range(4)]
    resumed = recall()
    resumed.go_on_from(2, 8)
    for step, batch in enumerate([*resumed.train_dataloader().__iter__().__next__()], 2):
        assert torch.equal(batch, from_loader[2][step - 2])
    assert torch.equal(resumed.training_batch(3, 0)[0], from_loader[3][0])


def test_micro_batches_of_a_step_are_parts_of_it() -> None:
    dataset = TaskDataset(
        TaskWindows(tasks()["in_context_recall"], 0),
        [dict(length=8, vocab_size=8), dict(length=16, vocab_size=8)],
        4,
        0,
    )
    whole, parts = (
        dataset.__getitems__([4, 5, 6, 7]),
        [dataset.__getitems__([4, 5]), dataset.__getitems__([6, 7])],
    )
    assert whole[0].shape == (4, 16)
    assert torch.equal(whole[0], torch.cat([part[0] for part in parts]))


def test_repeated_windows() -> None:
    data = recall(sizes={"length": 16}, repeat_windows=4)
    assert torch.equal(data.training_batch(0, 0)[0], data.training_batch(5, 0)[0])
    assert not torch.equal(
        recall(sizes={"length": 16}).training_batch(0, 0)[0], data.training_batch(1, 0)[0][[3, 2, 1, 0]]
    )


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_window_is_evaluated_once_whatever_the_ranks(world_size: int) -> None:
    found = EvaluationWindows(
        TaskWindows(tasks()["in_context_recall"], 0, "val"),
        rungs(tasks()["in_context_recall"], {"length": [8, 16], "vocab_size": 4}),
        5,
    )
    loaders = [found.loader(2, world_size, rank) for rank in range(world_size)]
    assert len({len(loader) for loader in loaders}) == 1
    scored = []
    for loader in loaders:
        batches = list(loader)
        assert len(batches) == len(loader)
        scored += [
            tuple(row.tolist())
            for batch in batches
            for row, y in zip(batch.idx, batch.targets, strict=True)
            if (y >= 0).any()
        ]
    whole = [tuple(row.tolist()) for batch in found.loader(10, 1, 0) for row in batch.idx]
    assert sorted(scored) == sorted(whole)
    assert len(whole) == 10
    assert {name.rpartition("_")[0] for name in found.slice_names} == {"length", "gap"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(task="mqr"), "task = mqr: must be one of .*did you mean mqar?"),
        (dict(sizes={"lenght": 8}), "sizes .*there is no size 'lenght'; did you mean 'length'?"),
        (dict(sizes={"length": [8, 16], "vocab_size": [8, 8, 8]}), "equally long, and these are not: vocab_size 3, length 2|length 2, vocab_size 3"),
        (dict(sizes={"vocab_size": [8, 16]}), "vocab_size must be one number"),
        (dict(sizes={"length": []}), "equally long, and these are not: length 0"),
        (dict(task="mqar", sizes=None, evaluation_sizes={"length": 16, "n_pairs": 8}), r"n_pairs = 8 needs length >= 32"),
        (dict(sizes={"length": "long"}), r"length = long: must be at least 4"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        recall(**changes)


def test_the_fingerprint_is_of_task_sizes_and_draws() -> None:
    assert recall().fingerprint == recall().fingerprint
    others = [recall(seed=2), recall(sizes={"length": 16, "vocab_size": 8}), recall(n_evaluation_windows=6)]
    assert len({str(data.fingerprint) for data in [recall(), *others]}) == 4


def shifted(generator: np.random.Generator, *, vocab_size: int = 5, length: int = 6) -> Drawn:
    """A task of somebody's own."""
    inputs = generator.integers(0, vocab_size, length)
    return Drawn(inputs, (inputs + 1) % vocab_size)


def test_a_task_of_ones_own() -> None:
    data = SyntheticDataModule(shifted, {"length": 9}, batch_size=2)
    x, y = data.training_batch(0, 0)
    assert x.shape == (2, 9) and torch.equal((x + 1) % 5, y)
    assert "test_synthetic.shifted" in data.describe()
