"""``app compare``: runs beside each other."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands.parsing import CommandParser
from app.run.atomic import storage_error, write_json
from app.run.configuration import read_config
from app.run.directory import RunDirectory, resolve_run
from app.run.errors import ConfigurationError, ExitCode
from app.run.status import true_state

if TYPE_CHECKING:
    from app.analysis.comparison import Comparison, Run

#: what a run was made with, as far as it decides its figures: keys of its last launch
CONTEXT = ("device", "world_size", "threads", "archlab", "commit", "source_diff_sha256", "python")


def run(name: str, words: list[str]) -> int:
    """Reads the runs, prints what they differ in and their figures, draws their curves.

    Args:
        name: ``compare``.
        words: the rest of the command line: runs, and ``--output``.
    """
    options = _parser().parse_args(words)
    directories, notes = find_runs(options.runs)

    from app.analysis.comparison import compare
    from app.analysis.comparison_figure import draw_comparison
    from app.commands.compare_tables import print_comparison

    runs = []
    for directory in directories:
        found = read_run(directory, notes)
        if found is not None:
            runs.append(found)
    if not runs:
        raise ConfigurationError([*notes, "app compare: none of these runs can be read"])
    comparison = compare(runs)
    notes += what_compares(comparison)
    output = Path(options.output)
    picture = None
    if any(run.rows for run in runs):
        picture = output / "figures" / "curves.png"
        try:
            picture.parent.mkdir(parents=True, exist_ok=True)
            notes += draw_comparison(comparison, picture)
        except OSError as error:
            raise storage_error(error, picture) from error
    report = _report(comparison, notes, picture)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, output) from error
    write_json(output / "compare.json", report)
    print_comparison(comparison, notes)
    if picture is not None:
        print(f"picture  {picture}")
    print(f"data     {output / 'compare.json'}")
    return int(ExitCode.DONE)


def find_runs(names: list[str]) -> tuple[list[RunDirectory], list[str]]:
    """The runs that a user named, each once, and notes on what was left out.

    A folder that is no run stands for the runs in it, up to two levels down, in the order of their names.

    Raises:
        ConfigurationError: naming every argument that is neither a run nor a folder of runs.
    """
    found: dict[Path, RunDirectory] = {}
    notes, problems = [], []
    for name in names:
        try:
            here = [resolve_run(name)[0]]
        except ConfigurationError as error:
            folder = Path(name)
            inside = sorted([*folder.glob("*"), *folder.glob("*/*")]) if folder.is_dir() else []
            here = [RunDirectory(path) for path in inside if path.is_dir() and RunDirectory(path).is_run]
            if not here:
                problems += error.problems
        for directory in here:
            place = directory.path.resolve()
            if place in found:
                notes.append(f"{directory}: named twice, counted once")
            found.setdefault(place, directory)
    if problems:
        raise ConfigurationError(problems)
    return list(found.values()), notes


def what_compares(comparison: "Comparison") -> list[str]:
    """Notes where losses are of different tokens, or of different texts."""
    notes = []
    if comparison.loss_key != "val/loss":
        notes.append(
            "the runs have different tokenizers: losses, in nats per token, do not compare; bits per byte (bpb) do"
        )
    if len(comparison.texts) > 1:
        listed = "; ".join(f"{', '.join(letters)}: {name}" for name, letters in comparison.texts.values())
        notes.append(
            f"the runs read different texts ({listed}): losses and bits per byte of different texts do not compare"
        )
    return notes


def read_run(directory: RunDirectory, notes: list[str]) -> "Run | None":
    """A run as far as it can be read; None where not even its configuration can."""
    from app.analysis.comparison import Run, flat, read_rows

    try:
        configuration = flat(read_config(directory.config).data)
    except ConfigurationError as error:
        notes.append(f"{directory}: left out, {error.problems[0]}")
        return None
    state = true_state(directory)
    found = Run(str(directory), state, configuration, _context(directory, notes))
    if state != "finished":
        notes.append(f"{directory}: is {state}; its figures are those of its last rows")
    try:
        found.rows, n_damaged = read_rows(directory.metrics)
        if n_damaged:
            notes.append(f"{directory}: {n_damaged} damaged row(s) of metrics.csv left out")
        if not found.rows:
            notes.append(f"{directory}: nothing logged yet")
        elif not any("speed/seconds" in row for row in found.rows):
            notes.append(f"{directory}: made before seconds were logged; no curve over time")
    except FileNotFoundError:
        notes.append(f"{directory}: has no metrics.csv; only its configuration is compared")
    except (OSError, ValueError) as error:
        notes.append(f"{directory}: metrics.csv cannot be used ({error}); only its configuration is compared")
    found.summary = read_json(directory.summary, notes)
    return found


def _context(directory: RunDirectory, notes: list[str]) -> dict[str, Any]:
    launches = read_json(directory.manifest, notes).get("launches")
    launch = launches[-1] if isinstance(launches, list) and launches else None
    if not isinstance(launch, dict):
        notes.append(f"{directory}: run.json does not say with what it was made")
        return {}
    found = {f"launch.{key}": launch.get(key) for key in CONTEXT}
    packages = launch.get("packages")
    found["launch.torch"] = packages.get("torch") if isinstance(packages, dict) else None
    data = launch.get("data")
    return found | {f"data.{key}": value for key, value in (data if isinstance(data, dict) else {}).items()}


def read_json(path: Path, notes: list[str]) -> dict[str, Any]:
    """A JSON object; empty where there is none, with a note where it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        notes.append(f"{path}: cannot be read")
        return {}
    return content if isinstance(content, dict) else {}


def _report(comparison: "Comparison", notes: list[str], picture: Path | None) -> dict[str, Any]:
    """The comparison as plain values."""
    return {
        "groups": [
            {
                "letter": group.letter,
                "label": group.label,
                "figures": {key: spread._asdict() for key, spread in group.figures().items()},
                "runs": [
                    {
                        "path": run.path,
                        "state": run.state,
                        "seed": run.seed,
                        "step": run.last_step,
                        "figures": run.figures(),
                        "summary": run.summary,
                    }
                    for run in group.runs
                ],
            }
            for group in comparison.groups
        ],
        "differences": {
            key: dict(zip((group.letter for group in comparison.groups), values, strict=True))
            for key, values in comparison.differences.items()
        },
        "loss_key": comparison.loss_key,
        "notes": notes,
        "picture": None if picture is None else str(picture),
    }


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "compare",
        description="Puts runs beside each other; runs that are equal up to the seed are one group, "
        "with mean and standard deviation.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run directories, or folders of runs")
    parser.add_argument(
        "--output", default="comparison", help="folder of compare.json and figures/ (default comparison)"
    )
    return parser
