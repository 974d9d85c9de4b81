"""A ``LightningDataModule`` of somebody's own that yields ``(idx, targets)``: trained on as it is.

What a run knows of a text is not there: no tokenizer, hence no bits per byte, no generated texts and no
``app generate``. The vocabulary is the model's own argument or an attribute ``vocab_size`` of the data module; the
block size is that of its windows. Its batches are the micro-batches of one process.

**Order.** The loader is read epoch after epoch as one endless stream. Torch's generators are re-keyed from (seed,
epoch) before each, so that a shuffling loader has an order of its own in every epoch and the same in every run of a
seed.

**Resume.** At the end of an epoch a run goes on exactly. In the midst of one it does where the loader is stateful
(``state_dict`` and ``load_state_dict``, such as torchdata's ``StatefulDataLoader``); otherwise it begins the epoch
anew, which ``--resume_inexact true`` allows.
"""

from collections.abc import Iterator
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from torch import Tensor

from app.run.errors import ConfigurationError, DataError
from app.run.randomness import rekey

#: of the generators' keys, which otherwise belong to micro-batches
_EPOCH_KEY = 1 << 40
#: stands for the hash of a tokenizer
NO_TOKENIZER = "none"


def class_path(made: object) -> str:
    """The class of an object, as a configuration names it."""
    return f"{type(made).__module__}.{type(made).__qualname__}"


class PlainDataModule(LightningDataModule):
    """What a run needs of its data, on a data module that knows nothing of runs.

    Args:
        inner: the data module.
        seed: the run's.
        vocab_size: number of tokens, the model's or its own.
        block_size: the model's, in tokens; None for that of the windows.
    """

    tokenizer = None
    bytes_per_token = None
    has_words = False
    tokens_per_epoch = 0  # nobody knows

    def __init__(
        self,
        inner: LightningDataModule,
        seed: int,
        vocab_size: int,
        block_size: int | None = None,
    ):
        super().__init__()
        self.inner = inner
        self.vocab_size = vocab_size
        self._block_size = block_size
        self.seed = seed
        self.prepare_command = "app prepare"
        self._accumulation = 1
        self._micro_batch = 0
        self._stream: EpochStream | None = None
        self._step_before = self._windows_before = 0
        self._state: dict[str, Any] | None = None

    @property
    def inner_class(self) -> str:
        """Class path of the data module."""
        return class_path(self.inner)

    @property
    def block_size(self) -> int:
        """Tokens per window; known once :meth:`check_source` has looked."""
        assert self._block_size is not None
        return self._block_size

    # -- what a run asks --------------------------------------------------------------------------------

    def check_source(self) -> None:
        """Prepares the data and looks at a batch, once.

        Raises:
            DataError: it does not hold ``(idx, targets)``, each ``(B, T)`` int64, of the block size and vocabulary.
        """
        if self._micro_batch:
            return
        self.inner.prepare_data()
        self.inner.setup("fit")
        batch = next(iter(self.inner.train_dataloader()), None)
        idx, targets = batch if isinstance(batch, list | tuple) and len(batch) == 2 else (None, None)
        if not (isinstance(idx, Tensor) and isinstance(targets, Tensor) and idx.shape == targets.shape):
            raise DataError(
                f"{self.inner_class}: train_dataloader must give (idx, targets), each (B, T) int64"
            )
        if idx.ndim != 2 or idx.is_floating_point() or targets.is_floating_point():
            raise DataError(
                f"{self.inner_class}: gives {tuple(idx.shape)} of {idx.dtype}; must be (B, T) of int64"
            )
        if self._block_size is None:
            self._block_size = idx.shape[1]
        if idx.shape[1] != self.block_size:
            raise DataError(
                f"{self.inner_class}: gives windows of {idx.shape[1]} tokens, and model.init_args.block_size is "
                f"{self.block_size}; set it to {idx.shape[1]}"
            )
        wrong = (idx < 0) | (idx >= self.vocab_size)
        if wrong.any():
            raise DataError(
                f"{self.inner_class}: gives token {idx[wrong][0]}; must be at least 0 and below vocab_size, which is "
                f"{self.vocab_size}"
            )
        self._micro_batch = len(idx)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The class alone: what its batches hold is its own affair."""
        return {"tokenizer": NO_TOKENIZER, "datamodule": self.inner_class}

    @property
    def batch_size(self) -> int:
        """Windows per optimizer step, as many as those of the first batch."""
        return self._micro_batch * self._accumulation

    @property
    def tokens_per_step(self) -> int:
        """Targets per optimizer step."""
        return self.batch_size * self.block_size

    def windows_seen(self, step: int) -> int:
        """Windows consumed by the first ``step`` optimizer steps, for steps of this launch."""
        return self._windows_before + (step - self._step_before) * self.batch_size

    def tokens_seen(self, step: int) -> int:
        """Targets trained on in the first ``step`` optimizer steps."""
        return self.windows_seen(step) * self.block_size

    def describe(self) -> str:
        """The class and the size of its batches."""
        return f"{self.inner_class}: batches of {self._micro_batch} windows"

    def notes(self, split: Literal["val", "test"] = "val") -> list[str]:
        """What is absent, and why."""
        return [f"{self.inner_class} has no tokenizer: no bits per byte, no texts, and no app generate"]

    def evaluated_text(self, split: Literal["val", "test"]) -> tuple[None, None, None]:
        """Neither bytes nor words are known."""
        return None, None, None

    def check_placement(self, world_size: int, accumulation: int) -> None:
        """One process trains.

        Raises:
            ConfigurationError: there are several.
        """
        if world_size > 1:
            raise ConfigurationError(
                f"devices: {world_size} processes would all get the same batches of {self.inner_class}; set "
                "trainer.devices: 1"
            )
        self._accumulation = accumulation

    def n_validation_batches(self, world_size: int, accumulation: int) -> int:
        """Batches of the validation split; 1 where that is not known."""
        loader: Any = self.val_dataloader()
        return len(loader) if hasattr(loader, "__len__") else 1

    def open_validation(self) -> None:
        """Nothing was held out for tuning."""

    # -- resume -----------------------------------------------------------------------------------------

    def go_on_from(self, step: int, windows: int) -> None:
        """Continues the stream of other launches."""
        self._step_before, self._windows_before = step, windows

    def inexact(self, saved: dict[str, Any] | None) -> str:
        """Why a run cannot go on exactly; empty where it can.

        Args:
            saved: what a checkpoint holds of this data module.
        """
        saved = saved or {}
        if saved.get("batch", 0) == 0 or saved.get("loader") is not None:
            return ""
        return (
            f"data: the checkpoint lies within an epoch of {self.inner_class}, after {saved['batch']} of its batches, "
            "and its loader cannot say where it stands"
        )

    def state_dict(self) -> dict[str, Any]:
        """Epoch, batches of it that were trained on, and the loader's own state where it has one."""
        assert self._stream is not None and self.trainer is not None
        step = self.trainer.global_step - self._step_before
        return self._stream.state_after(step * self._accumulation)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Taken back by the next training loader."""
        self._state = state_dict

    # -- loaders ----------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """The data module's own, except for what :meth:`check_source` has done."""
        self.inner.trainer = self.trainer
        if stage != "fit":
            self.inner.setup(stage)

    def teardown(self, stage: str) -> None:
        """The data module's own."""
        self.inner.teardown(stage)

    def train_dataloader(self) -> "EpochStream":
        """One endless stream over the data module's epochs."""
        self._stream = EpochStream(self.inner.train_dataloader(), self.seed, self._state or {})
        return self._stream

    def val_dataloader(self) -> Any:
        """The data module's own; none where it has none."""
        has_one = type(self.inner).val_dataloader is not LightningDataModule.val_dataloader
        return self.inner.val_dataloader() if has_one else []

    def test_dataloader(self) -> Any:
        """The data module's own."""
        return self.inner.test_dataloader()

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """The data module's own."""
        return self.inner.transfer_batch_to_device(batch, device, dataloader_idx)


class EpochStream:
    """Epoch after epoch of a loader.

    Args:
        loader: any iterable of batches.
        seed: of the order.
        state: of :meth:`state_after`; empty begins with the first epoch.
    """

    def __init__(self, loader: Any, seed: int, state: dict[str, Any]):
        self.loader = loader
        self.seed = seed
        self._epoch = int(state.get("epoch", 0))
        self._loader_state = state.get("loader")
        self._first = int(state.get("batch", 0)) if self._loader_state is not None else 0
        # Batches are taken ahead of the step, so that the newest few are remembered.
        self._states: dict[int, dict[str, Any]] = {0: self._now(self._first)}
        self._n_taken = 0

    def __iter__(self) -> Iterator[Any]:
        while True:
            batch = self._first
            if self._loader_state is not None:
                self.loader.load_state_dict(self._loader_state)
                self._loader_state = None
            else:
                rekey(self.seed, self._epoch, _EPOCH_KEY, 0)
            sampler: Any = getattr(self.loader, "sampler", None)
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(self._epoch)
            n_before = self._n_taken
            for content in self.loader:
                batch += 1
                self._n_taken += 1
                self._remember(batch)
                yield content
            if self._n_taken == n_before and not self._first:
                raise DataError("data: train_dataloader gives no batch any more")
            self._epoch, self._first = self._epoch + 1, 0
            # The end of an epoch is the beginning of the next: exact, whatever the loader.
            self._states[self._n_taken] = {"epoch": self._epoch, "batch": 0, "loader": None}

    def state_after(self, n_batches: int) -> dict[str, Any]:
        """Where the stream stood when so many of its batches were trained on."""
        return self._states[n_batches]

    def _remember(self, batch: int) -> None:
        self._states[self._n_taken] = self._now(batch)
        for old in [n for n in self._states if n < self._n_taken - 8]:
            del self._states[old]

    def _now(self, batch: int) -> dict[str, Any]:
        is_stateful = hasattr(self.loader, "state_dict") and hasattr(self.loader, "load_state_dict")
        loader = self._loader_state or (self.loader.state_dict() if is_stateful and batch else None)
        return {"epoch": self._epoch, "batch": batch, "loader": loader}
