"""``app study``: a grid of runs, and what their figures allow to say."""

import argparse
import itertools
import os
import sys
import textwrap
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from app.commands.configs import heading
from app.commands.parsing import CommandParser
from app.commands.picture import write_picture
from app.run import arguments
from app.run.atomic import write_json, write_text
from app.run.bounded import read_json
from app.run.configuration import find_config, read_config, shipped_directory, shipped_studies
from app.run.errors import ConfigurationError, ExitCode
from app.run.paths import typed_path
from app.run.storage import make_folder
from app.run.terminal import announce, announced

CALIBRATE, ROUTING = "calibrate", "routing"
WIDTH = 80


def run(name: str, words: list[str]) -> int:
    """Runs a study, says what it would cost or has found, or calibrates the statistics.

    Args:
        name: ``study``.
        words: the rest of the command line.
    """
    if words[:1] == [ROUTING]:
        from app.commands import study_routing

        return study_routing.run(words[1:])
    options = command_parser().parse_args(words)
    if options.list:
        return _list()
    if options.ideas:
        return _ideas(Path(options.output or shipped_directory() / "study" / "results"))
    if options.study is None:
        raise ConfigurationError("app study: name a study, or see --list")
    if options.study == CALIBRATE:
        return _calibrate(options.draws, options.seed, options.pool)
    if options.pool is not None:
        raise ConfigurationError(f"app study {options.study}: {options.pool} is one word too many")
    return _study(options)


def _study(options: argparse.Namespace) -> int:
    from app.study.plan import find_study, read_study

    study = read_study(find_study(options.study))
    if options.dry_run:
        from app.commands import study_cost

        return study_cost.run(study, options.trust_imports)
    output = Path(options.output or Path("runs") / "study" / study.name)
    if options.verify:
        from app.commands import study_verify

        return study_verify.run(study, output, options.verify, _numbers(options.seeds), options.trust_imports)
    if options.table:
        return _write_table(study, output, options.trust_imports)
    return _run(study, output, options)


# -- running ------------------------------------------------------------------------------------------


def _run(study: Any, output: Path, options: argparse.Namespace) -> int:
    """Runs the study's jobs, first those that tune it, and writes its table."""
    from app.study.jobs import require_own
    from app.study.tuning import seed_jobs, tuning_jobs

    if options.parallel < 1:
        raise ConfigurationError(f"--parallel {options.parallel}: must be at least 1")
    tuning = tuning_jobs(study, output, options.trust_imports)
    require_own(tuning)
    if options.index is not None:
        return _run_one(study, output, options, tuning)
    make_folder(output, "--output")
    codes = _run_all(study, tuning, options.parallel) if tuning else []
    jobs = seed_jobs(study, output, options.trust_imports)
    require_own(jobs)
    codes += _run_all(study, jobs, options.parallel)
    _write_table(study, output, options.trust_imports)
    return max(codes, default=int(ExitCode.DONE))


def _run_all(study: Any, jobs: list[Any], n_slots: int) -> list[int]:
    """Runs jobs; the exit codes of those that failed."""
    from app.study.display import LiveTable, said
    from app.study.engine import Engine, visible_devices
    from app.study.starting import starter

    left = [job for job in jobs if job.standing().state != "finished"]
    if not left:
        return []
    # Every row's first seed, then every row's second: whenever it is stopped, all rows have about as many.
    left.sort(key=lambda job: study.seeds.index(job.seed) if job.seed in study.seeds else 0)
    # Whoever starts the runs gets ready while their rows are checked.
    with closing(starter(len(left), study.threads, left[0].trusted)) as started_by:
        steps = check_rows(left)
        import torch

        # It asks the driver, as the runs will; what a container shows of others' GPUs does not count.
        devices = visible_devices(dict(os.environ), torch.cuda.device_count)
        max_steps = {job.name: steps[job.row.name] for job in left}
        with LiveTable(max_steps) as display:
            standings = Engine(n_slots, devices, display, started_by).run(left, jobs)
    codes = []
    for job in jobs:
        standing = standings[job.name]
        if standing.state != "finished":
            codes.append(standing.exit_code or int(ExitCode.UNEXPECTED))
            print(f"row {job.name}: {said(standing)}; its words are in {job.log}", file=sys.stderr)
    if codes:
        print(
            f"{len(codes)} of {len(jobs)} runs are not finished; the same command goes on with them",
            file=sys.stderr,
        )
    return codes


def _run_one(study: Any, output: Path, options: argparse.Namespace, tuning: list[Any]) -> int:
    """Becomes the process of one job, so that signals of a scheduler reach it."""
    from app.study.jobs import require_own
    from app.study.tuning import n_seed_jobs, seed_jobs

    total = len(tuning) + n_seed_jobs(study)
    if not 0 <= options.index < total:
        raise ConfigurationError(
            f"--index {options.index}: must lie in 0 … {total - 1}, the runs of {study.name}"
        )
    jobs = tuning if options.index < len(tuning) else seed_jobs(study, output, options.trust_imports)
    job = jobs[options.index - (0 if jobs is tuning else len(tuning))]
    require_own([job])
    if job.standing().state == "finished":
        print(f"{job.name} is finished; nothing to do")
        return int(ExitCode.DONE)
    job.note()
    print(f"run {options.index} of {total}: {job.name}", flush=True)
    return _become(job)


def _become(job: Any) -> NoReturn:
    os.execve(job.process[0], job.process, job.environment())


def check_rows(jobs: list[Any]) -> dict[str, int]:
    """Refuses rows that ``app fit`` would refuse; of each, the number of steps.

    Raises:
        ConfigurationError: naming every row, key and remedy.
    """
    announce("loading the training framework")

    from app.training.command_line import RunCLI

    steps: dict[str, int] = {}
    problems = []
    rows = {job.row.name: job for job in jobs}
    announce(f"checking {len(rows)} rows")
    for job in rows.values():
        launch = arguments.read(job.command)
        try:
            cli = RunCLI(launch, [read_config(find_config(name)) for name in launch.configs])
            steps[job.row.name] = cli.config["trainer"]["max_steps"]
        except ConfigurationError as error:
            problems += [f"row {job.row.name}: {problem}" for problem in error.problems]
    announced()
    if problems:
        raise ConfigurationError(problems)
    return steps


# -- results ------------------------------------------------------------------------------------------


def _write_table(study: Any, output: Path, trusted: list[str]) -> int:
    """Writes results.json, .csv, .md and the pictures, and prints the table."""
    from app.study.pages import markdown, pictures_of, table
    from app.study.results import results
    from app.study.tuning import seed_jobs

    if not output.is_dir():
        raise ConfigurationError(f"--output {output}: there is no study here yet; run it first")
    report = results(study, seed_jobs(study, output, trusted, must_be_tuned=False))
    pictures = []
    for name, draw in pictures_of(report).items():
        _, problem = write_picture(output / name, partial(draw, report))
        if problem:
            print(f"note     {problem}")
        else:
            pictures.append(name)
    page = markdown(report, pictures)
    write_json(output / "results.json", report)
    write_text(output / "results.csv", table(report))
    write_text(output / "results.md", page)
    _print_table(report)
    print(f"table    {output / 'results.md'}, .csv, .json{''.join(f', {name}' for name in pictures)}")
    return int(ExitCode.DONE)


def _print_table(report: dict[str, Any]) -> None:
    """The rows in 80 columns: figure, seeds, verdict."""
    rows = report["rows"]
    width = min(28, max(len("row"), *map(len, rows)))
    print(f"{'row':<{width}}  {report['decides']:<17}  seeds  against {report['against']}")
    for name, row in rows.items():
        figure = (
            f"{row['mean']:.4f}" + (f" ± {row['sd']:.4f}" if row["sd"] is not None else "")
            if row["figures"]
            else "–"
        )
        compared = row.get("comparison")
        verdict = ""
        if compared is not None:
            more = f", {compared['seeds']} seeds would decide" if compared["seeds"] else ""
            verdict = f"{compared['difference']:+.4f} {compared['verdict']}{more}"
        print(
            f"{name[:width]:<{width}}  {figure:<17}  {len(row['figures'])}/{row['n_planned']:<3}  {verdict}".rstrip()
        )
    if (spread := report["spread"]) is not None:
        degrees = f"{spread['degrees']} degrees of freedom"
        print(f"spread   {spread['sd']:.4f} of a seed, {degrees}; margin {report['margin']:g}")


# -- the rest -----------------------------------------------------------------------------------------


def _list() -> int:
    names = shipped_studies()
    column = 4 + max(map(len, names), default=0)
    for name in names:
        about = heading(shipped_directory() / "study" / f"{name}.yaml")
        texts = [line for part in about if part for line in textwrap.wrap(part, WIDTH - column)]
        for number, text in enumerate(texts):
            print(f"{'' if number else f'  {name}':<{column}}{text}")
    print("app study NAME runs one, app study NAME --dry_run says what it would take.")
    return int(ExitCode.DONE)


def _ideas(folder: Path) -> int:
    """Prints the page of all ideas of the shipped studies.

    Args:
        folder: has the results of each study in a folder of its name.
    """
    from app.study.ideas import markdown
    from app.study.plan import find_study, read_study

    studies = [read_study(find_study(name)) for name in shipped_studies()]
    files = {study.name: folder / study.name / "results.json" for study in studies}
    print(
        markdown(studies, {name: _report(str(file)) for name, file in files.items() if file.is_file()}),
        end="",
    )
    return int(ExitCode.DONE)


def _calibrate(n_draws: int, seed: int, pool: str | None) -> int:
    if n_draws < 1:
        raise ConfigurationError(f"--draws {n_draws}: must be at least 1")
    if seed < 0:
        raise ConfigurationError(f"--seed {seed}: must be at least 0")

    from app.study.calibration import calibrate
    from app.study.resampling import resampled

    started, n_broken = time.monotonic(), 0
    try:
        findings = calibrate(n_draws, seed) if pool is None else resampled(_report(pool), n_draws, seed)
        first = next(findings)
    except ValueError as error:
        raise ConfigurationError(f"app study {CALIBRATE} {pool}: {error}") from None
    kind = "simulated" if pool is None else "resampled"
    print(f"{n_draws:,} {kind} studies a line; chance alone moves a share by up to 1 % at 2,000")
    for finding in itertools.chain([first], findings):
        n_broken += not finding.is_kept
        head = f"{finding.share:7.2%}  "
        wrapped = textwrap.wrap(finding.what, WIDTH, initial_indent=head, subsequent_indent=" " * len(head))
        print("\n".join(wrapped))
        kept = "" if finding.is_kept else " - NOT KEPT"
        print(f"{'':{len(head)}}promised: {finding.promise}{kept}", flush=True)
    print(f"{n_broken} promises not kept; {time.monotonic() - started:.0f} s")
    return int(ExitCode.UNEXPECTED if n_broken else ExitCode.DONE)


def _report(path: str) -> dict[str, Any]:
    """The ``results.json`` of a study, or of a folder that has one."""
    file = Path(path) / "results.json" if Path(path).is_dir() else Path(path)
    try:
        found = read_json(file)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"app study: {path} cannot be read ({error}); name results.json") from None
    if not isinstance(found, dict) or not isinstance(found.get("rows"), dict) or "margin" not in found:
        raise ConfigurationError(f"app study: {path} is no results.json of a study; name one")
    return found


def _numbers(text: str | None) -> list[int]:
    """``1,2,3`` as numbers."""
    parts = [] if text is None else text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise ConfigurationError(f"--seeds {text}: must be whole numbers with commas between them")
    return [int(part) for part in parts]


def part_parsers() -> dict[str, argparse.ArgumentParser]:
    """What has options of its own behind a first word."""
    from app.commands import study_routing

    return {ROUTING: study_routing.command_parser()}


def command_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "study",
        description="Runs every row of a study with every seed, or goes on where it stands, and says what the figures "
        f"allow to say. `app study {CALIBRATE}` tries the statistics out; `app study {ROUTING} RUN` asks what banks or "
        f"routes of one network are worth (app study {ROUTING} --help).",
    )
    parser.add_argument(
        "study",
        metavar="STUDY",
        nargs="?",
        type=typed_path,
        help=f"a shipped study or a YAML file, or `{CALIBRATE}`",
    )
    parser.add_argument(
        "pool",
        metavar="RESULTS",
        nargs="?",
        type=typed_path,
        help=f"of {CALIBRATE}: a study's results.json, to resample it",
    )
    parser.add_argument("--list", action="store_true", help="the shipped studies")
    parser.add_argument(
        "--ideas", action="store_true", help="every idea of the shipped studies, and what is known of it"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="rows, parameters, tokens, hours, disk, seeds; and stop"
    )
    parser.add_argument("--table", action="store_true", help="write the table of what is finished, and stop")
    parser.add_argument(
        "--verify", metavar="ROW", help="run a row's first seed again and compare bit for bit"
    )
    parser.add_argument(
        "--seeds", metavar="N,…", help="of --verify: new seeds, held against the prediction interval"
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=typed_path,
        help="folder of the study (runs/study/NAME); of --ideas: of studies",
    )
    parser.add_argument("--parallel", metavar="K", type=int, default=1, help="runs at a time (1)")
    parser.add_argument("--index", metavar="N", type=int, help="run the N-th run alone, as a job of an array")
    parser.add_argument(
        "--trust_imports", action="append", default=[], metavar="PREFIX", help="classes of your own"
    )
    parser.add_argument(
        "--draws", type=int, default=2000, help=f"of {CALIBRATE}: simulated studies behind a line (2,000)"
    )
    parser.add_argument("--seed", type=int, default=0, help=f"of {CALIBRATE}: of the simulation (0)")
    return parser
