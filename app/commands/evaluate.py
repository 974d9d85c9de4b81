"""``app evaluate``: the tasks of lm-eval on an export or a run."""

import argparse
import math
from pathlib import Path
from typing import Any

from app.commands.parsing import CommandParser, check_device
from app.run.errors import ConfigurationError, ExitCode
from app.run.paths import typed_path
from app.run.terminal import say


def run(name: str, words: list[str]) -> int:
    """Asks, prints and writes the figures.

    Args:
        name: ``evaluate``.
        words: the rest of the command line.
    """
    options = command_parser().parse_args(words)
    if options.limit is not None and options.limit < 1:
        raise ConfigurationError(f"--limit {options.limit}: must be 1 or more")
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigurationError(
            "app evaluate: needs the package lm-eval; pip install 'archlab[eval]'"
        ) from error

    from app.commands.tables import console, print_table
    from app.harness import NetworkLM
    from app.loading import load
    from app.run.atomic import write_json
    from app.run.storage import make_folder

    check_device(options.device)
    loaded = load(options.export, options.device, options.trust_imports)
    manager = TaskManager(include_path=options.include_path)
    known = set(manager.all_tasks)
    if unknown := [task for task in options.tasks if task not in known]:
        where = (
            f" or in {options.include_path}"
            if options.include_path
            else "; --include_path names a folder of yours"
        )
        raise ConfigurationError([f"--tasks {task}: is no task of lm-eval{where}" for task in unknown])
    try:
        found = lm_eval.simple_evaluate(
            model=NetworkLM(loaded),
            tasks=options.tasks,
            task_manager=manager,
            limit=options.limit,
            log_samples=False,
        )
    except (ConnectionError, FileNotFoundError) as error:
        raise ConfigurationError(f"--tasks: the data of a task cannot be had ({error})") from error
    results: dict[str, dict[str, Any]] = found["results"] if found else {}
    rows = [
        [task, key.partition(",")[0], _written(value), _written(of.get(key.replace(",", "_stderr,", 1)))]
        for task, of in results.items()
        for key, value in of.items()
        if "_stderr" not in key and isinstance(value, int | float) and "," in key
    ]
    print_table(console(), ("task", "measure", "value", "± standard error"), rows, left=(0, 1))
    if options.output:
        target = Path(options.output)
        make_folder(target.absolute().parent, "--output")
        write_json(target, {"network": options.export, "lm_eval": lm_eval.__version__, "results": results})
        say("written", str(target))
    return int(ExitCode.DONE)


def _written(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) and math.isfinite(value) else "–"


def command_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "evaluate",
        description="Asks a network the tasks of lm-eval (the extra eval): log-likelihoods of continuations and of "
        "whole texts, and generation. Texts must be of characters that its tokenizer knows.",
    )
    add = parser.add_argument
    add("export", metavar="EXPORT", type=typed_path, help="what app export has written, or a run")
    add("--tasks", nargs="+", required=True, metavar="TASK", help="names of tasks")
    add("--include_path", type=typed_path, help="a folder with task files of your own")
    add("--limit", type=int, help="documents of each task at most")
    add("--output", type=typed_path, help="a .json file for the figures")
    add("--device", default="cpu", help="cpu (default), cuda, cuda:1, …")
    add(
        "--trust_imports",
        action="append",
        default=[],
        metavar="PREFIX",
        help="import a network of your own from here",
    )
    return parser
