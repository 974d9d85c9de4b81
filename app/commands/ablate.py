"""``app ablate``: what a trained network loses when a part of it is taken away."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.analysis.ablation_kinds import HOWS, KINDS
from app.commands.parsing import CommandParser, add_network_options, check_device
from app.commands.picture import write_picture
from app.commands.stage_progress import StageProgress
from app.run.errors import ConfigurationError, ExitCode
from app.run.paths import typed_path
from app.run.terminal import say

if TYPE_CHECKING:
    from app.analysis.ablation import Ablation
    from app.commands.crystallize_input import Subject
    from app.run.lock import RunLock

SEQ_LEN = 256
N_BLOCKS, CALIBRATION_BLOCKS, BATCH_SIZE = 30, 8, 8
FOLDER = "ablate"


def run(name: str, words: list[str]) -> int:
    """Measures, prints and writes ``ablate.json`` and ``ablate.png``.

    Args:
        name: ``ablate``.
        words: the rest of the command line.
    """
    options = command_parser().parse_args(words)
    _check(options)
    try:
        _ablate(options)
    except SystemExit:
        print("\nstopped; the same command goes on after the last finished ablation", file=sys.stderr)
        raise
    return int(ExitCode.DONE)


def _ablate(options: argparse.Namespace) -> None:
    from app.commands import crystallize_input
    from app.run.atomic import sweep_temporaries
    from app.run.lock import RunLock
    from app.run.storage import make_folder

    check_device(options.device)
    subject = crystallize_input.of_run(
        options.run, options.checkpoint, options.data, options.device, options.trust_imports
    )
    if options.names:
        _print_names(subject)
        return
    plan = _Plan(options, subject)
    folder = make_folder(options.out_dir or subject.folder.with_name(FOLDER), "--out_dir")
    with RunLock(folder, "--out_dir") as lock:
        sweep_temporaries(folder)
        _measure(options, plan, folder, lock)


def _print_names(subject: "Subject") -> None:
    from app.commands.tables import console, print_table

    network: Any = subject.model
    rows = [[name, " × ".join(map(str, shape))] for name, shape in network.activations().items()]
    print_table(console(), ("activation", "shape (B windows, T tokens)"), rows, left=(0, 1))


class _Plan:
    """The windows and the ablations, checked against the network."""

    def __init__(self, options: argparse.Namespace, subject: "Subject"):
        from app.analysis import ablation
        from app.analysis.crystallize import tiles

        self.subject = subject
        self.seq_len = min(options.seq_len or subject.usual or SEQ_LEN, subject.limit or sys.maxsize)
        problems = [
            f"--{flag} {wanted}: the {split} split has {len(tokens):,} tokens, {len(tokens) // self.seq_len} windows "
            f"of {self.seq_len}; ask for fewer or shorter ones"
            for flag, wanted, tokens, split in (
                ("n_blocks", options.n_blocks, subject.evaluation, "validation"),
                ("calibration_blocks", options.calibration_blocks, subject.calibration, "training"),
            )
            if wanted * self.seq_len > len(tokens)
        ]
        network: Any = subject.model
        if options.at and options.at not in (known := network.activations()):
            from app.run.configuration import nearest

            meant = nearest(options.at, known)
            hint = f"did you mean {meant}? " if meant else ""
            problems.append(
                f"--at {options.at}: this network has no such activation; {hint}app ablate --names lists them"
            )
        if problems:
            raise ConfigurationError(problems)
        self.windows = tiles(subject.evaluation, options.n_blocks, self.seq_len)
        calibration = tiles(subject.calibration, options.calibration_blocks, self.seq_len)
        names = ablation.averaged(network)
        if options.at:
            names = [options.at] if options.how == "mean" else []
        try:
            means = ablation.means_of(network, names, calibration, options.batch_size)
        except ValueError as error:
            raise ConfigurationError(f"--at {error}") from error
        self.ablations: list[Ablation] = (
            [ablation.of_activation(network, options.at, options.how, means, options.seed)]
            if options.at
            else ablation.plan(network, means, options.seed)
        )
        if options.kinds:
            offered = {each.kind for each in self.ablations}
            if absent := [kind for kind in options.kinds if kind not in offered]:
                raise ConfigurationError(
                    f"--kinds {absent[0]}: {subject.name} has none; it has {', '.join(sorted(offered))}"
                )
            self.ablations = [each for each in self.ablations if each.kind in options.kinds]
        self.settings = {
            "fingerprints": subject.fingerprints,
            "n_blocks": options.n_blocks,
            "calibration_blocks": options.calibration_blocks,
            "seq_len": self.seq_len,
            "batch_size": options.batch_size,
            "seed": options.seed,
            "device": options.device,
        }


def _measure(options: argparse.Namespace, plan: _Plan, folder: Path, lock: "RunLock") -> None:
    from app import __version__
    from app.analysis import ablation
    from app.analysis.ablation_figure import HEADER, draw, table_rows
    from app.commands.tables import console, print_table
    from app.run.atomic import write_json
    from app.run.partial_results import PartialResults

    subject = plan.subject
    network: Any = subject.model
    stem = "ablate" if options.at is None else f"ablate-{options.at}-{options.how}"
    done = PartialResults(folder / "stages.json", plan.settings, lock.check)
    if done.dropped:
        say("note", f"the ablations in {folder} are of other settings, weights or text; begun again")
    say("model", f"{subject.name}, {len(plan.ablations)} ablations")
    say("text", f"{options.n_blocks} windows of {plan.seq_len} validation tokens")
    stages: list[tuple[str, Ablation | None]] = [("the network as it is", None)]
    stages += [(each.name, each) for each in plan.ablations]
    n_batches = -(-options.n_blocks // options.batch_size)
    before = ""
    with StageProgress(len(stages) * n_batches) as progress:
        for name, each in stages:
            where = name if each is None else ablation.place({"layer": each.layer}).lower()
            if where != before:
                progress.begin(where, 0)
            before = where
            if name in done:
                progress.skip(n_batches)
                continue
            values = ablation.measure(
                network,
                each,
                plan.windows,
                options.batch_size,
                progress.tick,
            )
            done.keep(name, values.tolist())
    about = {
        **plan.settings,
        "model": subject.name,
        "text": subject.text,
        "unit": subject.unit,
        "versions": {"archlab": __version__, "torch": _torch_version()},
    }
    losses = {each.name: done[each.name] for each in plan.ablations}
    summary = ablation.summarise(done[stages[0][0]], losses, plan.ablations, options.seed, about)
    lock.check()
    write_json(folder / f"{stem}.json", summary)
    _, problem = write_picture(folder / f"{stem}.png", lambda file: draw(summary, file))
    rows, n_left = table_rows(summary["ablations"])
    print()
    if rows:
        print_table(console(), HEADER, rows, left=(0, 1))
    say(
        "loss",
        f"{summary['baseline']['loss']:.4f} nats per {subject.unit} as it is; Δ: above that, paired by window",
    )
    say("verdict", summary["verdict"])
    say("written", str(folder / f"{stem}.json"))
    if n_left:
        say("note", f"{n_left} more ablations are in {stem}.json")
    if problem:
        say("note", problem)
    else:
        say("picture", str(folder / f"{stem}.png"))


def _torch_version() -> str:
    import torch

    return str(torch.__version__)


def command_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "ablate",
        description="Takes parts of a network away, one after the other, and says what each costs on held-out text, in "
        "nats per token with a 95 % interval: pathways, banks, routes, attention and its heads, feed-forward networks, "
        "whole blocks, quantisation. A killed measurement goes on after its last finished ablation.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", type=typed_path, help="a run directory, or one of its checkpoint files")
    add("--kinds", nargs="+", choices=KINDS[:-1], metavar="KIND", help="only these: " + ", ".join(KINDS[:-1]))
    add("--at", metavar="NAME", help="instead, one activation by name, such as blocks.2.paths.sparse")
    add("--with", dest="how", choices=HOWS, help="what to put in its place (default zero)")
    add("--names", action="store_true", help="list the activations of the network and their shapes")
    add("--n_blocks", type=int, default=N_BLOCKS, help=f"windows of validation text (default {N_BLOCKS})")
    add(
        "--calibration_blocks",
        type=int,
        default=CALIBRATION_BLOCKS,
        help=f"windows of training text for means (default {CALIBRATION_BLOCKS})",
    )
    add("--seq_len", type=int, help="tokens of a window (default: what the run was trained with)")
    add("--batch_size", type=int, default=BATCH_SIZE, help=f"windows read at a time (default {BATCH_SIZE})")
    add("--seed", type=int, default=42, help="of shuffles and bootstrap (default 42)")
    add(
        "--data",
        type=typed_path,
        help="a configuration whose data is used, or a text file (default: the run's own)",
    )
    add("--out_dir", type=typed_path, help=f"folder of the results (default: RUN/{FOLDER})")
    add_network_options(parser)
    return parser


def _check(options: argparse.Namespace) -> None:
    problems = [
        f"--{flag} {getattr(options, flag)}: must be {low} or more"
        for flag, low in (
            ("n_blocks", 2),
            ("calibration_blocks", 1),
            ("batch_size", 1),
            ("seed", 0),
            ("seq_len", 2),
        )
        if getattr(options, flag) is not None and getattr(options, flag) < low
    ]
    if options.how and not options.at:
        problems.append(f"--with {options.how}: belongs to --at NAME; app ablate RUN --names lists the names")
    if options.at and options.kinds:
        problems.append(f"--at {options.at}: is one ablation; leave --kinds out")
    if problems:
        raise ConfigurationError(problems)
    options.how = options.how or "zero"
