"""JSON without what is no JSON."""

import ast
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.run.atomic import write_json
from app.run.partial_results import PartialResults
from app.run.strict_json import to_json
from tests.support.application import REPOSITORY

#: what makes keys and hashes of values that are never read back, or holds no number with a fraction but a time
WITHOUT = {
    "app/run/lock.py",
    "app/run/launching.py",
    "app/analysis/comparison.py",
    "app/commands/study_verify.py",
    "app/study/plan.py",
    "datamodules/synthetic_data.py",
    "datamodules/token_files.py",
}


def refuse(constant: str) -> Any:
    raise AssertionError(f"{constant} is no JSON")


def strictly(text: str) -> Any:
    return json.loads(text, parse_constant=refuse)


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    values = {
        "loss": math.inf,
        "figures": [1.5, -math.inf, (math.nan, None)],
        "array": np.array([1.0, np.nan]),
        "scalar": np.float64("inf"),
        "tensor": torch.tensor([[1.0], [math.inf]]),
        "läuft": True,
    }
    path = tmp_path / "summary.json"
    write_json(path, values)
    assert strictly(path.read_text()) == strictly(to_json(values)) == {
        "loss": None, "figures": [1.5, None, [None, None]], "array": [1.0, None], "scalar": None,
        "tensor": [[1.0], [None]], "läuft": True,
    }  # fmt: skip
    assert "läuft" in path.read_text()


def test_settings_that_are_no_numbers_come_back_from_their_file(tmp_path: Path) -> None:
    PartialResults(tmp_path / "a.json", {"limit": math.inf}).keep("first", [math.nan])
    again = PartialResults(tmp_path / "a.json", {"limit": math.inf})
    assert not again.dropped
    assert again["first"] == [None]


@pytest.mark.parametrize("package", ["app", "callbacks", "datamodules"])
def test_nothing_else_writes_json(package: str) -> None:
    """A new place that writes JSON takes write_json or to_json, or says allow_nan=False itself."""
    lax = set()
    for path in (REPOSITORY / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            is_dump = isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dumps", "json.dump")
            if is_dump and not any(word.arg == "allow_nan" for word in node.keywords):
                lax.add(path.relative_to(REPOSITORY).as_posix())
    assert lax == {name for name in WITHOUT if name.startswith(f"{package}/")}
