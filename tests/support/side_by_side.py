"""Tests that run two at a time, because most of their time goes by in other processes."""

import inspect
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from tests.support.application import Application


class SideBySide:
    """Decorator for tests of one module that need only the application, the reference runs and a folder.

    The first of them begins all that are selected; each then waits for its own end.

    Args:
        at_once: how many run at a time.
    """

    def __init__(self, at_once: int = 2):
        self.at_once = at_once
        self._bodies: dict[str, Callable[..., None]] = {}
        self._begun: dict[str, Future[None]] = {}

    def __call__(self, body: Callable[..., None]) -> Callable[..., None]:
        """Registers a test with any of the arguments ``application``, ``reference`` and ``tmp_path``."""
        name = body.__name__
        self._bodies[name] = body

        def test(
            request: pytest.FixtureRequest, application: Application, reference: Any, tmp_path_factory: Any
        ) -> None:
            if name not in self._begun:
                selected = {item.name for item in request.session.items if item.path == request.path}
                self._begin(selected & set(self._bodies), application, reference, tmp_path_factory)
            self._begun[name].result()

        test.__name__, test.__doc__, test.__module__ = name, body.__doc__, body.__module__
        return test

    def _begin(
        self, names: set[str], application: Application, reference: Any, tmp_path_factory: Any
    ) -> None:
        jobs = {}
        for name, body in self._bodies.items():
            if name in names:
                offered = {
                    "application": application,
                    "reference": reference,
                    "tmp_path": tmp_path_factory.mktemp(name),
                }
                wanted = {key: offered[key] for key in inspect.signature(body).parameters}
                jobs[name] = lambda body=body, wanted=wanted: body(**wanted)
        self._begun |= application.begin(jobs, self.at_once)


def selected(request: pytest.FixtureRequest, parameter: str) -> list[Any]:
    """The values of a parameter in the selected tests of the module that asks, for a fixture that begins them all."""
    calls = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    return list(dict.fromkeys(call.params[parameter] for call in calls if call and parameter in call.params))
