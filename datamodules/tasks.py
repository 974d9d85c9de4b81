"""What a synthetic task is, and at which sizes it is drawn.

A task is a function ``(generator, *, sizes…) → Drawn`` in a file of its own name, in :mod:`datamodules.synthetic` or of
a user's own. Its sizes are its typed keyword parameters; ``vocab_size`` is one of them. It draws one window, from
nothing but the generator and the sizes. A parameter ``seed`` gets that of the data: what is fixed in all windows, such
as the facts of ``memorization``, is a function of it.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from app import options
from app.run.configuration import nearest
from datamodules.loaders import IGNORED

#: sizes of one task
Sizes = dict[str, Any]
Function = TypeVar("Function", bound=Callable[..., Any])


class Drawn(NamedTuple):
    """One window of a task.

    Attributes:
        inputs: ``(T,)`` symbols.
        targets: ``(T,)`` the symbol that is asked for at each position; −100 where nothing is scored.
        slices: what the accuracy is told apart by: name to a whole number of the window, or ``(T,)`` of each position;
            negative where a position belongs to none.
        truth: ``(T, V)`` the true distribution of the target, where it is not determined; None where it is.
    """

    inputs: np.ndarray
    targets: np.ndarray
    slices: Mapping[str, int | np.ndarray] = {}
    truth: np.ndarray | None = None


Task = Callable[..., Drawn]


def at_sizes(
    evaluation: Mapping[str, Sequence[Any]] | None = None, **training: Sequence[Any]
) -> Callable[[Function], Function]:
    """Says that a task is drawn at several sizes in turn.

    Args:
        evaluation: those at which it is evaluated, where they are others.
        training: name to the values, equally many of each.
    """

    def note(task: Function) -> Function:
        task.training_sizes = dict(training)  # type: ignore[attr-defined]
        task.evaluation_sizes = dict(training if evaluation is None else evaluation)  # type: ignore[attr-defined]
        return task

    return note


@functools.cache
def tasks() -> Mapping[str, Task]:
    """The tasks of :mod:`datamodules.synthetic`: every file there holds the one of its name."""
    from datamodules import synthetic

    names = sorted(module.name for module in pkgutil.iter_modules(synthetic.__path__))
    modules = {name: importlib.import_module(f"{synthetic.__name__}.{name}") for name in names}
    return {name: getattr(module, name) for name, module in modules.items()}


def sizes_of(task: Task) -> Sizes:
    """The sizes of a task with their defaults."""
    return {
        name: value for name, value in options.defaults(task).items() if name not in ("generator", "seed")
    }


def rungs(task: Task, sizes: Mapping[str, Any], stage: str = "training") -> list[Sizes]:
    """The sizes at which a task is drawn in turn, all of them each time.

    Args:
        task: the function.
        sizes: in place of its own; a list stands for one value after the other.
        stage: ``training`` or ``evaluation``.

    Raises:
        ValueError: a size that the task does not have or that is out of its range, or lists of different lengths.
    """
    known = sizes_of(task)
    if problems := list(_unknown(sizes, known)):
        raise ValueError("; ".join(problems))
    given = known | getattr(task, f"{stage}_sizes", {}) | dict(sizes)
    lists = {name: list(value) for name, value in given.items() if isinstance(value, list | tuple)}
    counts = {len(values) for values in lists.values()}
    if len(counts) > 1 or 0 in counts:
        said = ", ".join(f"{name} {len(values)}" for name, values in lists.items())
        raise ValueError(f"its lists must be equally long, and these are not: {said}")
    found = [
        given | {name: values[i] for name, values in lists.items()} for i in range(max(counts, default=1))
    ]
    for rung in found:
        if broken := options.problems(task, rung):
            raise ValueError("; ".join(map(str, broken)))
    if len({rung["vocab_size"] for rung in found}) > 1:
        raise ValueError("vocab_size must be one number: it is that of the network")
    return found


def _unknown(sizes: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[str]:
    for name in sizes:
        if name not in known:
            meant = nearest(name, known)
            yield f"there is no size {name!r}; " + (
                f"did you mean {meant!r}?" if meant else f"known: {', '.join(known)}"
            )


def varied(rungs_of: Sequence[Sizes]) -> list[str]:
    """Names of the sizes that are not the same throughout."""
    return [name for name in rungs_of[0] if len({repr(rung[name]) for rung in rungs_of}) > 1]


def unscored(length: int) -> np.ndarray:
    """``(length,)`` targets of which none is scored yet."""
    return np.full(length, IGNORED, dtype=np.int64)
