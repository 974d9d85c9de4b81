"""``app study routing``: whether a trained network's banks or routes are specialised, and whether they are useful."""

import argparse
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands.parsing import CommandParser, add_network_options, check_device
from app.commands.picture import write_picture
from app.commands.stage_progress import StageProgress
from app.run.errors import ConfigurationError, ExitCode
from app.run.paths import typed_path
from app.run.terminal import say

if TYPE_CHECKING:
    from app.analysis.routing.routers import Choices, Router
    from app.commands.study_routing_input import Looked
    from app.run.lock import RunLock
    from app.study.routing import Trained

NAME = "routing"
N_BLOCKS, N_TOKENS, BATCH_SIZE = 40, 8, 64
MARGIN = 0.01


def run(words: list[str]) -> int:
    """Measures, prints and writes ``routing.json`` and its pictures.

    Args:
        words: of the command line after ``app study routing``.
    """
    options = command_parser().parse_args(words)
    _check(options)
    try:
        _study(options)
    except SystemExit:
        print("\nstopped; the same command goes on after the last finished router", file=sys.stderr)
        raise
    return int(ExitCode.DONE)


def _study(options: argparse.Namespace) -> None:
    from app.commands import study_routing_input
    from app.run.atomic import sweep_temporaries
    from app.run.directory import resolve_run
    from app.run.lock import RunLock
    from app.run.storage import make_folder

    check_device(options.device)
    named = options.runs[0]
    directory, _ = resolve_run(named)
    trained = study_routing_input.trained([str(directory), *options.runs[1:]], options.controls)
    looked = study_routing_input.looked_into(
        named, options.checkpoint, options.device, options.trust_imports, options.n_blocks, options.seq_len
    )
    folder = make_folder(options.out_dir or directory.path / NAME, "--out_dir")
    with RunLock(folder, "--out_dir") as lock:
        sweep_temporaries(folder)
        _measure(options, directory.checkpoints, looked, trained, folder, lock)


def _measure(
    options: argparse.Namespace,
    checkpoints: Path,
    looked: "Looked",
    trained: "Trained",
    folder: Path,
    lock: "RunLock",
) -> None:
    from app.analysis.routing.exchange import exchange, n_batches, places, retention
    from app.analysis.routing.routers import choices, routers
    from app.run.atomic import write_json
    from app.run.checkpoint import list_checkpoints
    from app.run.partial_results import PartialResults
    from app.study import routing_page
    from app.study.routing_report import routing_report

    of = routers(looked.network)
    if not of:
        raise ConfigurationError(
            f"{options.runs[0]}: {type(looked.network).__name__} chooses neither banks nor routes; name a run that does"
        )
    settings = {
        "fingerprints": looked.fingerprints,
        "n_blocks": options.n_blocks,
        "seq_len": looked.windows.idx.shape[1],
        "n_tokens": options.n_tokens,
        "batch_size": options.batch_size,
        "seed": options.seed,
        "device": options.device,
    }
    done = PartialResults(folder / "stages.json", settings, lock.check)
    if done.dropped:
        say("note", f"what lies in {folder} is of other settings, weights or text; begun again")
    n_exchanges = sum(router.n_choices - 1 for router in of) * options.n_tokens * options.n_blocks
    say(
        "model",
        f"{type(looked.network).__name__}, {len(of)} routers of {max(r.n_choices for r in of)} choices",
    )
    say("text", f"{options.n_blocks} held-out windows of {settings['seq_len']} tokens of {looked.text}")
    say("exchange", f"{options.n_tokens} tokens of each window, {n_exchanges:,} exchanges in all")
    at = places(looked.windows, options.n_tokens, options.seed)
    files = [
        (step, path) for kind in ("resume", "best") for step, path in list_checkpoints(checkpoints, kind)
    ]
    files = sorted(dict(files).items())
    n_kept = max(router.n_choices for router in of)
    n_ticks = [n_batches(router, at, options.batch_size) for router in of]
    n_reads = -(-options.n_blocks // options.batch_size)
    with StageProgress(sum(n_ticks) + (len(files) + n_kept - 1) * n_reads) as progress:
        own = choices(looked.network, of, looked.windows, options.batch_size)

        def stage(name: str, n_ticks: int, compute: Callable[[], Any]) -> None:
            if name in done:
                progress.skip(n_ticks)
                return
            progress.begin(name, 0)
            done.keep(name, compute())

        network, batch_size, tick = looked.network, options.batch_size, progress.tick
        for router, n in zip(of, n_ticks, strict=True):
            stage(router.name, n, partial(exchange, network, router, looked.windows, at, batch_size, tick))
        for n in range(1, n_kept):
            arguments = (network, of, own.chosen, looked.windows, batch_size, n, tick)
            stage(f"{n} kept", n_reads, partial(retention, *arguments))
        for step, path in files:
            stage(f"step {step}", n_reads, partial(_agreement, options, path, of, looked, own, tick))
    about = {
        **settings,
        "model": type(looked.network).__name__,
        "text": looked.text,
        "versions": _versions(),
    }
    results: Mapping[str, Any] = {
        "effects": {router.name: done[router.name] for router in of},
        "retention": {n: done[f"{n} kept"] for n in range(1, n_kept)},
        "saturation": {step: done[f"step {step}"] for step, _ in files},
    }
    report = routing_report(
        looked.network, of, own, looked.windows, results, trained, options.margin, options.seed, about
    )
    drawn = routing_page.pictures(report)
    report["pictures"] = {name: routing_page.QUESTIONS[name] for name in drawn}
    lock.check()
    write_json(folder / "routing.json", report)
    _print(report)
    say("written", str(folder / "routing.json"))
    for name in routing_page.QUESTIONS.keys() - drawn.keys():
        (folder / name).unlink(missing_ok=True)  # of an earlier measurement, with controls
    for name, draw in drawn.items():
        _, problem = write_picture(folder / name, draw)
        say("note" if problem else "picture", problem or str(folder / name))


def _agreement(
    options: argparse.Namespace,
    path: Path,
    of: "list[Router]",
    looked: "Looked",
    own: "Choices",
    tick: Callable[[], None],
) -> dict[str, Any]:
    """Of each router, how far a checkpoint chooses as the network that is looked into."""
    from app.analysis.routing.associations import agreement
    from app.analysis.routing.routers import choices
    from app.loading import load

    network = load(path, options.device, options.trust_imports).network
    then = choices(network, of, looked.windows, options.batch_size, tick).chosen
    return {
        router.name: agreement(then[router.name].numpy(), own.chosen[router.name].numpy()) for router in of
    }


def _print(report: Mapping[str, Any]) -> None:
    from app.commands.tables import console, print_table
    from app.study.routing_page import CONTROL_HEADER, HEADER, control_rows, rows

    print()
    print_table(console(), HEADER, rows(report), left=(0, len(HEADER) - 1))
    if report["controls"]:
        print_table(console(), CONTROL_HEADER, control_rows(report), left=(0, len(CONTROL_HEADER) - 1))
    for note in report["notes"]:
        say("note", note)
    say("verdict", report["verdict"])


def _versions() -> dict[str, str]:
    import torch

    from app import __version__

    return {"archlab": __version__, "torch": str(torch.__version__)}


def command_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        f"study {NAME}",
        description="Says whether the banks or routes of a trained network are specialised: one token's choice is "
        "exchanged and everything after it recomputed, on held-out text. Whether they are useful too takes runs whose "
        "choices nothing decides (bank_choice, route_choice), by --controls. A killed measurement goes on.",
    )
    add = parser.add_argument
    add(
        "runs",
        metavar="RUN",
        nargs="+",
        type=typed_path,
        help="the run that is looked into, or a checkpoint of it; further seeds of it",
    )
    add(
        "--controls",
        metavar="RUN",
        nargs="+",
        default=[],
        type=typed_path,
        help="runs, or folders of runs, that differ in seed and in who chooses",
    )
    add("--margin", type=float, default=MARGIN, help=f"nats per token that matter (default {MARGIN})")
    add("--n_blocks", type=int, default=N_BLOCKS, help=f"windows of held-out text (default {N_BLOCKS})")
    add(
        "--n_tokens",
        type=int,
        default=N_TOKENS,
        help=f"exchanged in each, one at a time (default {N_TOKENS})",
    )
    add("--seq_len", type=int, help="tokens of a window (default: what the run was trained with)")
    add("--batch_size", type=int, default=BATCH_SIZE, help=f"exchanges read at a time (default {BATCH_SIZE})")
    add("--seed", type=int, default=42, help="of tokens, shuffles and bootstrap (default 42)")
    add("--out_dir", type=typed_path, help=f"folder of the results (default: RUN/{NAME})")
    add_network_options(parser)
    return parser


def _check(options: argparse.Namespace) -> None:
    problems = [
        f"--{flag} {value}: must be {low} or more"
        for flag, low in (("n_blocks", 10), ("n_tokens", 1), ("batch_size", 1), ("seed", 0), ("seq_len", 2))
        if (value := getattr(options, flag)) is not None and value < low
    ]
    if not 0 < options.margin < float("inf"):
        problems.append(f"--margin {options.margin:g}: must be a positive number")
    if problems:
        raise ConfigurationError(problems)
