"""What a person is told about a model that could not be built."""

from collections.abc import Callable

from torch import nn

from app.models.blueprint import lay_out
from app.run.bounded import BudgetError
from app.run.errors import ConfigurationError


def explained(error: Exception, path: str, build: Callable[[], nn.Module]) -> Exception:
    """The error in place of one that building a model has raised; where nothing is known of it, its cause.

    Args:
        error: what was raised.
        path: class path of the model.
        build: what has raised it.
    """
    cause: BaseException = error
    while cause.__cause__ is not None:  # of what the parser has wrapped
        cause = cause.__cause__
    if isinstance(cause, BudgetError):
        return ConfigurationError(
            f"model ({path}): is far larger than the checkpoint's weights; restore its settings"
        )
    if _is_allocation(cause):
        return ConfigurationError(
            f"model ({path}): {_laid_out(build)} for which this machine has no memory; make the network smaller"
        )
    if isinstance(cause, ValueError | TypeError | ConfigurationError):
        return ConfigurationError(f"model ({path}): {line}" for line in str(cause).splitlines())
    return cause if isinstance(cause, Exception) else error


def _is_allocation(error: BaseException) -> bool:
    """Whether memory could not be had, or a tensor would have more entries than can be counted."""
    signs = ("allocate", "out of memory", "Storage size calculation overflowed", "invalid shape dimension")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


def _laid_out(build: Callable[[], nn.Module]) -> str:
    """How large a module would be, found without memory for its weights."""
    try:
        parameters = list(lay_out(build, lambda n_bytes: None).parameters())
    except RuntimeError:
        return "weights of more bytes than can be counted,"
    size = sum(p.numel() * p.element_size() for p in parameters)
    return f"{sum(p.numel() for p in parameters):,} parameters, {size / 2**30:,.1f} GiB,"
