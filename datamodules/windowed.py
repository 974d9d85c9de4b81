"""The part of a data module that depends on its windows being numbered, and on nothing that is in them."""

from collections.abc import Sequence
from typing import Annotated, Any

from lightning.pytorch import LightningDataModule

from app import options
from app.options import NonNegativeInt, PositiveInt, Probability, Within
from app.run.errors import ConfigurationError
from datamodules.loaders import Placement, Stopwatch
from datamodules.windows import shard


class WindowDataModule(LightningDataModule):
    """One endless stream of training windows, a function of ``seed`` and the number of windows consumed.

    A run keeps that number in its checkpoints and gives it back through :meth:`go_on_from`; there is no other state.
    Set ``use_distributed_sampler=False`` in the trainer: batches are already divided among the ranks.

    Args:
        block_size: tokens per window.
        batch_size: windows per optimizer step, over all ranks and accumulated micro-batches.
        num_workers: loader processes; they change nothing but the speed.
        seed: of the windows' order.
        repeat_windows: train on so many windows again and again; 0 trains on all.
        tuning_fraction: share held out of the training data; for tuning. Where it is set, ``val/*``, the best
            checkpoint and early stopping are of that part, and the validation split is read by ``app validate`` alone.

    Attributes:
        is_tuning: whether what is held out for tuning stands in place of the validation split.
        prepare_command: what messages tell a person to run where there is a network.
        has_words: whether the tokens are those of a text, whose words and counts say something.

    Raises:
        ConfigurationError: arguments out of range, all at once.
    """

    has_words = True

    def __init_subclass__(cls, without: Sequence[str] = (), **kwargs: Any) -> None:
        """Makes a subclass check its arguments; ``**others`` of its constructor stands for those of its base class.

        Args:
            without: arguments of the base class that the subclass decides itself.
            kwargs: for other bases.
        """
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            initialise = cls.__init__
            if options.has_others(initialise):
                initialise = options.taking(initialise, cls.__mro__[1], without=without)
            cls.__init__ = options.checked(initialise, refused=_refused)  # type: ignore[method-assign]

    def __init__(
        self,
        block_size: Annotated[int, Within("[2, inf)")] = 256,
        batch_size: PositiveInt = 32,
        num_workers: NonNegativeInt = 0,
        seed: Annotated[int, Within("[0, 2^63)")] = 1337,
        repeat_windows: NonNegativeInt = 0,
        tuning_fraction: Probability = 0.0,
    ):
        super().__init__()
        self.block_size = block_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.repeat_windows = repeat_windows
        self.tuning_fraction = tuning_fraction
        self.is_tuning = tuning_fraction > 0
        self.prepare_command = "app prepare"
        self._stopwatch = Stopwatch()
        self._step_before, self._windows_before = 0, 0

    @property
    def tokens_per_step(self) -> int:
        """Targets per optimizer step of this launch, over all ranks; earlier launches may have had others."""
        return self.batch_size * self.block_size

    def go_on_from(self, step: int, windows: int) -> None:
        """Continues the stream of a run that other launches have begun, perhaps with other batch sizes.

        Args:
            step: optimizer steps that they completed.
            windows: windows that these steps consumed.
        """
        self._step_before, self._windows_before = step, windows

    def windows_seen(self, step: int) -> int:
        """Windows consumed by the first ``step`` optimizer steps, for steps of this launch."""
        return self._windows_before + (step - self._step_before) * self.batch_size

    def tokens_seen(self, step: int) -> int:
        """Targets trained on in the first ``step`` optimizer steps, over all ranks and launches."""
        return self.windows_seen(step) * self.block_size

    def check_placement(self, world_size: int, accumulation: int) -> None:
        """Whether every rank and micro-batch gets equally many windows.

        Raises:
            ConfigurationError: ``batch_size`` does not divide.
        """
        shard(self.batch_size, world_size, accumulation)

    def open_validation(self) -> None:
        """Evaluates the validation split from here on, also where a part is held out for tuning."""
        self.is_tuning = False

    @property
    def seconds_in_loader(self) -> float:
        """Seconds for which the host has waited for training batches, since the newest loader was made."""
        return self._stopwatch.seconds

    def _placement(self) -> Placement:
        """Where this process stands; one rank at the position given without a trainer."""
        trainer = self.trainer
        if trainer is None:
            return Placement(window=self.windows_seen(self._step_before))
        return Placement(
            world_size=trainer.world_size,
            rank=trainer.global_rank,
            accumulation=trainer.accumulate_grad_batches,
            window=self.windows_seen(trainer.global_step),
            pin_memory=trainer.strategy.root_device.type == "cuda",
        )


def _refused(problems: Sequence[options.Problem]) -> ConfigurationError:
    return ConfigurationError(map(str, problems))
