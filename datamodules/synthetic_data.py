"""Synthetic tasks: what an architecture can do, one skill at a time."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from app.options import Given, PositiveInt, Said
from datamodules.evaluated import EvaluatedText
from datamodules.loaders import Batch, EndlessBatchSampler, Stopwatch, TimedLoader, loader_options
from datamodules.task_windows import EvaluationLoader, EvaluationWindows, TaskDataset, TaskWindows
from datamodules.tasks import Sizes, Task, rungs, tasks, varied
from datamodules.tokenizers import SymbolTokenizer
from datamodules.windowed import WindowDataModule
from datamodules.windows import micro_batch_index, shard

if TYPE_CHECKING:
    TaskName = str
else:
    TaskName = Literal[tuple(tasks())]
OwnTask = Annotated[Task, Said("a function of your own (MODULE.FUNCTION with --trust_imports MODULE)")]


class SyntheticDataModule(WindowDataModule, without=("block_size",)):
    """Windows of a task whose answers are known: recall, copying, automata, arithmetic, planted regimes.

    No window is ever repeated in training, unless ``repeat_windows`` says so. Where a task has several sizes, optimizer
    steps take them in turn. Validation and test are fixed sets of other windows, at every size; beside the loss they
    give ``val/accuracy`` and ``val/accuracy/SLICE``, and where the answer is a matter of chance ``val/legal_share``
    and ``val/distance``. Losses and accuracies are of the scored positions alone.

    Args:
        task: what is asked, by the name of its file in ``datamodules/synthetic``.
        sizes: of the task, in place of its own, such as ``{length: 64, vocab_size: 32}``; a list of values is taken in
            turn.
        evaluation_sizes: of validation and test, where they are others.
        n_evaluation_windows: of the validation set and of the test set, at each size.
        windows: options of :class:`~datamodules.windowed.WindowDataModule`; the longest window is ``block_size``.
    """

    has_words = False
    bytes_per_token = None

    def __init__(
        self,
        task: TaskName | OwnTask = "in_context_recall",
        sizes: dict[str, Any] | None = None,
        evaluation_sizes: dict[str, Any] | None = None,
        n_evaluation_windows: PositiveInt = 256,
        **windows: Any,
    ):
        self._task = tasks()[task] if isinstance(task, str) else task
        self._rungs, self._evaluated = _both(self._task, sizes, evaluation_sizes)
        seed = int(windows.get("seed", 0))
        self._lengths = [_length(self._task, seed, rung) for rung in self._rungs]
        longest = max([*self._lengths, *(_length(self._task, seed, rung) for rung in self._evaluated)])
        super().__init__(block_size=longest, **windows)
        self.task = task
        self.sizes = sizes
        self.evaluation_sizes = evaluation_sizes
        self.n_evaluation_windows = n_evaluation_windows
        self._tokenizer = SymbolTokenizer(self._rungs[0]["vocab_size"])
        self._sets: dict[str, EvaluationWindows] = {}

    @staticmethod
    def conflicts(given: Given) -> Iterator[tuple[str, str]]:
        task = tasks().get(given.task) if isinstance(given.task, str) else given.task
        if task is None:
            return
        try:
            for rung in (
                found for both in _both(task, given.sizes, given.evaluation_sizes) for found in both
            ):
                _length(task, given.seed, rung)
        except ValueError as error:
            yield (
                "sizes" if given.evaluation_sizes is None else "evaluation_sizes",
                f"of {_name(task)}: {error}",
            )

    @classmethod
    def tasks(cls) -> Mapping[str, Task]:
        """The tasks by name."""
        return tasks()

    # -- what a run asks --------------------------------------------------------------------------------

    def check_source(self) -> EvaluationWindows:
        """Draws the validation set, once; where something is held out for tuning, that in its place."""
        return self._set("tuning" if self.is_tuning else "val")

    def _set(self, split: str) -> EvaluationWindows:
        if split not in self._sets:
            windows = TaskWindows(self._task, self.seed, split)
            self._sets[split] = EvaluationWindows(windows, self._evaluated, self.n_evaluation_windows)
        return self._sets[split]

    @property
    def tokenizer(self) -> SymbolTokenizer:
        """The symbols as numbers."""
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        """Symbols of the task."""
        return self._tokenizer.vocab_size

    @property
    def slice_names(self) -> list[str]:
        """What the accuracy of an evaluation is told apart by."""
        return self.check_source().slice_names

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Task, sizes, and what they draw."""
        digest = hashlib.sha256()
        for array in self._set("val").arrays:  # also while another set stands in its place
            digest.update(array.tobytes())
        sizes = json.dumps([self._rungs, self._evaluated], sort_keys=True)
        return {
            "tokenizer": self._tokenizer.hash,
            "task": _name(self._task),
            "sizes_sha256": hashlib.sha256(sizes.encode()).hexdigest(),
            "val_sha256": digest.hexdigest(),
        }

    def describe(self) -> str:
        """Task, symbols, sizes, and how many windows are evaluated."""
        name, n = _name(self._task), len(self.check_source())
        said = f"task {name}: {self.vocab_size:,} symbols; {_in_words(self._rungs)}; {n:,} validation windows"
        return said if self._rungs == self._evaluated else f"{said} at {_in_words(self._evaluated)}"

    def notes(self, split: Literal["val", "test"] = "val") -> list[str]:
        """Nothing: every window is what it should be."""
        return []

    def prepare_data(self) -> None:
        """Draws the validation set."""
        self.check_source()

    def setup(self, stage: str) -> None:
        """The same on every rank."""
        self.check_source()

    def evaluated_text(self, split: Literal["val", "test"]) -> EvaluatedText:
        """There are no bytes, and no words."""
        return EvaluatedText(None, None, None)

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens of the windows that are repeated; 0 where none is."""
        return self.repeat_windows * sum(self._lengths)

    @property
    def tokens_per_step(self) -> int:
        """Tokens per optimizer step, the mean over the sizes, rounded down."""
        return self.batch_size * sum(self._lengths) // len(self._lengths)

    def tokens_seen(self, step: int) -> int:
        """Tokens of the first ``step`` optimizer steps; as if earlier launches had had this batch size."""
        cycles, rest = divmod(self.windows_seen(step) // self.batch_size, len(self._lengths))
        return self.batch_size * (cycles * sum(self._lengths) + sum(self._lengths[:rest]))

    def n_validation_batches(self, world_size: int, accumulation: int) -> int:
        """Batches in which each rank reads its share of the validation set."""
        return len(
            self.check_source().loader(shard(self.batch_size, world_size, accumulation), world_size, 0)
        )

    # -- loaders ----------------------------------------------------------------------------------------

    def training_batch(self, step: int, micro_step: int) -> Batch:
        """The micro-batch ``(x, y)`` of this rank at an optimizer step counted from 0."""
        placement = self._placement()
        index = micro_batch_index(
            self.windows_seen(step),
            micro_step,
            placement.rank,
            batch_size=self.batch_size,
            world_size=placement.world_size,
            accumulation=placement.accumulation,
        )
        return self._dataset().__getitems__(index.tolist())

    def _dataset(self) -> TaskDataset:
        windows = TaskWindows(self._task, self.seed)
        return TaskDataset(windows, self._rungs, self.batch_size, self._windows_before, self.repeat_windows)

    def train_dataloader(self) -> Iterable[Batch]:
        """Endless loader that goes on at the trainer's position."""
        self._stopwatch, placement = Stopwatch(), self._placement()
        return TimedLoader(
            self._stopwatch,
            dataset=self._dataset(),
            batch_sampler=EndlessBatchSampler(self.batch_size, placement),
            **loader_options(self.num_workers, placement),
        )

    def val_dataloader(self) -> EvaluationLoader:
        """Every window of the validation set once."""
        return self._evaluation_loader(self.check_source())

    def test_dataloader(self) -> EvaluationLoader:
        """Every window of the test set once."""
        return self._evaluation_loader(self._set("test"))

    def _evaluation_loader(self, windows: EvaluationWindows) -> EvaluationLoader:
        world_size, rank, accumulation, _, _ = self._placement()
        return windows.loader(shard(self.batch_size, world_size, accumulation), world_size, rank)


def _both(
    task: Task, sizes: Mapping[str, Any] | None, evaluation_sizes: Mapping[str, Any] | None
) -> tuple[list[Sizes], list[Sizes]]:
    """The sizes of training and of evaluation."""
    training = rungs(task, sizes or {})
    return training, rungs(task, {**(sizes or {}), **(evaluation_sizes or {})}, "evaluation")


def _length(task: Task, seed: int, sizes: Sizes) -> int:
    return len(TaskWindows(task, seed).draw(0, sizes).inputs)


def _name(task: Task) -> str:
    is_ours = tasks().get(task.__name__) is task
    return task.__name__ if is_ours else f"{task.__module__}.{task.__qualname__}"


def _in_words(of: list[Sizes]) -> str:
    """The sizes that change, one after the other, and those that do not."""
    names = varied(of)
    fixed = ", ".join(
        f"{name} {value}" for name, value in of[0].items() if name not in (*names, "vocab_size")
    )
    moving = " | ".join(" ".join(f"{name} {rung[name]}" for name in names) for rung in of) if names else ""
    return "; ".join(part for part in (moving, fixed) if part)
