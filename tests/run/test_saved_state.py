"""What a reader of a checkpoint checks before it makes anything of it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from app.run.checkpoint import FORMAT
from app.run.errors import IntegrityError
from app.run.saved_state import saved_state
from tests.support.made_runs import checkpoint_content

PATH = Path("runs/a/checkpoints/best-000001.ckpt")


def test_older_formats_are_read_and_newer_ones_named() -> None:
    assert saved_state(checkpoint_content(), PATH)["format"] == FORMAT == 2
    first = checkpoint_content()
    for name in ("format", "windows_seen", "configuration", "place"):
        del first["archlab"][name]
    assert saved_state(first, PATH) is first["archlab"]
    for content in (checkpoint_content(format=7), {"archlab": {"format": 7}}):
        with pytest.raises(IntegrityError) as caught:
            saved_state(content, PATH)
        assert str(caught.value) == (
            f"{PATH}: was written by a newer archlab (format 7); this one reads up to {FORMAT}"
        )


@pytest.mark.parametrize("content", [None, [], {}, {"archlab": 1}, {"state_dict": {}}, torch.ones(2)])
def test_what_no_run_has_written_is_said(content: Any) -> None:
    with pytest.raises(IntegrityError, match="is no checkpoint of a run"):
        saved_state(content, PATH)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 0}, {"format": "2"}, {"format": True}, {"format": 1.0}, {"step": -1}, {"step": True}, {"step": 10.0},
        {"step": torch.tensor(3)}, {"windows_seen": None}, {"windows_seen": -4}, {"block_size": 0}, {"block_size": "16"},
        {"seed": -1}, {"validation_pending": 1}, {"last_validation": []}, {"optimizer": 3}, {"configuration": "x"},
        {"place": None}, {"data": {}}, {"data": {"tokenizer": 1}}, {"data": "x"}, {"network": {}},
        {"network": {"class_path": "app.models.gpt.GPT"}}, {"network": {"class_path": 1, "init_args": {}}},
        {"network": {"class_path": "app.models.gpt.GPT", "init_args": {1: 2}}},
        {"network": {"class_path": "app.models.gpt.GPT", "init_args": [1]}},
    ],
)  # fmt: skip
def test_a_field_of_another_kind_is_damage(changes: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match=r"is damaged: (its|archlab)") as caught:
        saved_state(checkpoint_content(**changes), PATH)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["step", "seed", "block_size", "data", "network", "windows_seen", "place"])
def test_a_field_that_is_missing_is_damage(name: str) -> None:
    content = checkpoint_content()
    del content["archlab"][name]
    with pytest.raises(IntegrityError, match=f"archlab.{name} is None"):
        saved_state(content, PATH)


@pytest.mark.parametrize("weights", [None, [], {"w": 1}, {1: torch.ones(1)}, {"w": {"v": torch.ones(1)}}])
def test_weights_are_tensors_by_name(weights: Any) -> None:
    with pytest.raises(IntegrityError, match="its state_dict is no dict of tensors"):
        saved_state(checkpoint_content() | {"state_dict": weights}, PATH)
