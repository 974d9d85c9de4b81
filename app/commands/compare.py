"""``app compare``: runs beside each other."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands.parsing import CommandParser
from app.commands.picture import write_picture
from app.run import bounded
from app.run.atomic import write_json
from app.run.configuration import read_config
from app.run.directory import RunDirectory, resolve_run
from app.run.errors import ConfigurationError, ExitCode
from app.run.manifest import experiment
from app.run.paths import typed_path
from app.run.status import true_state
from app.run.storage import make_folder

if TYPE_CHECKING:
    from app.analysis.comparison import Comparison, Run

MAX_NAME = 60  # characters of an experiment's
#: what a run was made with, as far as it decides its figures: keys of its last launch
CONTEXT = ("device", "threads", "archlab", "python")


def run(name: str, words: list[str]) -> int:
    """Reads the runs, prints what they differ in and their figures, draws their curves.

    Args:
        name: ``compare``.
        words: the rest of the command line: runs, and ``--output``.
    """
    options = command_parser().parse_args(words)
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
    output = make_folder(options.output, "--output")
    picture = None
    if any(run.rows for run in runs):
        target = output / "figures" / "curves.png"
        left_out, problem = write_picture(target, lambda file: draw_comparison(comparison, file))
        notes += [problem] if problem else left_out or []
        picture = None if problem else target
    report = _report(comparison, notes, picture)
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
        do_not = comparison.without_bytes
        notes.append(
            "the runs have different tokenizers: losses, in nats per token, do not compare; "
            + ("bits per byte (bpb) do" + (", where they are given" if do_not else ""))
        )
        for letter, share in do_not.items():
            why = f", {share:.2%} of its validation tokens being unknown words" if share else ""
            notes.append(f"{letter} compares with none of another tokenizer: it has no bits per byte{why}")
    if len(comparison.texts) > 1:
        listed = "; ".join(f"{', '.join(letters)}: {name}" for name, letters in comparison.texts.values())
        notes.append(
            f"the runs read different texts ({listed}): losses and bits per byte of different texts do not compare"
        )
    for group in comparison.groups:
        for run in group.repeats:
            notes.append(f"{run.path}: seed {run.seed} once more in {group.letter}; a seed counts once")
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
        bounded.require_size(directory.metrics, bounded.MAX_TABLE_BYTES)
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
        notes.append(
            f"{directory}: metrics.csv cannot be used ({reason(error)}); only its configuration is compared"
        )
    found.summary = read_json(directory.summary, notes)
    found.experiment = experiment(directory)[:MAX_NAME]
    return found


def _context(directory: RunDirectory, notes: list[str]) -> dict[str, Any]:
    listed = read_json(directory.manifest, notes).get("launches")
    launches = [launch for launch in listed if isinstance(launch, dict)] if isinstance(listed, list) else []
    if not launches:
        notes.append(f"{directory}: run.json does not say with what it was made")
        return {}
    launch = launches[-1]
    found = {f"launch.{key}": launch.get(key) for key in CONTEXT}
    found |= _made_with(launches)
    data = launch.get("data")
    return found | {f"data.{key}": value for key, value in (data if isinstance(data, dict) else {}).items()}


def _made_with(launches: list[dict[str, Any]]) -> dict[str, Any]:
    """What bits depend on beside the configuration: a value, or the values that several launches had, in order.

    Of a run that was begun again, those from its last beginning on count; what it changed then was not trained with.
    """
    from app.analysis.comparison import MADE_WITH

    begun = [number for number, launch in enumerate(launches) if launch.get("replaces")]
    launches = launches[begun[-1] :] if begun else launches
    found: dict[str, list[Any]] = {key: [] for key in MADE_WITH}
    for launch in launches:
        place = launch.get("place")
        known = {
            f"place.{k}": v for k, v in (place if isinstance(place, dict) else _older_place(launch)).items()
        }
        known |= {f"launch.{key}": launch.get(key) for key in ("commit", "source_diff_sha256")}
        for key, values in found.items():
            if key == "launch.changes":
                changes = launch.get("changes")
                values += changes if isinstance(changes, list) and not launch.get("replaces") else []
            elif not values or values[-1] != known.get(key):
                values.append(known.get(key))
    changes = found.pop("launch.changes")
    return {key: values[0] if len(values) == 1 else values for key, values in found.items()} | (
        {"launch.changes": changes} if changes else {}
    )


def _older_place(launch: dict[str, Any]) -> dict[str, Any]:
    """Where a launch computed whose record has no entry for it."""
    device, packages = str(launch.get("device") or ""), launch.get("packages")
    gpu = re.fullmatch(r"cuda:\d+ \((.*)\)", device)
    return {
        "device": gpu[1] if gpu else device.partition(" ")[0] or None,
        "torch": packages.get("torch") if isinstance(packages, dict) else None,
        "world_size": launch.get("world_size"),
    }


def read_json(path: Path, notes: list[str]) -> dict[str, Any]:
    """A JSON object; empty where there is none, with a note where it is damaged."""
    try:
        content = bounded.read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        notes.append(f"{path}: cannot be read ({reason(error)})")
        return {}
    return content if isinstance(content, dict) else {}


def reason(error: OSError | ValueError) -> str:
    """What is wrong with a file, without its name."""
    return str(error.strerror) if isinstance(error, OSError) else str(error)


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
                "repeats": [run.path for run in group.repeats],
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


def command_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "compare",
        description="Puts runs beside each other; runs that are equal up to the seed are one group, "
        "with mean and standard deviation.",
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=typed_path, help="run directories, or folders of runs"
    )
    parser.add_argument(
        "--output",
        type=typed_path,
        default="comparison",
        help="folder of compare.json and figures/ (default comparison)",
    )
    return parser
