"""The framework's callbacks, loggers and profilers: each is allowed or refused by name."""

import inspect
from typing import get_args

import pytest
from lightning.pytorch import callbacks, loggers

from app.training.options import allowed, trainer_rules


def test_a_new_callback_of_the_framework_is_noticed() -> None:
    """After an upgrade: decide on what is new, in one of the two tables."""
    assert {*allowed.CALLBACKS, *allowed.REFUSED_CALLBACKS} == {*callbacks.__all__}
    assert not {*allowed.CALLBACKS} & {*allowed.REFUSED_CALLBACKS}
    assert {*allowed.LOGGERS, *allowed.REFUSED_LOGGERS} == {*loggers.__all__}
    assert not {*allowed.LOGGERS} & {*allowed.REFUSED_LOGGERS}


@pytest.mark.parametrize(("kind", "argument"), allowed.ARGUMENTS)
def test_refused_arguments_are_there(kind: str, argument: str) -> None:
    default = inspect.signature(getattr(callbacks, kind)).parameters[argument].default
    is_right, _ = allowed.ARGUMENTS[kind, argument]
    # The one default of theirs that is wrong here; a run sets it otherwise.
    assert is_right(default) or argument == "use_buffers"


def test_a_profiler_is_chosen_by_name() -> None:
    chosen, _ = get_args(trainer_rules.types()["profiler"])
    assert get_args(chosen) == tuple(allowed.PROFILERS)
