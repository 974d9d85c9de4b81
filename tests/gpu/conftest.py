"""The application is started as it is in `tests/app`; what a test measures is said by it, and by a list at the end."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.app.conftest import application
from tests.gpu.runs_there import Figure

__all__ = ["application"]


@pytest.fixture
def figure(record_property: Callable[[str, Any], None]) -> Figure:
    """Says a figure."""

    def say(words: str) -> None:
        record_property("figure", words)
        print(words)

    return say


@pytest.fixture(autouse=True)
def _is_alone(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("timing") and "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("takes times, beside which nothing may run: -m timing -n 0")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """All figures on a page."""
    reports = [each for kind in ("passed", "failed") for each in terminalreporter.stats.get(kind, ())]
    figures = [
        str(value)
        for each in reports
        if each.nodeid.startswith("tests/gpu/") and each.when == "call"
        for name, value in each.user_properties
        if name == "figure"
    ]
    if figures:
        terminalreporter.section("figures of tests/gpu")
        for words in figures:
            terminalreporter.write_line(words)
