"""``app verify``: recomputes a run, and refuses one whose files were changed."""

import argparse
import math
import random
from datetime import UTC, datetime
from typing import Any

from app import __version__
from app.commands.parsing import CommandParser
from app.run.atomic import write_json
from app.run.checkpoint import list_checkpoints
from app.run.directory import RunDirectory, resolve_run
from app.run.errors import AppError, ConfigurationError, ExitCode, IntegrityError
from app.run.history import launches
from app.run.lock import holder
from app.run.paths import typed_path
from app.run.terminal import say
from app.run.trust import trusted_for
from app.run.verification import Finding, Recorded, length_of, of_files, rows_of
from app.run.without_packages import quick_framework

N_STEPS = 10
MAX_SHOWN = 20


def run(name: str, words: list[str]) -> int:
    """Checks the files against each other, makes steps again, and writes ``verified.json`` into the run.

    Args:
        name: ``verify``.
        words: the rest of the command line, the run first.

    Returns:
        0, or 4 where anything is not as it was recorded.
    """
    options = command_parser().parse_args(words)
    directory, _ = resolve_run(options.run)
    held = holder(directory.path)
    if held is not None and held.is_held:
        raise ConfigurationError(held.refusal(directory.path, "app verify"))
    launches(directory)  # a run of app fit
    try:
        rows = rows_of(directory)
    except IntegrityError as error:
        where, _, what = str(error).partition(": ")
        return _end(directory, options, [Finding(where, what)], {})
    findings = [*dict.fromkeys(of_files(directory, rows))]
    steps = _steps(options, directory, rows)
    trusted = trusted_for(directory, options.trust_imports)
    with quick_framework(trusted):
        from app.training.recomputation import Recomputation

    recomputation = Recomputation(directory, trusted, rows)
    try:
        recomputation.require_same_place()
        recomputation.check_data()
        # Of another text, no step would come out as it was.
        if not recomputation.findings:
            recomputation.make(steps, from_first=options.all)
    except AppError as error:
        # What the files say of each other already is said whatever else hinders.
        if isinstance(error, ConfigurationError) and not findings:
            raise
        findings.append(Finding("steps", " ".join(str(error).split())))
    return _end(directory, options, findings + recomputation.findings, recomputation.compared)


def command_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "verify",
        description="Holds the files of a run against each other and against its text, makes steps again with the "
        "validations and checkpoints on their way, and compares all with what the run recorded, bit for bit. The "
        "verdict stands in verified.json: that these figures come from these settings, not who computed them.",
    )
    parser.add_argument("run", metavar="RUN", type=typed_path, help="a run directory")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--sample",
        type=int,
        default=N_STEPS,
        metavar="K",
        help=f"so many of the logged steps, drawn with --seed, and the last (default {N_STEPS})",
    )
    which.add_argument(
        "--all",
        action="store_true",
        help="every step, from the first weights on: no checkpoint is believed",
    )
    parser.add_argument("--seed", type=int, default=0, help="of --sample (default 0)")
    parser.add_argument(
        "--trust_imports",
        action="append",
        default=[],
        metavar="PREFIX",
        help="import code of your own from here",
    )
    return parser


def _steps(options: argparse.Namespace, directory: RunDirectory, rows: Recorded) -> list[int]:
    """Which of the steps that have rows are made again, and the last that left anything."""
    limit = length_of(directory) or math.inf
    logged = sorted(step for step in rows.training if step <= limit)
    if not logged:
        raise ConfigurationError(f"{directory}: has logged no step yet")
    if options.sample < 1:
        raise ConfigurationError(f"--sample {options.sample}: must be at least 1")
    saved = [step for kind in ("resume", "best") for step, _ in list_checkpoints(directory.checkpoints, kind)]
    last = max(step for step in (*logged, *saved) if step <= limit)
    drawn = random.Random(options.seed).sample(logged, min(options.sample, len(logged)))
    return sorted({*(logged if options.all else drawn), last})


def _end(
    directory: RunDirectory,
    options: argparse.Namespace,
    findings: list[Finding],
    compared: dict[str, list[Any]],
) -> int:
    code = ExitCode.INTEGRITY if findings else ExitCode.DONE
    content = {
        "verdict": "refused" if findings else "verified",
        "findings": [finding._asdict() for finding in findings],
        "from_first_weights": options.all,
        "compared": compared,
        "archlab": __version__,
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    write_json(directory.path / "verified.json", content)
    for finding in findings[:MAX_SHOWN]:
        say("differs", str(finding))
    if len(findings) > MAX_SHOWN:
        say("differs", f"{len(findings) - MAX_SHOWN} more in verified.json")
    if any(compared.values()):
        n_steps, n_validations, n_checkpoints = (len(found) for found in compared.values())
        say(
            "verify",
            f"{n_steps} logged steps, {n_validations} validations and {n_checkpoints} checkpoints made again",
        )
    say("verify", f"{directory}: {content['verdict']}")
    return int(code)
