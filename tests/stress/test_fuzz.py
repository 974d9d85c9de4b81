"""Every reader answers whatever stands in a file: looked for by a fuzzer, and held for what was found so far."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stress import fuzz
from tests.stress.readers import CORPUS, READERS

#: replaces what makes a text of a row by what fails at a long one, to which coverage leads in steps
BROKEN = """
import atheris, datamodules.rows
@atheris.instrument_func
def broken(value, where, column, blank_row=""):
    if len(str(value)) > 5:
        if len(str(value)) > 6:
            if len(str(value)) > 7:
                raise KeyError("too long")
    return str(value)
datamodules.rows.row_text = broken
"""
SECONDS = int(os.environ.get("FUZZ_SECONDS", "60"))


@pytest.mark.parametrize("name", READERS)
def test_what_was_found_stays_answered(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    taken = [reader.takes(seed, tmp_path) for seed in reader.seeds(tmp_path)]
    assert any(taken)
    (tmp_path / "place").mkdir()
    for path in sorted((CORPUS / name).glob("*")):
        reader.takes(path.read_bytes(), tmp_path / "place")


@pytest.mark.stress
@pytest.mark.timeout(SECONDS + 1000)
@pytest.mark.parametrize("name", READERS)
def test_a_fuzzer_finds_nothing(
    name: str, tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    pytest.importorskip("atheris", reason="needs the extra `fuzz`")
    found = fuzz.campaign(name, SECONDS, tmp_path)
    print(f"{name}: {found.executions:,} executions, {found.covered} edges in {SECONDS} s")
    record_property("figure", f"{name} {found.executions:,} executions")
    assert not found.problem, f"{found.problem}\n{found.finding!r}\n{found.output[-3000:]}"
    assert found.executions > 0, found.output[-3000:]


@pytest.mark.stress
@pytest.mark.timeout(1000)
def test_the_fuzzer_finds_what_is_there(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="needs the extra `fuzz`")
    found = fuzz.campaign("jsonl", 60, tmp_path, prelude=BROKEN)
    assert "KeyError" in found.problem, found.output[-3000:]
    assert len(found.finding) > 7
