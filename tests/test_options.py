"""Options: what a signature, its ranges and its docstring say, and what derives from them."""

import inspect
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import pytest

from app import options
from app.options import Given, Needs, NonNegativeInt, PositiveFloat, PositiveInt, Probability, Within
from app.training import EquilibriumModule, GPTModule, LanguageModelModule, LocalGPTModule, TilelliModule
from app.training.options.help import meanings
from app.training.options.types import TypeProblem, class_in, in_words, parsed
from datamodules import CharDataModule, HFTextDataModule, TextDataModule, WikiTextDataModule
from tests.support.application import REPOSITORY, environment

RANGES: list[tuple[Any, list[Any], list[Any]]] = [
    (PositiveInt, [1, 10**30], [0, -1, math.nan, math.inf, "1", None]),
    (Literal["adamw"] | Callable[[int], int], ["adamw", abs], ["lion", 3]),
    (PositiveFloat, [1e-300], [0.0, -1.0, math.nan, math.inf]),
    (Probability, [0, 0.0, 0.999], [1, 1.0, -0.1, math.nan]),
    (PositiveInt | None, [None, 1], [0]),
    (Annotated[int, Within("[0, 2^63)")], [0, 2**63 - 1], [-1, 2**63]),
    (Annotated[tuple[float, float], Within("[0, inf)")], [(0, 1), [2.0, 3.0]], [(0, -1), (math.nan, 1)]),
    (Literal["a", "b"], ["a", "b"], ["c", None, 1]),
    (Annotated[Literal[3, 5], Needs(x=1)], [3, 5], [4]),
    (int, [-1], []),
]


@pytest.mark.parametrize(("annotation", "good", "bad"), RANGES, ids=lambda value: str(value)[:40])
def test_a_range_takes_what_lies_in_it_alone(annotation: Any, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if options.broken(annotation, value)] == []
    assert [value for value in bad if not options.broken(annotation, value)] == []


def test_rules_are_in_words() -> None:
    assert options.broken(PositiveInt, 0) == "must be at least 1"
    assert options.broken(PositiveFloat, math.inf) == "must be finite and positive"
    assert options.broken(Probability, 1) == "must lie in [0, 1)"
    assert (
        options.broken(Literal["cosine", "wsd", "linear"], "cosin")
        == "must be one of cosine, wsd, linear; did you mean cosine?"
    )
    assert in_words(PositiveInt | None) == "an integer (at least 1) or null"
    assert in_words(tuple[float, float, float]) == "a list of 3 numbers"
    assert in_words(list[int] | None) == "a list of integers or null"


class Part:
    """A part.

    Args:
        size: of the part.
        kind: of which kind.
        steps: its steps.
    """

    @options.checked
    def __init__(self, size: PositiveInt, kind: Literal["a", "b"] = "a", steps: NonNegativeInt = 3):
        self.given = (size, kind, steps)

    @staticmethod
    def conflicts(given: Given) -> Iterator[tuple[str, str]]:
        if given.steps > given.size:
            yield "steps", f"must be at most size = {given.size}"


class Whole:
    """A whole.

    Args:
        steps: of the whole.
        extra: only with kind b.
        others: options of :class:`Part`.
    """

    def __init__(self, part: Part, steps: int = 7, *, extra: Annotated[bool, Needs(kind="b")] = False):
        self.part, self.steps, self.extra = part, steps, extra


def test_a_constructor_builds_its_part_from_the_options_of_the_part() -> None:
    class Flat(Whole):
        __init__ = options.checked(options.building(Whole.__init__, "part", Part, {"steps": "part_steps"}))

    assert list(options.options_of(Flat)) == ["size", "kind", "part_steps", "steps", "extra"]
    made = Flat(5, "b", part_steps=4, extra=True)  # type: ignore[arg-type, call-arg]
    assert (made.part.given, made.steps, made.extra) == ((5, "b", 4), 7, True)
    assert options.defaults(Flat) == {"kind": "a", "part_steps": 3, "steps": 7, "extra": False}
    assert meanings(Flat) | {"others": ""} == {
        "size": "of the part.", "kind": "of which kind.", "part_steps": "its steps.", "steps": "of the whole.",
        "extra": "only with kind b.", "others": "",
    }  # fmt: skip
    assert options.unused(Flat, {"size": 5}) == {"extra": "with kind: a"}
    assert options.unused(Flat, {"size": 5, "kind": "b"}) == {}


def test_a_constructor_takes_the_options_of_another_class() -> None:
    class More(Part):
        def __init__(self, first: int = 0, *, last: bool = True, **part: Any):
            super().__init__(**part)
            self.seen = (first, last, part)

        __init__ = options.checked(options.taking(__init__, Part, without=("steps",)))

    assert list(inspect.signature(More).parameters) == ["size", "first", "kind", "last"]
    assert More(4, 9, last=False).seen == (9, False, {"size": 4, "kind": "a"})
    with pytest.raises(TypeError, match="steps"):
        More(4, steps=1)
    with pytest.raises(ValueError, match="steps = 3: must be at most size = 2"):
        More(2)


def test_rules_between_options_wait_for_options_that_keep_theirs() -> None:
    assert [str(p) for p in options.problems(Part, {"size": 2})] == ["steps = 3: must be at most size = 2"]
    assert [str(p) for p in options.problems(Part, {"size": 0})] == ["size = 0: must be at least 1"]
    assert options.problems(Part, {"steps": 9}) == []  # of what size, nobody knows
    with pytest.raises(ValueError, match="steps = 3: must be at most size = 1"):
        Part(1)


@pytest.mark.parametrize(
    "owner",
    [GPTModule, TilelliModule, LocalGPTModule, EquilibriumModule, LanguageModelModule, CharDataModule, TextDataModule, WikiTextDataModule, HFTextDataModule],
)  # fmt: skip
def test_every_option_is_explained_and_has_a_type(owner: type) -> None:
    said = meanings(owner)
    for name, parameter in options.options_of(owner).items():
        assert said.get(name), name
        assert parameter.annotation is not parameter.empty
        if parameter.default is not parameter.empty:
            assert options.broken(parameter.annotation, parameter.default) == "", name
            if class_in(parameter.annotation) is None:
                value = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
                assert parsed(parameter.annotation, value) == parameter.default


def test_a_value_is_parsed_by_its_type_alone() -> None:
    assert parsed(PositiveInt, "", text="12") == 12
    assert parsed(str | None, "", text="12") == "12"
    assert parsed(tuple[float, float], [1, 2]) == (1.0, 2.0)
    for annotation, text in ((int, "1.5"), (bool, "ja"), (float, "x"), (Literal["a", "b"], "c")):
        with pytest.raises(TypeProblem):
            parsed(annotation, "", text=text)


@pytest.mark.stress
def test_ranges_hold_without_pydantic() -> None:
    """Which the parser would ask, if it is there, for ranges in the types; it is no dependency."""
    source = """
import sys
sys.modules["pydantic"] = None
from app.run import arguments
from app.run.configuration import find_config, read_config
from app.run.errors import ConfigurationError
from app.training.command_line import RunCLI
files = [read_config(find_config("gpt_char"))]
for words in (["--model.n_layers", "0"], ["--model.dropout", "1.0"], ["--data.block_size=1"], ["--model.beta1", "2"]):
    try:
        RunCLI(arguments.read(words), files)
    except ConfigurationError as error:
        print(error)
RunCLI(arguments.read(["--model.n_layers", "1"]), files)
"""
    done = subprocess.run(
        [sys.executable, "-c", source],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "model.init_args.n_layers (command line): 0 is out of range; it must be at least 1",
        "model.init_args.dropout (command line): 1.0 is out of range; it must lie in [0, 1)",
        "data.init_args.block_size (command line): 1 is out of range; it must be at least 2",
        "model.init_args.beta1 (command line): 2.0 is out of range; it must lie in [0, 1)",
    ]
