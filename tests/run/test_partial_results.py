"""Parts of a computation that outlive a kill."""

import json
from pathlib import Path

import pytest

from app.run.errors import StorageError
from app.run.partial_results import PartialResults


def test_results_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "stages.json"
    stages = PartialResults(path, {"seed": 1, "layers": (0, 1)})
    assert len(stages) == 0
    assert not stages.dropped
    stages.keep("first", [1.5, 2.5])
    stages.keep("second", {"n": 3})
    again = PartialResults(path, {"seed": 1, "layers": [0, 1]})
    assert len(again) == 2
    assert again["first"] == [1.5, 2.5]
    assert "second" in again
    assert "third" not in again


def test_results_of_other_settings_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "stages.json"
    PartialResults(path, {"seed": 1}).keep("first", 1)
    other = PartialResults(path, {"seed": 2})
    assert other.dropped
    assert len(other) == 0
    # Else a launch with the first settings would find them beside what this one leaves.
    assert not path.exists()
    other.keep("first", 2)
    assert json.loads(path.read_text()) == {"settings": {"seed": 2}, "results": {"first": 2}}


def test_a_damaged_file_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "stages.json"
    for text in ("", "{", "[]", '{"settings": {}}'):
        path.write_text(text)
        assert len(PartialResults(path, {})) == 0


def test_nothing_is_kept_in_a_folder_that_somebody_else_has_taken(tmp_path: Path) -> None:
    def refuse() -> None:
        raise StorageError("taken over")

    path = tmp_path / "stages.json"
    PartialResults(path, {"seed": 1}).keep("basis", 1)
    before = path.read_text()
    with pytest.raises(StorageError, match="taken over"):
        PartialResults(path, {"seed": 1}, refuse).keep("full", 2)
    assert path.read_text() == before
