"""A study: what its file says, and the rows and runs that come out of it.

A row is a configuration; a run is a row with a seed. The file is YAML and holds values for ``app fit``, nothing else::

    base: [gpt_char, hardware/cpu]         # configurations of every row, left to right
    set: {trainer.max_steps: 300}          # values of every row
    rows:                                  # label: configurations and values of its own
      gpt: {}
      tilelli: {config: tilelli_banks4, model.n_banks: 2}
      ladder: {zip: {model.d_model: [64, 96], trainer.max_steps: [100, 225]}}   # of this row alone
    product: {model.dropout: [0.0, 0.1]}   # every row with every value
    zip: {model.d_model: [64, 128], model.n_heads: [2, 4]}   # every row with the first values, the second, …
    seeds: [1, 2, 3]
    decides: val/loss                      # figure of summary.json; less is better
    margin: 0.01
    against: gpt                           # label, or row, that the others are compared with
    ladder: gpt                            # label of the rows that a compute multiplier is read from
    tune: {seed: 0, fraction: 0.05, grid: {model.learning_rate: [1.0e-3, 3.0e-3]}}
    threads: 1
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.run.configuration import (
    ConfigFile,
    find_config,
    nearest,
    read_config,
    shipped_directory,
    shipped_studies,
)
from app.run.errors import ConfigurationError
from app.run.paths import MAX_NAME_BYTES

KEYS = (
    "base", "set", "rows", "product", "zip", "seeds", "tune", "decides", "margin", "against", "ladder", "threads",
    "pilot_sd",
)  # fmt: skip
#: options that the study itself decides
RESERVED = ("seed", "run_dir", "resume", "init_from", "config")


@dataclass(frozen=True)
class Row:
    """A configuration of a study.

    Attributes:
        name: unique within the study, fit for a folder.
        label: of the file; several rows have it where values vary.
        configs: configuration names or files, left to right.
        values: option to value.
        variant: what of them ``product`` and ``zip`` of the whole study have given it; rows of one are compared.
    """

    name: str
    label: str
    configs: tuple[str, ...]
    values: Mapping[str, Any]
    variant: str = ""

    def words(self, seed: int, more: Mapping[str, Any] | None = None) -> list[str]:
        """The command line of ``app fit`` without the folder.

        Args:
            seed: of the run.
            more: further values, such as tuned ones.
        """
        found = [word for config in self.configs for word in ("--config", config)]
        values = {**self.values, **(more or {}), "seed": seed}
        return found + [word for key, value in values.items() for word in (f"--{key}", as_text(value))]

    def digest(self, seed: int, more: Mapping[str, Any] | None = None) -> str:
        """SHA-256 of all that decides a run of this row: command line and the text of its configuration files."""
        texts = [find_config(config).read_text(encoding="utf-8") for config in self.configs]
        return hashlib.sha256(
            json.dumps([self.words(seed, more)[2 * len(texts) :], texts]).encode()
        ).hexdigest()


@dataclass(frozen=True)
class Tuning:
    """How each row is tuned before it is run.

    Attributes:
        seed: of the tuning runs, none of the study's.
        fraction: of the training text that they are judged on, ``tuning_fraction`` of the data.
        grid: option to values; every combination is tried.
    """

    seed: int
    fraction: float
    grid: Mapping[str, Sequence[Any]]

    @property
    def points(self) -> list[dict[str, Any]]:
        """Every combination."""
        return [
            dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())
        ]


@dataclass(frozen=True)
class Study:
    """What a file says.

    Attributes:
        name: of the file.
        headline: first line of its comment.
        about: the paragraphs of its comment, without what it costs and the command.
        rows: in order.
        seeds: of every row, in order.
        decides: key of ``summary.json``.
        margin: a difference below it is of no interest.
        against: name of the row that others are compared with, or a label: then each row is compared with the one of
            that label and of its own variant.
        ladder: label of the rows that make a ladder; None without one.
        tuning: None without.
        threads: of each run, so that its bits do not depend on what runs beside it.
        pilot_sd: standard deviation of a seed's figure that is known beforehand; None where it is not.
    """

    name: str
    headline: str
    rows: Sequence[Row]
    seeds: Sequence[int]
    decides: str = "val/loss"
    margin: float = 0.01
    against: str = ""
    ladder: str | None = None
    tuning: Tuning | None = None
    threads: int = 1
    pilot_sd: float | None = None
    about: str = ""

    def base_of(self, row: Row) -> Row | None:
        """The row that this one is compared with; None of such a row itself, of a rung, or where there is none."""
        if self.against in (row.name, row.label) or row.label == self.ladder:
            return None
        of_label = [base for base in self.rows if base.label == self.against]
        if len(of_label) > 1:
            return next((base for base in of_label if base.variant == row.variant), None)
        return next((base for base in self.rows if self.against in (base.name, base.label)), None)

    def row(self, name: str) -> Row:
        """The row of a name.

        Raises:
            ConfigurationError: there is none.
        """
        found = {row.name: row for row in self.rows}
        if name not in found:
            meant = nearest(name, found)
            hint = f"did you mean {meant!r}?" if meant else f"rows: {', '.join(found)}"
            raise ConfigurationError(f"app study {self.name}: there is no row {name!r}; {hint}")
        return found[name]


def find_study(name: str) -> Path:
    """Finds a study by path or by shipped name.

    Raises:
        ConfigurationError: there is neither.
    """
    path, bare = Path(name), name.removesuffix(".yaml")
    if path.is_file():
        return path
    names = shipped_studies()
    if bare in names:
        return shipped_directory() / "study" / f"{bare}.yaml"
    meant = nearest(bare, names)
    hint = f"did you mean {meant!r}?" if meant else f"shipped: {', '.join(names) or 'none'}"
    raise ConfigurationError(f"app study {name}: neither a file nor a shipped study; {hint}")


def read_study(path: Path) -> Study:
    """Reads and checks a study's file; what its rows set is checked by ``app fit``.

    Raises:
        ConfigurationError: all that is wrong, with file and line.
    """
    return _Reader(read_config(path)).study()


@dataclass
class _Reader:
    """Gathers everything that is wrong with a file."""

    file: ConfigFile
    problems: list[str] = field(default_factory=list)

    def study(self) -> Study:
        data = self.file.data
        for key in data:
            if key not in KEYS:
                meant = nearest(key, KEYS)
                self._say(
                    key,
                    "there is no such key; "
                    + (f"did you mean {meant!r}?" if meant else f"known: {', '.join(KEYS)}"),
                )
        seeds = self._list("seeds", data.get("seeds", [1, 2, 3]), int)
        if len(set(seeds)) < len(seeds) or any(seed < 0 for seed in seeds):
            self._say("seeds", f"{seeds}: must be different numbers, each at least 0")
        rows = list(self._rows())
        several = len({row.label for row in rows}) > 1
        against = data.get("against", (rows[0].label if several else rows[0].name) if rows else "")
        if rows and against not in {name for row in rows for name in (row.name, row.label)}:
            known = dict.fromkeys([*(row.label for row in rows), *(row.name for row in rows)])
            self._say("against", f"there is no row {against!r}; rows: {', '.join(known)}")
        ladder = data.get("ladder")
        if ladder is not None and ladder not in [row.label for row in rows]:
            self._say("ladder", f"no row has the label {ladder!r}")
        tuning = self._tuning(seeds)
        headline, about = _comment(self.file.path)
        study = Study(
            name=self.file.path.stem,
            headline=headline,
            rows=rows,
            seeds=seeds,
            decides=str(data.get("decides", "val/loss")),
            margin=self._number("margin", 0.01),
            against=against,
            ladder=ladder,
            tuning=tuning,
            threads=int(self._number("threads", 1)),
            pilot_sd=self._number("pilot_sd", 0.01) if "pilot_sd" in data else None,
            about=about,
        )
        if self.problems:
            raise ConfigurationError(self.problems)
        return study

    def _rows(self) -> Iterator[Row]:
        data = self.file.data
        base = self._configs("base", data.get("base", []))
        common = self._values("set", data.get("set", {}))
        own = data.get("rows") or {Path(base[-1]).stem if base else "row": {}}
        if not isinstance(own, dict):
            self._say("rows", "must be `label: {option: value}` lines")
            return
        shared, seen = self._axes("", data), dict[str, Row]()
        for label, given in own.items():
            if not isinstance(given, dict):
                self._say(f"rows.{label}", "must be `option: value` lines, or {}")
            given = dict(given) if isinstance(given, dict) else {}
            configs = (*base, *self._configs(f"rows.{label}.config", given.pop("config", [])))
            if not configs:
                self._say(f"rows.{label}", "has no configuration; give the study a base, or the row a config")
            own_axes = self._axes(f"rows.{label}.", given)
            values = {**common, **self._values(f"rows.{label}", given)}
            for own_choice, choice in itertools.product(_every(own_axes), _every(shared)):
                varied = {**own_choice, **choice}
                name, variant = _row_name(str(label), varied), json.dumps(choice, default=str)
                row = Row(name, str(label), configs, {**values, **varied}, variant)
                same = json.dumps([row.configs, sorted(row.values.items())], default=str)
                if row.name in {other.name for other in seen.values()} or same in seen:
                    other = seen.get(same, row)
                    self._say(
                        "rows",
                        f"{row.name!r} and {other.name!r} collide: they have the same name or values; remove one",
                    )
                if len(row.name.encode()) > MAX_NAME_BYTES - 40:
                    self._say(
                        "rows", f"{row.name[:40]!r}… is too long for the name of a folder; vary fewer options"
                    )
                seen[same] = row
                yield row

    def _axes(self, where: str, given: dict[str, Any]) -> list[list[dict[str, Any]]]:
        """What ``product`` and ``zip`` vary, each axis as its choices; a row's own are taken out of it."""
        take = given.pop if where else given.get
        product = self._values(f"{where}product", take("product", {}))
        zipped = self._values(f"{where}zip", take("zip", {}))
        axes = [[{k: value} for value in self._list(f"{where}product.{k}", v)] for k, v in product.items()]
        together = {k: self._list(f"{where}zip.{k}", v) for k, v in zipped.items()}
        if len({len(values) for values in together.values()}) > 1:
            said = ", ".join(f"{key} {len(values)}" for key, values in together.items())
            self._say(f"{where}zip", f"its lists must be equally long, and these are not: {said}")
        elif together:
            axes.append(
                [dict(zip(together, values, strict=True)) for values in zip(*together.values(), strict=True)]
            )
        return axes

    def _tuning(self, seeds: Sequence[int]) -> Tuning | None:
        given = self.file.data.get("tune")
        if given is None:
            return None
        if not isinstance(given, dict) or not isinstance(given.get("grid"), dict) or not given["grid"]:
            self._say("tune", "must be {seed: …, fraction: …, grid: {option: [values]}}")
            return None
        for key in {*given} - {"seed", "fraction", "grid"}:
            self._say(f"tune.{key}", "there is no such key; known: seed, fraction, grid")
        seed, fraction = given.get("seed", 0), given.get("fraction", 0.05)
        if seed in seeds:
            self._say("tune.seed", f"{seed} is one of the seeds; tune on another one")
        if not isinstance(fraction, float) or not 0 < fraction < 1:
            self._say("tune.fraction", f"{fraction!r} is out of range; it must lie in (0, 1)")
        grid = {
            k: self._list(f"tune.grid.{k}", v) for k, v in self._values("tune.grid", given["grid"]).items()
        }
        return Tuning(seed, fraction, grid)

    def _configs(self, key: str, given: Any) -> tuple[str, ...]:
        names = [given] if isinstance(given, str) else given
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            self._say(key, "must be a configuration, or a list of them")
            return ()
        found = []
        for name in names:
            beside = self.file.path.parent / name
            try:
                # A name stays one, so that a study says the same wherever it is run.
                find_config(beside if beside.is_file() else name)
                found.append(str(beside) if beside.is_file() else name)
            except ConfigurationError as error:
                self._say(key, str(error).removeprefix("--config "))
        return tuple(found)

    def _values(self, key: str, given: Any) -> dict[str, Any]:
        if not isinstance(given, dict):
            self._say(key, "must be `option: value` lines")
            return {}
        for name in given:
            if name in RESERVED:
                self._say(f"{key}.{name}", "the study decides it; leave it out")
        return {name: value for name, value in given.items() if name not in RESERVED}

    def _list(self, key: str, given: Any, kind: type | None = None) -> list[Any]:
        if (
            not isinstance(given, list)
            or not given
            or (kind and not all(type(value) is kind for value in given))
        ):
            self._say(key, f"{given!r}: must be a list of {'whole numbers' if kind is int else 'values'}")
            return []
        return given

    def _number(self, key: str, usual: float) -> float:
        value = self.file.data.get(key, usual)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            self._say(key, f"{value!r} is out of range; it must be a positive number")
            return usual
        return value

    def _say(self, key: str, text: str) -> None:
        self.problems.append(f"{self.file.where(key)}: {key}: {text}")


def _every(axes: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Every combination of the choices of all axes."""
    chosen = itertools.product(*axes)
    return [{k: v for choice in choices for k, v in choice.items()} for choices in chosen]


def as_text(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _row_name(label: str, varied: Mapping[str, Any]) -> str:
    # What is a mapping says more than a name has room for; another option tells its rows apart.
    named = {key: value for key, value in varied.items() if not isinstance(value, dict)}
    parts = [label, *(f"{key.rpartition('.')[2]}_{as_text(value)}" for key, value in named.items())]
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", "-".join(parts)).strip("-.") or "row"


def _comment(path: Path) -> tuple[str, str]:
    """The comment that opens a file: its first line, and its paragraphs but for the lines of cost and command."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    comment = [
        line[1:].removeprefix(" ") for line in itertools.takewhile(lambda line: line[:1] == "#", lines)
    ]
    about = [line for line in comment[1:] if not line.startswith(("Cost: ", "app study "))]
    return (comment[0].strip() if comment else path.stem), "\n".join(about).strip()
