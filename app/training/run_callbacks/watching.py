"""What goes wrong in a watcher, a figure or a logger does not end a run.

- A watcher whose hook raises is switched off for the rest of the launch, on every rank. Where it is the network that
  cannot say its measures, its method is named, once, and the watchers that asked are switched off.
- A figure that cannot be drawn is left out and tried again the next time.
- What a logger does not take is left out; the logger stays.

Each is told once, on the terminal and in ``health.jsonl``; with ``APP_DEBUG=1`` its traceback is printed too. What says
how the run is to end goes on up: an :class:`~app.run.errors.AppError`, a signal, a lost rank, a file that the operating
system refuses a logger. So does every exception of a callback that is no watcher: it may be a part of the training.

**Several ranks.** A watcher that fails on one rank, right before numbers are exchanged, would leave the others waiting.
So before each exchange the ranks agree, by a reduction of three numbers per watcher, that all of them have come this
far. A rank on which a watcher has failed takes part in that all the same; all ranks then leave its numbers out and
switch it off. A failure after an exchange is found out at the next one in the same way. Rank zero tells of it, in the
words of the lowest rank on which it failed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers.logger import Logger

from app.records import LogsHealth, MeasuresError, StepRecord
from app.run.atomic import storage_error
from app.run.errors import AppError, words_of
from app.training.distributed import is_broken_connection

MAX_NAMED = 3  # figures on one line of the terminal
#: of a callback, beside the framework's hooks
OWN_HOOKS = ("setup", "teardown", "on_details", "take_in")
LOGGER_CALLS = (
    "log_metrics", "log_details", "log_health", "log_figure", "log_text", "log_hyperparams", "log_graph", "save",
    "finalize", "after_save_checkpoint",
)  # fmt: skip


@runtime_checkable
class Watcher(Protocol):
    """A callback that the run can do without; ``callbacks.watcher.Watcher`` is its base."""

    before_exchange: Callable[[int], None]
    report_left_out: Callable[[Trainer, Mapping[str, Exception]], None]

    def exchanges(self, record: StepRecord) -> bool:
        """Whether numbers are exchanged with other ranks at the end of this micro-batch; the same on every rank."""


@runtime_checkable
class Sharing(Protocol):
    """A watcher that exchanges its numbers together with others, see :class:`callbacks.gather.SharedGather`."""

    gather: Callable[[Trainer], Any]


class Failure(NamedTuple):
    """What has gone wrong, in words, and in which method of the network; empty where the watcher itself is at fault."""

    words: str
    method: str


class FailedSomewhere(Exception):
    """A watcher has failed on some rank."""

    def __init__(self, failure: Failure):
        super().__init__(failure.words)
        self.failure = failure


def keep_running(trainer: Trainer, first_step: int = 0) -> None:
    """From now on this trainer's watchers, figures and loggers may fail.

    Args:
        trainer: with all of its callbacks and loggers.
        first_step: completed optimizer steps that a resumed run begins with.
    """
    notes = Notes(trainer, first_step)
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    guards = {
        callback: WatcherGuard(callback, notes) for callback in callbacks if isinstance(callback, Watcher)
    }
    for watcher in guards:
        if isinstance(watcher, Sharing):
            gather = watcher.gather(trainer)
            gather.agree = partial(_agree_on, [guards[each] for each in gather.watchers])
    for logger in trainer.loggers:
        _guard_logger(logger, notes)


class Notes:
    """Tells of failures, each once: a line on the terminal and one in ``health.jsonl``, by rank zero.

    Args:
        trainer: whose step, loggers and rank.
        first_step: where it begins; a trainer that is being restored does not know.
    """

    def __init__(self, trainer: Trainer, first_step: int):
        self.trainer = trainer
        self.first_step = first_step
        self._told: set[str] = set()
        self._is_writing = False

    @property
    def step(self) -> int:
        """Completed optimizer steps."""
        return max(int(self.trainer.global_step), self.first_step)

    def begins(self, condition: str, places: Iterable[str], what: str, remedy: str) -> None:
        """Something has failed, in places that have not been told of yet."""
        new = [place for place in places if f"{condition}/{place}" not in self._told]
        if not (new and self.trainer.is_global_zero):
            return
        named = "; ".join(new[:MAX_NAMED])
        if len(new) > MAX_NAMED:
            named += f"; {len(new) - MAX_NAMED} more in health.jsonl"
        print(f"health   step {self.step}: {condition}, {named}: {what}; {remedy}", flush=True)
        self._told |= {f"{condition}/{place}" for place in new}
        self._write(condition, new, {"state": "begins", "what": what, "remedy": remedy})

    def ends(self, condition: str, places: Iterable[str]) -> None:
        """What was told to have failed in these places does no more."""
        over = [place for place in places if f"{condition}/{place}" in self._told]
        self._told -= {f"{condition}/{place}" for place in over}
        if over:
            self._write(condition, over, {"state": "ends", "what": "", "remedy": ""})

    def _write(self, condition: str, places: list[str], fields: Mapping[str, str]) -> None:
        if self._is_writing:  # the line about a logger that takes no line
            return
        self._is_writing = True
        findings = {
            f"{condition}/{place}": {
                "condition": condition,
                "layer": None,
                "place": place,
                "value": None,
                **fields,
            }
            for place in places
        }
        for logger in self.trainer.loggers:
            if isinstance(logger, LogsHealth):
                logger.log_health(findings, self.step)
        self._is_writing = False


class WatcherGuard:
    """Stands before the hooks of one watcher, and switches it off when one of them fails.

    Args:
        watcher: whose hooks are replaced.
        notes: where failures are told.
    """

    def __init__(self, watcher: Any, notes: Notes):
        self.watcher = watcher
        self.notes = notes
        self.name = type(watcher).__name__
        self.failure: Failure | None = None  # on this rank
        self.is_off = False  # on every rank
        self._is_agreed = True  # for the exchange of this micro-batch
        self._left_out: list[str] = []  # figures, the last time that any were drawn
        self._state: dict[str, Any] | None = None  # of a checkpoint that the watcher could not read
        self._shares = isinstance(watcher, Sharing)
        self._batch_end = watcher.on_train_batch_end
        for name in (*(name for name in dir(Callback) if name.startswith("on_")), *OWN_HOOKS):
            hook = getattr(watcher, name, None)
            # One of the framework's that does nothing cannot fail, and there are eight of them in a step.
            if getattr(hook, "__func__", hook) is not getattr(Callback, name, None):
                setattr(watcher, name, self._guarded(hook))
        watcher.on_train_batch_end = self._on_train_batch_end
        self._save, self._load = watcher.state_dict, watcher.load_state_dict
        watcher.state_dict, watcher.load_state_dict = self._state_dict, self._load_state_dict
        watcher.before_exchange, watcher.report_left_out = self._agree, self._report_left_out

    @property
    def trainer(self) -> Trainer:
        """The watcher's."""
        return self.notes.trainer

    def _guarded(self, hook: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> None:
            if not self.failure:
                self.attempt(hook, *args, **kwargs)

        return call

    def _on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *args: Any) -> None:
        """The hook at whose end numbers are exchanged: whatever happens in it, all ranks agree once."""
        record = outputs.get("record") if isinstance(outputs, Mapping) else None
        if isinstance(record, StepRecord) and self._shares:
            # Whatever has become of this one, what the others have is exchanged now, on every rank.
            self.watcher.gather(trainer).take_in(pl_module, record)
        has_others = self.trainer.world_size > 1 and isinstance(record, StepRecord) and not self.is_off
        self._is_agreed = not (has_others and self.attempt(self.watcher.exchanges, record))
        if not self.failure:
            self.attempt(self._batch_end, trainer, pl_module, outputs, *args)
        if not self._is_agreed:
            self.attempt(self._agree, 0)

    def attempt(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls something of the watcher's; what it raises is told, and switches the watcher off."""
        try:
            return function(*args, **kwargs)
        except FailedSomewhere as elsewhere:
            self.is_off = True
            self.failure = self.failure or elsewhere.failure
            self._tell(elsewhere.failure)
        except Exception as error:
            is_networks = isinstance(error, MeasuresError) and isinstance(error.__cause__, Exception)
            cause: Any = error.__cause__ if is_networks else error
            if isinstance(cause, AppError) or is_broken_connection(cause):
                raise cause from cause.__cause__
            trainer = self.trainer
            is_alone = trainer.world_size == 1
            where = "" if is_alone else f" on rank {trainer.global_rank}, step {self.notes.step}"
            self.failure = Failure(f"{words_of(cause)}{where}", str(error) if is_networks else "")
            self.is_off = is_alone
            self._tell(self.failure)

    def _agree(self, n_numbers: int) -> None:
        """Agrees that the watcher has failed on no rank and that all hand over equally many numbers.

        Raises:
            FailedSomewhere: it has; on every rank.
            ValueError: they do not; on every rank.
        """
        self._is_agreed = True
        if self.trainer.world_size > 1:
            self.conclude(*_over_ranks([self], [n_numbers])[0])

    def conclude(self, first_failed: int, fewest: int, most: int) -> None:
        """Raises on every rank what :meth:`_agree` does.

        Args:
            first_failed: the lowest rank on which the watcher has failed; the number of ranks where on none.
            fewest: numbers that a rank hands over.
            most: the same.
        """
        if first_failed < self.trainer.world_size:
            told: list[Any] = [self.failure]
            torch.distributed.broadcast_object_list(told, src=first_failed)
            raise FailedSomewhere(told[0])
        if fewest != most:
            raise ValueError(f"the ranks have between {fewest} and {most} numbers to exchange")

    def _tell(self, failure: Failure) -> None:
        off = "switched off until the next launch; APP_DEBUG=1 shows more"
        if failure.method:
            self.notes.begins(
                "measures_failed", [failure.method], failure.words, f"watchers that ask it are {off}"
            )
        else:
            self.notes.begins("watcher_failed", [self.name], failure.words, f"it is {off}")

    def _report_left_out(self, trainer: Trainer, failures: Mapping[str, Exception]) -> None:
        failed: dict[str, list[str]] = {}
        for tag, error in failures.items():
            failed.setdefault(words_of(error), []).append(f"{self.name}, {tag}")
        still = [place for places in failed.values() for place in places]
        self.notes.ends("figure_left_out", [place for place in self._left_out if place not in still])
        self._left_out = still
        for words, places in failed.items():
            remedy = "it is tried again the next time; APP_DEBUG=1 shows more"
            self.notes.begins("figure_left_out", places, words, remedy)

    def _state_dict(self) -> dict[str, Any]:
        """The watcher's, also once it is switched off; empty where it cannot be made."""
        return (self.attempt(self._save) or {}) if self._state is None else self._state

    def _load_state_dict(self, state: dict[str, Any]) -> None:
        """What the watcher cannot read is handed on to the next checkpoint as it is."""
        self.attempt(self._load, state)
        self._state = state if self.failure else None


def _agree_on(guards: Sequence[WatcherGuard], watchers: Sequence[Any], n_numbers: Sequence[int]) -> list[Any]:
    """Of watchers that exchange together those that go on, the same on every rank; the others are switched off."""
    asked = [(guard, n) for guard, n in zip(guards, n_numbers, strict=True) if not guard.is_off]
    if asked and asked[0][0].trainer.world_size > 1:
        for (guard, _), found in zip(asked, _over_ranks(*zip(*asked, strict=True)), strict=True):
            guard.attempt(guard.conclude, *found)
    return [watcher for watcher, guard in zip(watchers, guards, strict=True) if not guard.failure]


def _over_ranks(guards: Sequence[WatcherGuard], n_numbers: Sequence[int]) -> list[tuple[int, int, int]]:
    """Of each watcher the lowest rank on which it has failed, and the fewest and the most numbers that a rank has."""
    trainer = guards[0].trainer
    ranks = [trainer.global_rank if guard.failure else trainer.world_size for guard in guards]
    own = [(rank, n, -n) for rank, n in zip(ranks, n_numbers, strict=True)]
    smallest = torch.tensor(own, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(smallest, op=torch.distributed.ReduceOp.MIN)
    return [(first_failed, fewest, -most) for first_failed, fewest, most in smallest.tolist()]


def _guard_logger(logger: Logger, notes: Notes) -> None:
    name = type(logger).__name__

    def guarded(call: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def log(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except AppError:
                raise
            except Exception as error:
                # Ours must not lose a number; one of the framework's may have lost its connection, an OSError too.
                if isinstance(error, OSError) and not type(logger).__module__.startswith("lightning."):
                    raise storage_error(error, logger.save_dir or name) from error
                remedy = "it is left out, the logger stays; APP_DEBUG=1 shows more"
                notes.begins("not_logged", [f"{name}.{call}"], words_of(error), remedy)

        return log

    for call in LOGGER_CALLS:
        function = getattr(logger, call, None)
        if function is not None:
            setattr(logger, call, guarded(call, function))
