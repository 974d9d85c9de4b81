"""Runs that somebody has changed: as they are then, and with every hash made anew."""

import contextlib
import csv
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from app.run import checkpoint
from app.run.running_hashes import RunningHash, entries_of
from app.run.saved_state import STATE_KEY
from tests.support import runs
from tests.support.application import Application


def kept(run: Path) -> list[Path]:
    """All checkpoints of a run, the newest resume checkpoint last."""
    return [
        path
        for kind in ("best", "resume")
        for _, path in checkpoint.list_checkpoints(run / "checkpoints", kind)
    ]


@contextlib.contextmanager
def opened(path: Path, rehashed: bool = True) -> Iterator[dict[str, Any]]:
    """The content of a checkpoint, to be changed; its sidecar is made anew, or stays."""
    sidecar = checkpoint.sidecar_path(path)
    before = sidecar.read_text()
    content = checkpoint.read(path)
    yield content
    checkpoint.write(content, path)
    if not rehashed:
        sidecar.write_text(before)


@contextlib.contextmanager
def rows(run: Path) -> Iterator[list[dict[str, str]]]:
    """The rows of a run's table, to be changed."""
    with (run / "metrics.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    columns = list(found[0])
    yield found
    with (run / "metrics.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(found)


@contextlib.contextmanager
def parsed(path: Path) -> Iterator[dict[str, Any]]:
    """A file of JSON, to be changed."""
    content = json.loads(path.read_text())
    yield content
    path.write_text(json.dumps(content, indent=2))


def at_step(found: list[dict[str, str]], step: int, key: str) -> dict[str, str]:
    return next(row for row in found if row["step"] == str(step) and row[key])


def rehash(run: Path) -> None:
    """Makes every hash of a run anew: running ones, those of configurations, sidecars."""
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(run.glob("config-*.yaml"))]
    with parsed(run / "run.json") as manifest:
        for launch, digest in zip(manifest["launches"], digests, strict=True):
            launch["configuration_sha256"] = digest
    for path in kept(run):
        with opened(path) as content:
            for name, described in content[STATE_KEY]["running_hashes"].items():
                running = RunningHash()
                running.add(entry for _, entry in list(entries_of(run / name))[: described["entries"]])
                described.update(running.described())


def configured(run: Path, change: Callable[[dict[str, Any]], None], everywhere: bool) -> None:
    """Changes the configuration in ``config.yaml``, or everywhere that it stands."""
    for path in [run / "config.yaml", *(sorted(run.glob("config-*.yaml")) if everywhere else ())]:
        content = yaml.safe_load(path.read_text())
        change(content)
        path.write_text(yaml.safe_dump(content, sort_keys=False))
    if everywhere:
        with parsed(run / "run.json") as manifest:
            for launch in manifest["launches"]:
                change(launch["configuration"])
        for path in kept(run):
            with opened(path) as content:
                change(content[STATE_KEY]["configuration"])


class Tampering(NamedTuple):
    """A way to change a run.

    Attributes:
        change: takes the run and whether it is to be consistent in itself afterwards.
        as_is: what the refusal of the run as it is says.
        rehashed: what that of the consistent one says.
    """

    change: Callable[[Path, bool], None]
    as_is: str
    rehashed: str


def _first_weight(content: dict[str, Any]) -> torch.Tensor:
    return next(x for x in content["state_dict"].values() if x.is_floating_point() and x.dim() == 2)


def weight(run: Path, rehashed: bool) -> None:
    with opened(kept(run)[-1], rehashed) as content:
        _first_weight(content)[0, 0] += 1e-6


def moment(run: Path, rehashed: bool) -> None:
    with opened(kept(run)[0], rehashed) as content:
        content["optimizer_states"][0]["state"][0]["exp_avg"].view(-1)[3] *= 1.0001


def metric(run: Path, rehashed: bool) -> None:
    with rows(run) as found:
        row = at_step(found, 15, "train/loss")
        row["train/loss"] = repr(float(row["train/loss"]) - 0.01)


def learning_rate_of_a_row(run: Path, rehashed: bool) -> None:
    with rows(run) as found:
        at_step(found, 10, "train/lr")["train/lr"] = "0.0017"


def validation(run: Path, rehashed: bool) -> None:
    """A better loss, in the table and, where it has to fit, in everything that repeats it."""
    with rows(run) as found:
        row = at_step(found, 20, "val/loss")
        before, after = float(row["val/loss"]), float(row["val/loss"]) - 0.005
        row["val/loss"] = repr(after)
    if not rehashed:
        return
    with parsed(run / "summary.json") as summary:
        summary.update({key: after for key, value in summary.items() if value == before})
    for path in kept(run):
        with opened(path) as content:
            last = content[STATE_KEY]["last_validation"]
            last.update({key: after for key, value in last.items() if value == before})


def deleted_row(run: Path, rehashed: bool) -> None:
    with rows(run) as found:
        found.remove(at_step(found, 25, "train/loss"))


def configuration(run: Path, rehashed: bool) -> None:
    def change(content: dict[str, Any]) -> None:
        content["model"]["init_args"]["weight_decay"] = 0.05

    configured(run, change, rehashed)


def seed(run: Path, rehashed: bool) -> None:
    configured(run, lambda content: content.update(seed=8), rehashed)
    for path in kept(run) if rehashed else ():
        with opened(path) as content:
            content[STATE_KEY]["seed"] = 8


def swapped_checkpoint(run: Path, rehashed: bool) -> None:
    """The newest two have each other's content."""
    older, newer = kept(run)[-2:]
    if not rehashed:
        aside = run / "aside"
        older.rename(aside)
        newer.rename(older)
        aside.rename(newer)
        return
    states = {path: checkpoint.read(path) for path in (older, newer)}
    for path, other in ((older, newer), (newer, older)):
        content = dict(states[other])
        content[STATE_KEY] = states[path][STATE_KEY]
        checkpoint.write(content, path)


def more_steps(run: Path, rehashed: bool) -> None:
    """The run claims to have made more steps than it has."""
    newest = kept(run)[-1]
    if rehashed:
        with opened(newest) as content:
            content[STATE_KEY]["step"] += 5
            content["global_step"] += 5
    further = newest.with_name("resume-000045.ckpt")
    shutil.move(newest, further)
    sidecar = checkpoint.sidecar_path(newest)
    checkpoint.sidecar_path(further).write_text(sidecar.read_text().replace(newest.name, further.name))
    sidecar.unlink()
    with parsed(run / "status.json") as status, parsed(run / "summary.json") as summary:
        status["step"] = summary["step"] = 45
    with rows(run) as found:
        found += [row | {"step": "45"} for row in found if row["step"] == "40"]


def text(run: Path, rehashed: bool) -> None:
    """One word in place of another, all through the text."""
    from datamodules import CharDataModule

    with (run / "config.yaml").open() as file:
        options = yaml.safe_load(file)["data"]["init_args"]
    path = Path(options["path"])
    path.write_text(path.read_text().replace("dog", "god"))
    if not rehashed:
        return
    fingerprint = CharDataModule(**options).fingerprint
    with parsed(run / "run.json") as manifest:
        for launch in manifest["launches"]:
            launch["data"] = fingerprint
    for checkpoint_path in kept(run):
        with opened(checkpoint_path) as content:
            content[STATE_KEY]["data"] = fingerprint


TAMPERINGS = {
    "a weight": Tampering(
        weight, "resume-000040.ckpt: is damaged", "resume-000040.ckpt: state_dict.network."
    ),
    "a moment": Tampering(
        moment, ".ckpt: is damaged", "optimizer_states.0.state.0.exp_avg is not what its steps"
    ),
    "a metric": Tampering(
        metric, "metrics.csv: what it has up to step", "metrics.csv, step 15: train/loss: "
    ),
    "a rate": Tampering(
        learning_rate_of_a_row,
        "metrics.csv: what it has up to step",
        "metrics.csv, step 10: train/lr: 0.0017 is",
    ),
    "a validation": Tampering(
        validation, "metrics.csv: what it has up to step", "metrics.csv, step 20: val/loss: "
    ),
    "a row": Tampering(
        deleted_row,
        "metrics.csv: the row of step 25 is missing",
        "metrics.csv: the row of step 25 is missing",
    ),
    "a configuration": Tampering(
        configuration,
        "config.yaml: model.init_args.weight_decay is 0.05, not 0.1",
        "metrics.csv, step 5: train/loss: ",
    ),
    "a seed": Tampering(seed, "config.yaml: seed is 8, not 7", "metrics.csv, step 1: train/loss: "),
    "a checkpoint": Tampering(
        swapped_checkpoint, "resume-000040.ckpt: is damaged", "resume-000030.ckpt: state_dict."
    ),
    "steps": Tampering(more_steps, "is of step 40", "step 45 has a row, and the run has 40 steps"),
    "a text": Tampering(text, "data: sha256 is ", "metrics.csv, step 1: train/loss: "),
}


def not_refused(application: Application, run: Path, name: str, rehashed: bool) -> str:
    """Changes a copy of a run beside it and lets it be verified.

    Args:
        application: that verifies.
        run: an honest one, of 40 steps as :func:`tests.support.tiny.tilelli` makes them.
        name: one of :data:`TAMPERINGS`.
        rehashed: whether the copy is consistent in itself; all of its steps are then made again.

    Returns:
        What was not as it has to be; empty where the copy is refused with exit code 4 and the right words.
    """
    tampered = TAMPERINGS[name]
    copy = runs.copied(run, run.with_name(name.replace(" ", "-")))
    tampered.change(copy, rehashed)
    if rehashed:
        rehash(copy)
    ended = application.run("verify", copy, *(("--all",) if rehashed else ()), cwd=run.parent)
    said = tampered.rehashed if rehashed else tampered.as_is
    print(f"{name}: exit {ended.code}: {ended.out.splitlines()[:1]}")
    return "" if ended.code == 4 and said in ended.out else f"{name}: {said!r} is not in {ended}"
