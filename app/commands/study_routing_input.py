"""What ``app study routing`` looks into: a run with its held-out windows, and the runs that it is compared with."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from app.analysis.comparison import IGNORED, SEED, Run
from app.analysis.crystallize import tiles
from app.analysis.routing.routers import Windows
from app.commands import crystallize_input
from app.commands.compare import find_runs, read_run
from app.loading import load
from app.models import LanguageModel
from app.models.crystal import weights_digest
from app.run.configuration import read_config
from app.run.directory import RunDirectory, resolve_run
from app.run.errors import ConfigurationError
from app.run.launching import weights_of
from app.study.routing import Trained

SEQ_LEN = 256
#: who decides in place of a router or of the deviation: all that a control may differ in
CHOICES = ("model.init_args.bank_choice", "model.init_args.route_choice")
#: settings that decide nothing about a network
WITHOUT_EFFECT = ("checkpoint_every_n_steps", "trainer.log_every_n_steps", "trainer.callbacks")


class Looked(NamedTuple):
    """What is looked into.

    Attributes:
        network: in evaluation mode, on its device.
        text: name of what it reads.
        windows: held out.
        fingerprints: plain values that change when weights or text do.
    """

    network: LanguageModel
    text: str
    windows: Windows
    fingerprints: dict[str, Any]


def looked_into(
    run: str, checkpoint: str, device: str, trusted: Sequence[str], n_blocks: int, seq_len: int | None
) -> Looked:
    """A run's network and windows of its validation split, or of its task.

    Raises:
        ConfigurationError: no such run, or too little text.
    """
    directory, _ = resolve_run(run)
    section = read_config(directory.config).data.get("data") or {}
    if str(section.get("class_path", "")).rpartition(".")[2] == "SyntheticDataModule":
        return _of_task(run, directory, checkpoint, device, trusted, n_blocks)
    subject = crystallize_input.of_run(run, checkpoint, None, device, trusted)
    longest = subject.limit or (1 << 62)
    wanted = min(seq_len or subject.usual or SEQ_LEN, longest)
    n_windows = len(subject.evaluation) // (wanted + 1)
    if n_blocks > n_windows:
        raise ConfigurationError(
            f"--n_blocks {n_blocks}: the validation split has {len(subject.evaluation):,} tokens, {n_windows} windows "
            f"of {wanted}; ask for fewer or shorter ones"
        )
    blocks = tiles(subject.evaluation, n_blocks, wanted + 1)
    network: Any = subject.model
    windows = Windows(blocks[:, :-1].contiguous(), blocks[:, 1:].contiguous(), {})
    return Looked(network, subject.text, windows, subject.fingerprints)


def _of_task(
    run: str, directory: RunDirectory, checkpoint: str, device: str, trusted: Sequence[str], n_blocks: int
) -> Looked:
    """The validation windows of a synthetic task, the last and hardest of its sizes."""
    from datamodules import SyntheticDataModule

    network = load(weights_of(run, checkpoint), device, trusted).network
    module: Any = crystallize_input.datamodule(str(directory.config), trusted, SyntheticDataModule)
    evaluated = module.check_source()
    *_, batch = evaluated.loader(len(evaluated), 1, 0)
    if n_blocks > len(batch.idx):
        raise ConfigurationError(
            f"--n_blocks {n_blocks}: the validation set has {len(batch.idx)} windows of a size; ask for fewer"
        )
    labels: dict[str, Tensor] = {}
    for numbers in batch.slices[:n_blocks].unbind(-1):
        if (there := numbers[numbers >= 0]).numel():
            labels[evaluated.slice_names[int(there[0])].rpartition("_")[0]] = numbers
    windows = Windows(batch.idx[:n_blocks], batch.targets[:n_blocks], labels)
    fingerprints = {"model": weights_digest(network.state_dict()), "data": dict(module.fingerprint)}
    return Looked(network, f"task {module.fingerprint['task']}", windows, fingerprints)


def trained(runs: Sequence[str], controls: Sequence[str]) -> Trained:
    """What a run and its controls have come to.

    Args:
        runs: with the router, equal up to the seed.
        controls: runs, or folders of runs, that differ from those in who decides, and in the seed.

    Raises:
        ConfigurationError: naming every run that differs in more, is not finished, or decides as the run itself does.
    """
    notes: list[str] = []
    first, *more = _read(runs, notes)
    whose = _decides(first)
    problems = [f"{run.path}: {said}" for run in more if (said := _differs(run, first, {whose}))]
    own, by_choice = {first.seed: first}, dict[str, dict[Any, Run]]()
    for run in more:
        _count(own, run, notes)
    for run in _read(controls, notes):
        others = {"hash", "random", "position", "forward"} | {_decides(run)}
        if said := _differs(run, first, others - {whose}):
            problems.append(f"--controls {run.path}: {said}")
        else:
            _count(by_choice.setdefault(_decides(run), {}), run, notes)
    everything = [first, *more, *(run for of in by_choice.values() for run in of.values())]
    problems += [
        f"{run.path}: is {run.state}; finish it, or leave it out"
        for run in everything
        if run.state != "finished"
    ]
    problems += [
        f"{run.path}: has no validation loss; leave it out"
        for run in everything
        if "val/loss" not in run.figures()
    ]
    if problems:
        raise ConfigurationError(problems)
    return Trained(_losses(own), {name: _losses(of) for name, of in by_choice.items()}, notes)


def _read(names: Sequence[str], notes: list[str]) -> "list[Run]":
    directories, found = find_runs(list(names))
    notes += found
    runs = []
    for directory in directories:
        own: list[str] = []
        run = read_run(directory, own)
        if run is None:
            raise ConfigurationError(own)
        runs.append(run)
    return runs


def _decides(run: "Run") -> str:
    """Who chooses a token's bank or route."""
    return next((str(run.configuration[key]) for key in CHOICES if run.configuration.get(key)), "the router")


def _differs(run: "Run", first: "Run", may_decide: set[str]) -> str:
    """Why a run is none to compare with; empty where it is one."""
    ours, theirs = _settings(first), _settings(run)
    if keys := [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]:
        named = "; ".join(f"{key}: {theirs.get(key)} in place of {ours.get(key)}" for key in keys[:3])
        return f"differs from {first.path} in more than who decides ({named}); leave it out"
    if _decides(run) not in may_decide:
        return f"is decided by {_decides(run)}, not by {' or '.join(sorted(may_decide))}; leave it out"
    if run.last_step != first.last_step:
        return f"has come to step {run.last_step:,}, not {first.last_step:,}; train both equally long"
    return ""


def _settings(run: "Run") -> dict[str, Any]:
    """What decides a run's figures, but for its seed and who chooses: configuration and text."""
    configuration = {
        key: value
        for key, value in run.configuration.items()
        if key not in (SEED, *IGNORED, *CHOICES) and not key.startswith(WITHOUT_EFFECT)
    }
    text = {key: value for key, value in run.context.items() if key.startswith("data.") and "sha256" in key}
    return configuration | text


def _count(runs: "dict[Any, Run]", run: "Run", notes: list[str]) -> None:
    """Adds a run; a seed counts once."""
    if run.seed in runs:
        notes.append(f"{run.path}: seed {run.seed} once more; a seed counts once")
    runs.setdefault(run.seed, run)


def _losses(runs: "dict[Any, Run]") -> list[float]:
    return [run.figures()["val/loss"] for run in runs.values()]
