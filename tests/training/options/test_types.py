"""Single values: what a type takes."""

from typing import Any

import pytest
import yaml
from jsonargparse import set_loader

from app.run.configuration import strict_load
from app.training.options.types import TypeProblem, parsed


@pytest.fixture(autouse=True)
def _strict() -> None:
    set_loader("yaml", strict_load, exceptions=(yaml.YAMLError,))


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (int, "3", 3),
        (int, "0x10", 16),
        (float, "1e-3", 1e-3),
        (float, "3", 3.0),
        (int | None, "null", None),
        (list[int], "[1, 2]", [1, 2]),
        (tuple[float, float], "[0.9, 1]", (0.9, 1.0)),
        (str, "a: b", "a: b"),
    ],
)
def test_taken(annotation: Any, text: str, value: Any) -> None:
    assert parsed(annotation, None, text) == value


@pytest.mark.parametrize("text", ["1:30", "-1:30", "017", "0o17", "1_0:20"])
@pytest.mark.parametrize("annotation", [int, float, int | None, float | None])
def test_a_number_of_yaml_1_1_is_none(annotation: Any, text: str) -> None:
    """The parser's own loader would make 90 of `1:30`, and 17 or 15 of `017`."""
    for value, typed in ((strict_load(text), None), (None, text)):
        with pytest.raises(TypeProblem, match=r"^an? (integer|number)"):
            parsed(annotation, value, typed)
    assert parsed(str, strict_load(text)) == text


@pytest.mark.parametrize("annotation", [list[int], tuple[float, float], list[int] | None])
def test_nor_in_a_list(annotation: Any) -> None:
    for value, typed in ((["1:30", 2], None), (None, "[1:30, 2]")):
        with pytest.raises(TypeProblem, match="a list of"):
            parsed(annotation, value, typed)


def test_a_number_in_quotes_is_one() -> None:
    assert parsed(int, "3") == 3
