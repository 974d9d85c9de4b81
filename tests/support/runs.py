"""What a run has left, read and compared."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from app.analysis.figure_numbers import numbers_of
from app.run import checkpoint

#: events that belong to a launch and not to a step
OF_A_LAUNCH = ("_hparams_/", "custom_scalars__config__")
PLUGINS = ("scalars", "images", "text", "custom_scalars")


def last_checkpoint(run: Path) -> dict[str, Any]:
    """Content of the newest resume checkpoint; the file must match its sidecar."""
    return checkpoint.read(checkpoint.list_checkpoints(run / "checkpoints")[-1][1], require_sidecar=True)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The weights of the newest resume checkpoint."""
    return last_checkpoint(run)["state_dict"]


def saved_steps(run: Path, kind: str = "resume") -> list[int]:
    """Steps of the checkpoints of a kind."""
    return [step for step, _ in checkpoint.list_checkpoints(run / "checkpoints", kind)]


def curve(run: Path) -> list[dict[str, str]]:
    """Rows of the metrics without what depends on the clock."""
    with (run / "metrics.csv").open() as file:
        return [
            {key: value for key, value in row.items() if value and not key.startswith("speed/")}
            for row in csv.DictReader(file)
        ]


def details(run: Path) -> list[Any]:
    """Lines of per-layer values."""
    return [json.loads(line) for line in (run / "details.jsonl").read_text().splitlines()]


def health(run: Path) -> list[Any]:
    """What the watcher of the run's health has found."""
    return [json.loads(line) for line in (run / "health.jsonl").read_text().splitlines()]


def samples(run: Path) -> list[Any]:
    """The texts that were generated."""
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


def drawn(png: bytes) -> Any:
    """What a figure shows, without the run and the day that stand below it."""
    numbers = numbers_of(png)
    return (
        png
        if numbers is None
        else numbers | {"stamp": numbers["stamp"].rpartition(", step ")[2].split(",")[0]}
    )


def figures(run: Path) -> dict[str, Any]:
    """The newest picture of everything that watchers draw."""
    return {path.name: drawn(path.read_bytes()) for path in sorted((run / "figures").glob("*-*.png"))}


def events(run: Path) -> dict[str, list[tuple[int, Any]]]:
    """Step and content of every event that TensorBoard shows, by tag; of the layout of charts the newest one.

    Of speeds, which the clock makes, only the steps.
    """
    shown = EventAccumulator(str(run), size_guidance={}, tensor_size_guidance=dict.fromkeys(PLUGINS, 0))
    shown.Reload()
    found = {}
    for tag in shown.Tags()["tensors"]:
        listed = shown.Tensors(tag)[-1:] if tag.startswith(OF_A_LAUNCH) else shown.Tensors(tag)
        has_value = not tag.startswith(("watched speed", "_hparams_/"))
        found[tag] = [(e.step, _content(e.tensor_proto) if has_value else b"") for e in listed]
    return found


def _content(tensor: Any) -> Any:
    """An event's value; of a picture what it shows."""
    texts = list(tensor.string_val)
    if len(texts) == 3 and texts[2].startswith(b"\x89PNG"):
        return drawn(texts[2])
    return tensor.SerializeToString()


def entries(run: Path) -> dict[tuple[Any, ...], Any]:
    """Every single value that watchers have written, by file, step and its way down from the key."""

    def below(value: Any, place: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
        if isinstance(value, dict | list):
            for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
                yield from below(entry, (*place, key))
        else:
            yield place, value

    found: dict[tuple[Any, ...], Any] = {}
    for row in curve(run):
        stage = "val" if "val/loss" in row else "train"
        found |= {("metrics", row["step"], stage, key): float(text) for key, text in row.items()}
    for name, lines in (("details", details(run)), ("health", health(run)), ("samples", samples(run))):
        for line in lines:
            found |= below(line, (name, line["step"], line["key"]))
    return found


def validated_steps(run: Path) -> list[int]:
    """The step of every validation row."""
    return [int(row["step"]) for row in curve(run) if "val/loss" in row]


def status(run: Path) -> dict[str, Any]:
    """State, step, exit code, reason."""
    found = json.loads((run / "status.json").read_text())
    del found["time"]
    return found


def launches(run: Path) -> list[dict[str, Any]]:
    """The launches in the run's manifest."""
    return json.loads((run / "run.json").read_text())["launches"]


def copied(run: Path, to: Path) -> Path:
    """A copy of a run, to be damaged or resumed."""
    return Path(shutil.copytree(run, to))


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Modification time and content of every file below a folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def differences(ours: Any, theirs: Any, place: str = "") -> list[str]:
    """Every place at which two checkpoints or files are not bitwise the same."""
    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        same = ours.dtype == theirs.dtype and torch.equal(ours, theirs)
        return [] if same else [f"{place}: tensors differ"]
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = [f"{place}/{key}: only in one" for key in sorted({*ours} ^ {*theirs}, key=str)]
        common = [key for key in ours if key in theirs]
        return found + [d for key in common for d in differences(ours[key], theirs[key], f"{place}/{key}")]
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        if len(ours) != len(theirs):
            return [f"{place}: {len(ours)} entries, not {len(theirs)}"]
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [d for index, (a, b) in pairs for d in differences(a, b, f"{place}/{index}")]
    return [] if ours == theirs else [f"{place}: {ours!r}, not {theirs!r}"]


def _saved(run: Path) -> dict[str, Any]:
    """The newest checkpoint but for the number of loader workers, which changes nothing else in it."""
    content = last_checkpoint(run)
    content["archlab"]["configuration"]["data"]["init_args"].pop("num_workers")
    return content


def run_differences(run: Path, clean: Path) -> list[str]:
    """Where a run and a clean one differ in their last state, their curves, their details, their pictures or their best state."""
    found = differences(_saved(run), _saved(clean), "checkpoint")
    found += differences(curve(run), curve(clean), "metrics.csv")
    if (clean / "details.jsonl").exists():
        found += differences(details(run), details(clean), "details.jsonl")
    for name, lines in (("health.jsonl", health), ("samples.jsonl", samples)):
        if (clean / name).exists():
            found += differences(lines(run), lines(clean), name)
    found += differences(figures(run), figures(clean), "figures")
    return found + differences(saved_steps(run, "best"), saved_steps(clean, "best"), "best checkpoints")


def assert_same_run(run: Path, clean: Path, what: str = "") -> None:
    """The run ended exactly as the clean one did."""
    found = run_differences(run, clean)
    assert not found, "\n".join([what, f"{len(found)} differences between {run} and {clean}:", *found[:12]])
