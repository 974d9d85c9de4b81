"""``app study NAME --dry_run``: what a study would take."""

from typing import Any

from app.commands.dry_run import duration, measured, size
from app.run import arguments
from app.run.configuration import find_config, read_config
from app.run.errors import ConfigurationError, ExitCode
from app.study.plan import Study
from app.study.verdicts import seeds_for_equivalence

#: checkpoints that a run keeps: two to resume from and the best
N_CHECKPOINTS = 3


def run(study: Study, trusted: list[str]) -> int:
    """Builds every row, makes a few of its steps in memory, and prints what all of them would take.

    Raises:
        ConfigurationError: naming every row that ``app fit`` would refuse.
    """
    import torch

    torch.set_num_threads(study.threads)
    n_runs = len(study.seeds) + (0 if study.tuning is None else len(study.tuning.points))
    width = max(len("row"), *(len(row.name) for row in study.rows))
    print(study.headline)
    print(f"{'row':<{width}}  parameters      tokens  hours a run        disk")
    hours = disk = 0.0
    problems: list[str] = []
    for row in study.rows:
        words = [
            *row.words(study.seeds[0]),
            *(word for prefix in trusted for word in ("--trust_imports", prefix)),
        ]
        try:
            n_parameters, tokens, seconds, n_bytes = _row(words)
        except ConfigurationError as error:
            problems += [f"row {row.name}: {problem}" for problem in error.problems]
            continue
        hours, disk = hours + n_runs * seconds / 3600, disk + n_runs * n_bytes
        print(
            f"{row.name:<{width}}  {n_parameters:>10,}  {tokens:>10,}  {seconds / 3600:>11.2g}  {size(n_bytes):>10}",
            flush=True,
        )
    if problems:
        raise ConfigurationError(problems)
    tuning = "" if study.tuning is None else f" and {len(study.tuning.points)} points of a tuning grid"
    print(f"{len(study.rows)} rows of {len(study.seeds)} seeds{tuning}: {len(study.rows) * n_runs} runs")
    print(
        f"together {duration(hours * 3600)} one after the other with {study.threads} thread(s) each, {size(int(disk))};"
    )
    print("         without starts, validation, checkpoints and watchers")
    _print_seeds(study)
    return int(ExitCode.DONE)


def _row(words: list[str]) -> tuple[int, int, float, int]:
    """Parameters, tokens, seconds and bytes on disk of one run."""
    from app.run.randomness import seed_initialisation
    from app.training.command_line import RunCLI

    launch = arguments.read(words)
    cli = RunCLI(launch, [read_config(find_config(name)) for name in launch.configs])
    max_steps = cli.config["trainer"]["max_steps"]
    data: Any = cli.build_data()
    seed_initialisation(cli.config["seed"])
    model = cli.build_model(data)
    model.begin(None)
    cost, _ = measured(cli, model, data)
    n_parameters = sum(p.numel() for p in model.network.parameters())
    n_bytes = N_CHECKPOINTS * (cost.weights + cost.optimizer)
    return n_parameters, max_steps * data.tokens_per_step, max_steps * cost.step_seconds, n_bytes


def _print_seeds(study: Study) -> None:
    if study.pilot_sd is None:
        print(
            f"seeds    a margin of {study.margin:g} needs so many for 80 % power of equivalence: at a spread of"
        )
        for share in (0.5, 1.0, 2.0):
            needed = seeds_for_equivalence(share * study.margin, study.margin)
            print(f"         {share * study.margin:g}: {needed or 'more than 1,000'}")
        return
    needed = seeds_for_equivalence(study.pilot_sd, study.margin)
    print(
        f"seeds    {needed or 'more than 1,000'} a row for 80 % power of equivalence at the margin {study.margin:g}, "
        f"by the pilot's spread of {study.pilot_sd:g}; the study has {len(study.seeds)}"
    )
