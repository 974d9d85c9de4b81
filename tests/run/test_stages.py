"""Parts of a computation that outlive a kill."""

import json
from pathlib import Path

from app.run.stages import Stages


def test_results_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "stages.json"
    stages = Stages(path, {"seed": 1, "layers": (0, 1)})
    assert len(stages) == 0
    assert not stages.dropped
    stages.keep("first", [1.5, 2.5])
    stages.keep("second", {"n": 3})
    again = Stages(path, {"seed": 1, "layers": [0, 1]})
    assert len(again) == 2
    assert again["first"] == [1.5, 2.5]
    assert "second" in again
    assert "third" not in again


def test_results_of_other_settings_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "stages.json"
    Stages(path, {"seed": 1}).keep("first", 1)
    other = Stages(path, {"seed": 2})
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
        assert len(Stages(path, {})) == 0
