"""What the options of a class say of themselves.

An option is a parameter of a constructor. Its type and default stand in the signature, its range in the type
(``Annotated[int, Within("[1, inf)")]``, or one of the names below), what it needs in order to matter beside it
(:class:`Needs`), and its meaning in the class's docstring. Parser, help, checks, dry run and records derive from that.

A rule between several options is one method beside the constructor, ``conflicts(given)``; what no :class:`Needs` can
say of an option without effect is one more, ``without_effect(given)``. Both get all arguments as attributes and yield
a name and a text.
"""

import collections.abc
import difflib
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

#: all arguments of a constructor, by attribute
Given = SimpleNamespace


class Problem(NamedTuple):
    """An argument that breaks a rule."""

    name: str
    value: Any
    rule: str

    def __str__(self) -> str:
        return f"{self.name} = {shown(self.value)}: {self.rule}"


@dataclass(frozen=True)
class Within:
    """Metadata of a number's type, or of each number of a sequence: where it must lie.

    Attributes:
        interval: in the notation of mathematics, ``"[0, 1)"``, ``"(0, inf)"`` or ``"[0, 2^63)"``; infinity and NaN
            lie in none.
    """

    interval: str

    @functools.cached_property
    def _bounds(self) -> tuple[float, float]:
        low, high = (bound.strip().partition("^") for bound in self.interval[1:-1].split(","))
        return float(low[0]) ** float(low[2] or 1), float(high[0]) ** float(high[2] or 1)

    def holds(self, value: Any) -> bool:
        """Whether a number, or every number of a sequence, lies there."""
        if isinstance(value, Sequence) and not isinstance(value, str):
            return all(self.holds(entry) for entry in value)
        low, high = self._bounds
        above = low <= value if self.interval[0] == "[" else low < value
        return bool(above and (value <= high if self.interval[-1] == "]" else value < high))

    def demand(self, value: Any) -> str:
        """What a value that breaks this must do; empty where it keeps it."""
        try:
            if self.holds(value):
                return ""
        except TypeError:  # no number
            pass
        is_sequence = isinstance(value, Sequence) and not isinstance(value, str)
        each = ", each number of it" if is_sequence else ""
        if str(self).startswith("in "):
            return f"must lie {self}{each}"
        return f"must be {'finite and ' if value == math.inf else ''}{self}{each}"

    def __str__(self) -> str:
        low, high = self._bounds
        if high < math.inf:
            return f"in {self.interval}"
        if self.interval[0] == "[":
            return f"at least {low:g}"
        return "positive" if low == 0 else f"above {low:g}"


class Needs:
    """Metadata of an option that does nothing unless others have certain values.

    Args:
        others: name to the value, or the values as a tuple, or the :class:`Within` that it needs.
    """

    def __init__(self, **others: Any):
        self.others = others

    def missing(self, given: Mapping[str, Any]) -> str:
        """Why the option has no effect beside these arguments; empty where it has."""
        for name, wanted in self.others.items():
            if name not in given:
                continue
            value = given[name]
            if isinstance(wanted, Within):
                met = wanted.holds(value)
            else:
                met = value in wanted if isinstance(wanted, tuple) else value == wanted
            if not met:
                return f"with {name}: {shown(value)}"
        return ""


@dataclass(frozen=True)
class Said:
    """Metadata of a type whose values are better said than listed.

    Attributes:
        words: what a value must be, behind "is not".
    """

    words: str


PositiveInt = Annotated[int, Within("[1, inf)")]
NonNegativeInt = Annotated[int, Within("[0, inf)")]
PositiveFloat = Annotated[float, Within("(0, inf)")]
NonNegativeFloat = Annotated[float, Within("[0, inf)")]
UnitInterval = Annotated[float, Within("[0, 1]")]
#: of leaving something out: never all of it
Probability = Annotated[float, Within("[0, 1)")]


def problems(owner: Callable[..., Any], arguments: Mapping[str, Any]) -> list[Problem]:
    """Every rule that constructor arguments break.

    Args:
        owner: the class, or a function; its ``conflicts`` are asked too, where it has them.
        arguments: some of its arguments; those that are absent have their defaults, or pass where they have none.
    """
    parameters = options_of(owner)
    given = defaults(owner) | {name: value for name, value in arguments.items() if name in parameters}
    found = [
        Problem(name, value, rule)
        for name, value in given.items()
        if (rule := broken(parameters[name].annotation, value))
    ]
    conflicts = getattr(owner, "conflicts", None)
    if conflicts is None or not given.keys() >= parameters.keys():
        return found
    broken_names = {problem.name for problem in found}
    try:
        everything = _all_of(owner, given)
        for name, rule in conflicts(everything):
            # What is said of a value that is none is of no use.
            if broken_names.isdisjoint((name, *rule.replace(",", " ").split())):
                found.append(Problem(name, vars(everything)[name], rule))
    except (ArithmeticError, TypeError, ValueError, IndexError):
        if not found:
            raise
    return found


def check(
    owner: type, arguments: Mapping[str, Any], refused: Callable[[list[Problem]], Exception] | None = None
) -> None:
    """Refuses arguments that break a rule.

    Args:
        owner: the class.
        arguments: of its constructor.
        refused: the error to raise for these problems.

    Raises:
        ValueError: by default: a line ``name = value: rule`` for each of them.
    """
    if found := problems(owner, arguments):
        raise ValueError("\n".join(map(str, found))) if refused is None else refused(found)


def unused(owner: type, arguments: Mapping[str, Any]) -> dict[str, str]:
    """Name and reason of every argument that has no effect beside the others, which keep all rules."""
    given = defaults(owner) | dict(arguments)
    found: dict[str, str] = {}
    for name, parameter in options_of(owner).items():
        for need in _metadata(parameter.annotation, Needs):
            if reason := need.missing(given):
                found.setdefault(name, reason)
    if hasattr(owner, "without_effect"):
        for name, reason in owner.without_effect(_all_of(owner, given)):
            found.setdefault(name, reason)
    return found


def _all_of(owner: Any, given: Mapping[str, Any]) -> Given:
    """Arguments by attribute; where a class decides options of its base itself, those have the base's defaults."""
    usual: dict[str, Any] = {}
    for base in reversed(owner.__mro__[:-1]):
        usual |= defaults(base)
    return Given(**usual | dict(given))


def defaults(owner: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of a constructor's, or a function's, arguments."""
    return {name: p.default for name, p in options_of(owner).items() if p.default is not p.empty}


def broken(annotation: Any, value: Any) -> str:
    """The rule of a type that a value breaks; empty where it keeps it, or where there is none.

    A rule is a ``Literal`` or an entry of ``Annotated`` with a method ``demand(value)`` that says what is asked for.
    """
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        members = get_args(annotation)
        if value is None and NoneType in members:
            return ""
        reasons = [broken(member, value) for member in members if member is not NoneType]
        return "" if "" in reasons else reasons[0]
    if origin is collections.abc.Callable:
        return "" if callable(value) else "must be a function or a class"
    if origin is Literal:
        choices = get_args(annotation)
        if value in choices:
            return ""
        meant = difflib.get_close_matches(str(value), map(str, choices), n=1, cutoff=0.4)
        hint = f"; did you mean {meant[0]}?" if meant and len(choices) > 2 else ""
        return f"must be one of {', '.join(map(str, choices))}{hint}"
    if origin is not Annotated:
        return ""
    base, *metadata = get_args(annotation)
    if value is None:
        return "" if NoneType in get_args(base) else "must not be null"
    if rule := broken(base, value):
        return rule
    return next(
        (rule for entry in metadata if hasattr(entry, "demand") and (rule := entry.demand(value))), ""
    )


def _metadata(annotation: Any, kind: type) -> Iterator[Any]:
    if get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from _metadata(member, kind)
    elif get_origin(annotation) is Annotated:
        yield from (entry for entry in get_args(annotation)[1:] if isinstance(entry, kind))
        yield from _metadata(get_args(annotation)[0], kind)


def shown(value: Any) -> str:
    """A value as a configuration would have it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, str):
        return value if value.isidentifier() else repr(value)
    if callable(value) or hasattr(value, "class_path"):
        return "a class of your own"
    return "null" if value is None else str(value)


# -- constructors that take the options of others ---------------------------------------------------------


def taking(initialise: Callable[..., None], source: type, without: Sequence[str] = ()) -> Callable[..., None]:
    """A constructor whose last parameter, ``**others``, stands for the options of another class, defaults included.

    By position they come before those that it takes by name alone (behind ``*``).

    Args:
        initialise: the constructor.
        source: whose options it passes on.
        without: options that it decides itself.
    """
    this, *own = inspect.signature(initialise, eval_str=True).parameters.values()
    own = [p for p in own if p.kind is not p.VAR_KEYWORD]
    names = {p.name for p in own} | {*without}
    others = [p for p in options_of(source).values() if p.name not in names]
    by_name = [p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in own if p.kind is p.KEYWORD_ONLY]
    merged = [*(p for p in own if p.kind is not p.KEYWORD_ONLY), *others, *by_name]
    # What has to be given comes before what has not, and what has no name before what has one.
    merged.sort(key=lambda p: (p.kind is not p.POSITIONAL_ONLY, p.default is not p.empty))
    signature = inspect.Signature([this.replace(kind=merged[0].kind), *merged])
    usual = {p.name: p.default for p in others if p.default is not p.empty}

    @functools.wraps(initialise)
    def passing(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        initialise(*bound.args[: 1 + _n_nameless(signature)], **usual | _named(signature, bound))

    passing.__signature__ = signature  # type: ignore[attr-defined]
    _note_source(passing, source, {})
    return passing


def checked(
    initialise: Callable[..., None],
    remember: Callable[[Any, dict[str, Any]], None] | None = None,
    refused: Callable[[list[Problem]], Exception] | None = None,
) -> Callable[..., None]:
    """A constructor that refuses arguments which break a rule before it does anything, see :func:`check`.

    Args:
        initialise: the constructor.
        remember: is called at its end with the object and all of its arguments.
        refused: the error to raise in place of ``ValueError``.
    """
    signature = inspect.signature(initialise, eval_str=True)

    @functools.wraps(initialise)
    def checking(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        arguments = _named(signature, bound)
        owner = next(cls for cls in type(self).__mro__ if vars(cls).get("__init__") is checking)
        check(owner, arguments, refused)
        initialise(self, *args, **kwargs)
        if remember is not None:
            remember(self, arguments)

    checking.__signature__ = signature  # type: ignore[attr-defined]
    return checking


def building(
    initialise: Callable[..., None], part: str, source: type, renamed: Mapping[str, str]
) -> Callable[..., None]:
    """A constructor that takes the options of a part in place of the part, and builds it.

    Args:
        initialise: the constructor; its argument ``part`` is an object of ``source``.
        part: name of that argument.
        source: class of the part.
        renamed: names that options of the part have in this constructor, where it has others of the same name.
    """
    this, *own = inspect.signature(initialise).parameters.values()
    ours = {name: renamed.get(name, name) for name in options_of(source)}
    of_part = [p.replace(name=ours[name]) for name, p in options_of(source).items()]
    merged = [*of_part, *(p for p in own if p.name != part)]
    assert len({p.name for p in merged}) == len(merged), f"{source.__name__} and its module share names"
    merged.sort(key=lambda p: p.default is not p.empty)
    signature = inspect.Signature([this, *merged])

    @functools.wraps(initialise)
    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        given = _named(signature, signature.bind(self, *args, **kwargs))
        built = source(**{name: given.pop(ours[name]) for name in ours if ours[name] in given})
        initialise(self, **{part: built}, **given)

    build.__signature__ = signature  # type: ignore[attr-defined]
    _note_source(build, source, renamed)
    return build


def has_others(initialise: Callable[..., None]) -> bool:
    """Whether a constructor ends with ``**others``."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(initialise).parameters.values())


def options_of(owner: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The options of a class, by name."""
    return _options_of(owner)


def sources_of(owner: type) -> Sequence[tuple[type, Mapping[str, str]]]:
    """Other classes that options of this one come from, and what they are called here where they have other names."""
    found: Sequence[tuple[type, Mapping[str, str]]] = getattr(owner.__init__, "option_sources", ())  # type: ignore[misc]
    return found


def _note_source(initialise: Any, source: type, renamed: Mapping[str, str]) -> None:
    initialise.option_sources = (*getattr(initialise, "option_sources", ()), (source, renamed))


@functools.cache
def _options_of(owner: Any) -> Mapping[str, inspect.Parameter]:
    parameters = inspect.signature(owner, eval_str=True).parameters.values()
    unnamed = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
    )
    return {p.name: p for p in parameters if p.kind not in unnamed}


def _n_nameless(signature: inspect.Signature) -> int:
    nameless = sum(p.kind is p.POSITIONAL_ONLY for p in signature.parameters.values())
    return max(0, nameless - 1)  # but for the object itself


def _named(signature: inspect.Signature, bound: inspect.BoundArguments) -> dict[str, Any]:
    """What is given for options, by name."""
    named: dict[str, Any] = {}
    for parameter in list(signature.parameters.values())[1:]:
        if parameter.kind is parameter.VAR_KEYWORD:
            named |= bound.arguments.get(parameter.name, {})
        elif parameter.kind is not parameter.POSITIONAL_ONLY and parameter.name in bound.arguments:
            named[parameter.name] = bound.arguments[parameter.name]
    return named
