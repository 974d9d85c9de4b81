"""A pytest plugin: which tests belong to ``make stress``, and the one table at their end.

``--row O3`` runs the tests of a row alone (several are separated by commas). A test says a figure of its own by
pytest's ``record_property("figure", …)``.
"""

import json
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.stress.rows import ROWS

TESTS = Path(__file__).resolve().parents[1]
TABLE = TESTS.parent / "build" / "faults.json"
HOLDS, SHORT, NOT_RUN = "holds", "falls short", "not run"


def rows_of(node: str) -> list[str]:
    """The rows that a test shows.

    Args:
        node: its id.
    """
    place = node.removeprefix("tests/")
    return [name for name, row in ROWS.items() if place.startswith(row.tests)]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--row", default="", help="rows of the table of faults, such as O3,C4, whose tests alone are run"
    )


def pytest_configure(config: pytest.Config) -> None:
    wanted = {name for name in config.getoption("--row").split(",") if name}
    if unknown := wanted - set(ROWS):
        raise pytest.UsageError(f"--row {', '.join(sorted(unknown))}: there are {', '.join(ROWS)}")
    if wanted:  # nothing else need be imported
        places = {place.partition("::")[0] for name in wanted for place in ROWS[name].tests}
        config.args = sorted(str(TESTS / place) for place in places)
    config.pluginmanager.register(Table(wanted), "table of faults")


class Table:
    """Collects what the tests of each row have shown.

    Args:
        wanted: rows to run alone; none for all rows and everything else that is marked ``stress``.
    """

    def __init__(self, wanted: set[str]):
        self._wanted = wanted
        self._outcomes: dict[str, dict[str, str]] = defaultdict(
            dict
        )  # row, test: reason; empty where it passed
        self._skipped: dict[str, dict[str, str]] = defaultdict(dict)
        self._figures: dict[str, dict[str, None]] = defaultdict(dict)
        self._seconds: dict[str, float] = defaultdict(float)
        self._began = time.monotonic()

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        def is_wanted(item: pytest.Item) -> bool:
            rows = rows_of(item.nodeid)
            if self._wanted:
                return bool(self._wanted & set(rows))
            return bool(rows) or item.get_closest_marker("stress") is not None

        dropped = [item for item in items if not is_wanted(item)]
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if is_wanted(item)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for row in rows_of(report.nodeid):
            self._seconds[row] += report.duration
            if report.skipped:
                reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
                self._skipped[row][report.nodeid] = reason.removeprefix("Skipped: ")
            elif report.failed:
                self._outcomes[row][report.nodeid] = _last_words(report)
            elif report.when == "call":
                self._outcomes[row].setdefault(report.nodeid, "")
            if report.when == "call":
                self._figures[row] |= dict.fromkeys(
                    str(value) for name, value in report.user_properties if name == "figure"
                )

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        rows = [self._result(name) for name in ROWS if not self._wanted or name in self._wanted]
        minutes = (time.monotonic() - self._began) / 60
        terminalreporter.section("table of faults")
        for line in _lines(rows):
            terminalreporter.write_line(line)
        for row in rows:
            for reason in row["reasons"]:
                terminalreporter.write_line(f"{row['id']}: {reason}")
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(json.dumps({"minutes": round(minutes, 2), "rows": rows}, indent=1) + "\n")
        terminalreporter.write_line(f"{minutes:.1f} minutes; written to {TABLE.relative_to(TESTS.parent)}")

    def _result(self, name: str) -> dict[str, Any]:
        """A row of the table in plain values."""
        outcomes, skipped = self._outcomes[name], self._skipped[name]
        failed = {node: reason for node, reason in outcomes.items() if reason}
        verdict = SHORT if failed else HOLDS if outcomes else NOT_RUN
        reasons = [f"{node}: {reason}" for node, reason in failed.items()]
        reasons += [f"not run: {node}: {reason}" for node, reason in skipped.items()]
        counted = f"{len(outcomes) - len(failed)} of {len(outcomes)} tests"
        return {
            "id": name,
            "what": ROWS[name].what,
            "figure": "; ".join([*self._figures[name], *([counted] if outcomes else [])]),
            "goal": ROWS[name].goal,
            "verdict": verdict,
            "seconds": round(self._seconds[name], 1),
            "reasons": reasons,
        }


def _last_words(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    words = crash.message if crash is not None else str(report.longrepr)
    return (words.strip().splitlines() or ["failed"])[0][:300]


def _lines(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The table, for a terminal of any width: it wraps by itself."""
    columns = ("id", "what", "figure", "goal", "verdict")
    cells = [dict(zip(columns, columns, strict=True)), *rows]
    widths = {column: max(len(str(row[column])) for row in cells) for column in columns}
    return [
        " | ".join(str(row[column]).ljust(widths[column]) for column in columns).rstrip() for row in cells
    ]
