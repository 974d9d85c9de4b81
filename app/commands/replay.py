"""``app replay``: makes past steps of a run again, bit for bit."""

import argparse
import operator
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands.parsing import CommandParser
from app.commands.tables import console, print_table
from app.run.atomic import write_json
from app.run.directory import RunDirectory, resolve_run
from app.run.errors import ConfigurationError, ExitCode
from app.run.history import FIGURES, differing, launches, recorded
from app.run.paths import typed_path
from app.run.status import read_status
from app.run.terminal import say
from app.run.trust import trusted_for
from app.run.without_packages import quick_framework

if TYPE_CHECKING:
    from app.training.past_steps import PastStep

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"\s*([a-z/_]+)\s*(>=|<=|>|<)\s*(\S+)\s*")
#: what a step's figures are called in a table
TITLES = {"train/loss": "loss", "train/aux_loss": "auxiliary loss", "train/grad_norm": "gradient norm"}


def run(name: str, words: list[str]) -> int:
    """Makes the steps again, prints and compares; nothing in the run directory changes.

    Args:
        name: ``replay``.
        words: the rest of the command line, the run first.

    Returns:
        0, or 4 where a step differs from what the run recorded.
    """
    options = command_parser().parse_args(words)
    directory, _ = resolve_run(options.run)
    made = int((read_status(directory.status) or {}).get("step") or 0)
    rows = recorded(directory)
    condition = _condition(options.until) if options.until else None
    wanted = _wanted(options, made, rows)
    trusted = trusted_for(directory, options.trust_imports)
    with quick_framework(trusted):
        from app.training.past_steps import PastSteps

    found: list[PastStep] = []

    def see(step: "PastStep") -> bool:
        is_met = condition is None or condition(step.figures)
        if is_met:
            found.append(step)
        return condition is not None and is_met

    steps = PastSteps(directory, trusted, examines=options.examine)
    _say_place(directory)
    steps.make(wanted, see)
    if condition is not None and not found:
        say("replay", f"no step from {min(wanted)} to {max(wanted)} has {options.until}")
    wrong = {step.step: differing(step.figures, rows.get(step.step, {})) for step in found}
    if found:
        _print(found, rows, wrong)
    if options.json:
        _write(options.json, found, rows)
    n_recorded = sum(step.step in rows for step in found)
    n_wrong = sum(map(bool, wrong.values()))
    if n_recorded:
        how = (
            "as recorded, bit for bit"
            if not n_wrong
            else f"{n_wrong} differ, the first at step {min(k for k in wrong if wrong[k])}"
        )
        say("replay", f"{n_recorded} of {len(found)} steps were logged by the run: {how}")
    return int(ExitCode.INTEGRITY if n_wrong else ExitCode.DONE)


def command_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "replay",
        description="Makes past steps of a run again, from the nearest checkpoint before each or from the first "
        "weights, and compares them with what the run recorded. --keep_every_n_steps of app fit keeps more "
        "checkpoints.",
    )
    parser.add_argument("run", metavar="RUN", type=typed_path, help="a run directory")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--step", type=int, nargs="+", metavar="N", help="numbers of steps, from 1")
    which.add_argument(
        "--sample", type=int, metavar="K", help="so many of the logged steps, drawn with --seed"
    )
    which.add_argument(
        "--until", metavar="CONDITION", help="the first step that meets it, such as 'train/grad_norm > 10'"
    )
    parser.add_argument("--seed", type=int, default=0, help="of --sample (default 0)")
    parser.add_argument("--start", type=int, default=1, metavar="N", help="where --until begins (default 1)")
    parser.add_argument(
        "--examine", action="store_true", help="make each step once more, eagerly, with every module watched"
    )
    parser.add_argument("--json", type=typed_path, metavar="FILE", help="write the figures there too")
    parser.add_argument(
        "--trust_imports",
        action="append",
        default=[],
        metavar="PREFIX",
        help="import code of your own from here",
    )
    return parser


def _wanted(options: argparse.Namespace, made: int, rows: Mapping[int, Any]) -> list[int]:
    """The numbers of the steps, in order."""
    if made < 1:
        raise ConfigurationError(f"{options.run}: has made no step yet")
    if options.sample is not None:
        logged = sorted(step for step in rows if step <= made)
        if not 1 <= options.sample <= len(logged):
            raise ConfigurationError(
                f"--sample {options.sample}: must lie in 1 to {len(logged)}, the number of logged steps"
            )
        return sorted(random.Random(options.seed).sample(logged, options.sample))
    name, asked = ("start", [options.start]) if options.until else ("step", options.step)
    if bad := [step for step in asked if not 1 <= step <= made]:
        raise ConfigurationError(f"--{name} {bad[0]}: must lie in 1 to {made}, the steps of the run")
    return list(range(options.start, made + 1)) if options.until else sorted({*asked})


def _condition(text: str) -> Callable[[Mapping[str, float]], bool]:
    """What a step's figures have to be."""
    found = _CONDITION.fullmatch(text)
    try:
        if found is None or found[1] not in FIGURES:
            raise ValueError
        key, compare, limit = found[1], _COMPARISONS[found[2]], float(found[3])
    except ValueError:
        raise ConfigurationError(
            f"--until {text!r}: must be KEY > NUMBER (or <, >=, <=) with one of the keys {', '.join(FIGURES)}"
        ) from None
    return lambda figures: compare(figures[key], limit)


def _say_place(run: RunDirectory) -> None:
    """Only at an equal place are equal steps the same bits."""
    import torch

    place = launches(run)[-1].place
    theirs = (place.get("device"), place.get("torch"))
    if theirs[1] not in (None, str(torch.__version__)):
        say(
            "note",
            f"the run was made with torch {theirs[1]}, this is {torch.__version__}: the last bits may differ",
        )


def _print(
    found: "list[PastStep]", rows: Mapping[int, Mapping[str, float]], wrong: Mapping[int, list[str]]
) -> None:
    names = [name for name in FIGURES if any(step.figures.get(name) for step in found)]
    table = []
    for step in found:
        if step.step not in rows:
            verdict = "not logged"
        elif not wrong[step.step]:
            verdict = "as recorded"
        else:
            verdict = ", ".join(
                f"{TITLES[name]} {rows[step.step][name]!r} recorded" for name in wrong[step.step]
            )
        table.append([str(step.step), *(f"{step.figures[name]:.9g}" for name in names), verdict])
    output = console()
    print_table(
        output, ["step", *(TITLES[name] for name in names), "beside the run's"], table, (len(names) + 1,)
    )
    for step in found:
        if step.finding:
            say(f"step {step.step}", step.finding.replace("\n", "; "))


def _write(file: str, found: "list[PastStep]", rows: Mapping[int, Mapping[str, float]]) -> None:
    content = [
        {
            "step": step.step,
            "figures": {name: step.figures[name] for name in FIGURES if name in step.figures},
            "recorded": dict(rows.get(step.step, {})) or None,
            "finding": step.finding or None,
        }
        for step in found
    ]
    write_json(Path(file), {"steps": content})
