"""Files of others, read within bounds."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from app.run import bounded
from app.run.bounded import Budget, BudgetError
from app.run.directory import RunDirectory
from app.run.errors import DataError
from app.run.manifest import first_weights
from app.run.partial_results import PartialResults
from app.run.status import read_status
from datamodules import tokenizers
from tests.support.memory import measured


def test_a_budget_ends_where_it_says() -> None:
    budget = Budget.of_file(100)
    assert budget.left == 200 + bounded.FREE_BYTES < 64_000_000
    budget.charge(budget.left)
    with pytest.raises(BudgetError, match="more memory than twice its size"):
        budget.charge(1)


def not_regular(folder: Path) -> list[Path]:
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "device").symlink_to("/dev/zero")
    return [folder / "folder", folder / "pipe", folder / "device"]


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    for path in not_regular(tmp_path):
        for reader in (bounded.open_regular, bounded.read_bytes, bounded.read_json):
            with pytest.raises(OSError, match="it is not a regular file"):
                reader(path)
        with pytest.raises(DataError, match="it is not a regular file"):
            tokenizers.load(path)
        assert read_status(path) is None


def deep(n: int) -> str:
    return "[" * n + "1" + "]" * n


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (deep(65), "nested more than 64 deep"),
        ('{"a":' * 100 + "1" + "}" * 100, "nested more than 64 deep"),
        (deep(100_000), "more memory|nested more than 64 deep"),
        ("[" + "{}," * 300_000 + "{}]", "more memory than twice its size"),
        ("[" + "[]," * 1_000_000 + "[]]", "more memory than twice its size"),
        ("1" * 5000, "digit"),
        ("{", "Expecting"),
        ("\udcff", "decode"),
        (" " * (bounded.MAX_RECORD_BYTES + 1), "at most 16,777,216 are read"),
    ],
)
def test_json_that_is_too_much(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    outcome = measured(lambda: bounded.read_json(path))
    assert outcome.error is not None
    with pytest.raises(ValueError, match=said):
        bounded.read_json(path)
    assert outcome.n_bytes <= 2 * len(content) + 64_000_000


def test_json_that_is_sound(tmp_path: Path) -> None:
    for value in (
        {"a": [1, None, "ü", float("inf")]},
        json.loads(deep(64)),
        [[n, str(n)] for n in range(1000)],
    ):
        (tmp_path / "a.json").write_text(json.dumps(value))
        assert bounded.read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize("content", [deep(5_000), '{"launches": ' + deep(90) + "}", "[" * 100_000])
def test_records_of_a_run_that_nobody_can_read_count_as_damaged(content: str, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for path in (run.status, run.manifest):
        path.write_text(content)
    assert read_status(run.status) is None
    assert first_weights(run) is None
    (tmp_path / "stages.json").write_text(content)
    assert len(PartialResults(tmp_path / "stages.json", {"seed": 1})) == 0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "char", "alphabet": "a" * (bounded.MAX_TABLE_BYTES)}, "at most 67,108,864 are read"),
        (
            {"kind": "bpe", "tokens": ["a"], "merges": [[0, 0]] * 100_000},
            "more than the tokens that they make",
        ),
        ({"kind": "word", "words": json.loads(deep(64))}, "nested more than 64 deep"),
    ],
)
def test_a_tokenizer_made_to_fill_memory(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(values))
    outcome = measured(lambda: tokenizers.load(path))
    assert outcome.error is not None
    assert outcome.error[0] == "DataError"
    assert said in outcome.error[1]
    assert outcome.n_bytes <= 2 * path.stat().st_size + 64_000_000
