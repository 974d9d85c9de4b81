"""``app crystallize``: what a trained network keeps of itself with the top key and a few directions."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands.parsing import CommandParser, add_network_options, check_device
from app.commands.picture import write_picture
from app.commands.stage_progress import StageProgress
from app.run.errors import ConfigurationError, ExitCode, IntegrityError
from app.run.paths import typed_path
from app.run.terminal import say

if TYPE_CHECKING:
    from app.commands.crystallize_input import Subject
    from app.models.crystal import ResidualBasis
    from app.run.lock import RunLock

RANKS = (1, 2, 4, 8, 16, 32)
SEQ_LEN = 256


def run(name: str, words: list[str]) -> int:
    """Measures, prints and writes ``crystallize.json``, ``crystallize.png`` and the basis, named by its layers.

    Args:
        name: ``crystallize``.
        words: the rest of the command line.
    """
    options = command_parser().parse_args(words)
    _check(options)
    try:
        _crystallize(options)
    except SystemExit:
        print("\nstopped; the same command goes on after the last finished stage", file=sys.stderr)
        raise
    return int(ExitCode.DONE)


def _crystallize(options: argparse.Namespace) -> None:
    from app.run.atomic import sweep_temporaries
    from app.run.lock import RunLock
    from app.run.storage import make_folder

    subject = _subject(options)
    plan = _Plan(options, subject)
    folder = make_folder(options.out_dir or subject.folder, "--out_dir")
    with RunLock(folder, "--out_dir") as lock:
        sweep_temporaries(folder)
        _measure(options, plan, folder, lock)


def _measure(options: argparse.Namespace, plan: "_Plan", folder: Path, lock: "RunLock") -> None:
    from app.analysis import crystallize
    from app.analysis.crystallize_figures import draw, mode_table, spectrum_table
    from app.commands.tables import console
    from app.run.atomic import write_json
    from app.run.partial_results import PartialResults

    subject = plan.subject
    done = PartialResults(folder / "stages.json", plan.settings, lock.check)
    stages = crystallize.stages(plan.ranks)
    basis_file = folder / basis_name(plan.layers)
    if done.dropped:
        say("note", f"the stages in {folder} are of other settings, weights or text; begun again")
    elif n_done := sum(name in done for name in ("basis", *(stage.name for stage in stages))):
        say("resumed", f"{n_done} of {len(stages) + 1} stages are done")
    say("model", f"{subject.name}, layers {', '.join(map(str, plan.layers))} of {plan.n_layers}")
    say(
        "text",
        f"{options.n_blocks} blocks of {plan.seq_len} validation tokens, {options.calibration_blocks} of the "
        "training split for calibration",
    )
    n_batches = -(-options.n_blocks // options.batch_size)
    with StageProgress((len(stages) + 1) * n_batches) as progress:
        basis = _basis(plan, done, basis_file, lock, lambda: progress.begin("basis", n_batches))
        losses = {}
        for stage in stages:
            if stage.name not in done:
                progress.begin(stage.label, 0)
                values = crystallize.measure(
                    subject.model, stage, plan.layers, plan.evaluation, basis, options.seed, options.batch_size,
                    progress.tick,
                )  # fmt: skip
                done.keep(stage.name, values.tolist())
            else:
                progress.skip(n_batches)
            losses[stage.name] = done[stage.name]
            if stage.name == "full":
                try:
                    crystallize.check_full(losses)
                except crystallize.FullModeError as error:
                    raise IntegrityError(f"{subject.name}: {error}") from error
    about = {
        **plan.settings,
        "ranks": plan.ranks,
        "batch_size": options.batch_size,
        "model": subject.name,
        "text": subject.text,
        "unit": subject.unit,
        "n_layers": plan.n_layers,
        "versions": _versions(),
    }
    summary = crystallize.summarise(losses, stages, basis, options.seed, about)
    lock.check()
    write_json(folder / "crystallize.json", summary)
    _, problem = write_picture(folder / "crystallize.png", lambda file: draw(summary, file))
    output = console()
    output.print("", mode_table(summary, output.width), "", spectrum_table(summary), "", sep="\n")
    say("verdict", summary["verdict"]["text"])
    say("written", str(folder / "crystallize.json"))
    for file in (*([] if problem else ["crystallize.png"]), basis_file.name):
        say("", str(folder / file))
    if problem:
        say("note", problem)


def basis_name(layers: Sequence[int]) -> str:
    """File name of the basis of these layers; runs of them in short, as in ``basis-layers-0-4to7.safetensors``."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    texts = (f"{run[0]}to{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"basis-layers-{'-'.join(texts)}.safetensors"


def _versions() -> dict[str, str]:
    """Of what the figures were computed with."""
    import torch

    from app import __version__

    found = {"archlab": __version__, "torch": str(torch.__version__)}
    if "transformers" in sys.modules:
        found["transformers"] = str(sys.modules["transformers"].__version__)
    return found


class _Plan:
    """The settings, completed from the network and checked against it."""

    def __init__(self, options: argparse.Namespace, subject: "Subject"):
        import torch

        from app.analysis.crystallize import tiles
        from app.models.crystal import attention_layers, deepest_quarter

        self.subject = subject
        self.batch_size: int = options.batch_size
        try:
            self.n_layers = len(attention_layers(subject.model))
        except ValueError as error:
            raise ConfigurationError(f"{options.model}: {error}") from error
        self.layers: list[int] = sorted(set(options.layers or deepest_quarter(self.n_layers)))
        limit = subject.limit or sys.maxsize
        self.seq_len: int = options.seq_len or min(SEQ_LEN, limit, subject.usual or SEQ_LEN)
        problems = [
            f"--layers {layer}: there is no such layer; {subject.name} has attention layers 0 … {self.n_layers - 1}"
            for layer in self.layers
            if not 0 <= layer < self.n_layers
        ]
        if self.seq_len > limit:
            problems.append(f"--seq_len {self.seq_len}: {subject.name} reads at most {limit} tokens")
        for flag, tokens, split in (
            ("n_blocks", subject.evaluation, "validation"),
            ("calibration_blocks", subject.calibration, "training"),
        ):
            if (wanted := getattr(options, flag)) * self.seq_len > len(tokens):
                problems.append(
                    f"--{flag} {wanted}: the {split} split has {len(tokens):,} tokens, {len(tokens) // self.seq_len} "
                    f"blocks of {self.seq_len}; ask for fewer or shorter ones"
                )
        if all(0 <= layer < self.n_layers for layer in self.layers):
            problems += self._width_problems(options)
        if problems:
            raise ConfigurationError(problems)
        self.ranks = sorted(set(options.ranks or (rank for rank in RANKS if rank <= self.d_head)))
        self.evaluation: torch.Tensor = tiles(subject.evaluation, options.n_blocks, self.seq_len)
        self.calibration: torch.Tensor = tiles(subject.calibration, options.calibration_blocks, self.seq_len)
        #: what every stage depends on; ranks are in the stages' names
        self.settings: dict[str, Any] = {
            "fingerprints": subject.fingerprints,
            "layers": self.layers,
            "n_blocks": options.n_blocks,
            "calibration_blocks": options.calibration_blocks,
            "seq_len": self.seq_len,
            "seed": options.seed,
            "device": options.device,
        }
        #: what the basis depends on
        self.calibration_settings: dict[str, Any] = {
            name: self.settings[name] for name in ("layers", "calibration_blocks", "seq_len", "device")
        }

    def _width_problems(self, options: argparse.Namespace) -> list[str]:
        """What the width of the heads rules out."""
        from app.models.crystal import head_shape

        try:
            self.d_head = min(head_shape(self.subject.model, layer)[1] for layer in self.layers)
        except ValueError as error:
            return [f"{options.model}: {error}"]
        problems = [
            f"--ranks {rank}: is above the head width, {self.d_head}"
            for rank in options.ranks or ()
            if rank > self.d_head
        ]
        n_calibration = options.calibration_blocks * self.seq_len
        if n_calibration < self.d_head:
            problems.append(
                f"--calibration_blocks {options.calibration_blocks}: {n_calibration} tokens are too few for heads of "
                f"width {self.d_head}; give at least as many, better ten times that"
            )
        return problems


def _subject(options: argparse.Namespace) -> "Subject":
    from app.commands import crystallize_input

    check_device(options.device)
    name: str = options.model
    if not name.startswith(crystallize_input.HUGGING_FACE):
        return crystallize_input.of_run(
            name, options.checkpoint, options.data, options.device, options.trust_imports
        )
    return crystallize_input.of_hugging_face(
        typed_path(name.removeprefix(crystallize_input.HUGGING_FACE)),
        options.data,
        options.device,
        (options.calibration_blocks, options.n_blocks),
        options.seq_len or SEQ_LEN,
        options.trust_imports,
    )


def _basis(plan: _Plan, done: Any, file: Path, lock: "RunLock", begin: Callable[[], None]) -> "ResidualBasis":
    """The basis of the residuals: the one of an earlier launch with the same settings, or made now."""
    from app.models.crystal import ResidualBasis, calibrate
    from app.run.atomic import sync_directory
    from app.run.storage import writing
    from app.run.strict_json import to_json

    begin()
    fingerprints = {**plan.subject.fingerprints, "calibration": plan.calibration_settings}
    if "basis" in done:
        try:
            found = ResidualBasis.load(file)
        except ValueError:
            pass  # lost or damaged: made again
        else:
            if found.fingerprints == json.loads(to_json(fingerprints)):  # as they come back from the file
                return found
    device = next(plan.subject.model.parameters()).device
    batches = (batch.to(device) for batch in plan.calibration.split(plan.batch_size))
    basis = calibrate(plan.subject.model, plan.layers, batches, fingerprints)
    lock.check()
    with writing(file):
        basis.save(file)
        sync_directory(file.parent)
    done.keep("basis", basis.n_tokens)
    return basis


def command_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "crystallize",
        description="Replaces the attention of chosen layers by the value of its top key plus a low-rank residual, and "
        "says what that costs. A killed measurement goes on after its last finished stage.",
    )
    add = parser.add_argument
    add(
        "run",
        metavar="RUN",
        nargs="?",
        type=typed_path,
        help="a run directory, or one of its checkpoint files",
    )
    add(
        "--model",
        help="instead of RUN: hf:PATH_OR_ID, a model of transformers: GPT-2, Llama, Mistral, Qwen 2 or 3",
    )
    add("--layers", type=int, nargs="+", help="attention layers, from 0 (default: the deepest quarter)")
    add("--ranks", type=int, nargs="+", help="ranks to measure (default: 1 2 4 8 16 32, to the head width)")
    add("--n_blocks", type=int, default=30, help="blocks of validation text (default 30)")
    add("--calibration_blocks", type=int, default=4, help="blocks of training text for the basis (default 4)")
    add(
        "--seq_len",
        type=int,
        help=f"tokens of a block (default {SEQ_LEN}, at most what the run was trained with)",
    )
    add("--seed", type=int, default=42, help="of the random bases and the bootstrap (default 42)")
    add("--batch_size", type=int, default=8, help="blocks read at a time (default 8)")
    add(
        "--data",
        type=typed_path,
        help="a configuration whose data is used, or a text file (default: the run's own data)",
    )
    add(
        "--out_dir",
        type=typed_path,
        help="folder of the results (default: RUN/crystallize, or crystallize-NAME)",
    )
    add_network_options(parser)
    return parser


def _check(options: argparse.Namespace) -> None:
    problems = []
    if (options.run is None) == (options.model is None):
        problems.append("app crystallize: name one network, as RUN or as --model hf:PATH_OR_ID")
    options.model = options.model or options.run
    for flag, low in (("n_blocks", 2), ("calibration_blocks", 1), ("seed", 0), ("batch_size", 1)):
        if getattr(options, flag) < low:
            problems.append(f"--{flag} {getattr(options, flag)}: must be {low} or more")
    if options.seq_len is not None and options.seq_len < 2:
        problems.append(f"--seq_len {options.seq_len}: must be 2 or more")
    for rank in options.ranks or ():
        if rank < 1:
            problems.append(f"--ranks {rank}: must be 1 or more")
    if problems:
        raise ConfigurationError(problems)
