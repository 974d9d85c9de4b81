"""Loggers that write into one run directory and go on in the same files when the run is resumed.

Both count in completed optimizer steps, act on rank zero only, need no collective for any property and
drop what lies after the resume point, so that a resumed run's files are those of an uninterrupted one.
``epoch``, which the framework adds to every dictionary of ``self.log``, is left out: training is one stream.
"""

import contextlib
import hashlib
import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.summary import text as text_summary

from app.run.atomic import write_bytes
from app.run.errors import StorageError
from app.run.running_hashes import LINES, TABLE
from app.run.storage import writing
from app.training.logging.event_file import EventWriter
from app.training.logging.layout import custom_scalars
from app.training.logging.step_files import (
    KeyedLines,
    MetricsTable,
    read_rows,
    read_training_row,
)
from app.training.logging.tags import Changing, tag_of

FRAMEWORK_KEYS = frozenset({"epoch", "step"})


#: what the table of hyper-parameters shows of a run: the newest value of each
OUTCOMES = ("val/loss", "val/bpb", "train/loss")
#: what it shows of a run first: TensorBoard sorts by name, capitals before small letters, and marks the first five
FIRST = ("model", "seed", "data", "learning_rate", "max_steps")
MAX_FIGURE_NAME = 180  # characters of a file's name, of which most file systems take 255 bytes


class RunLogger(Logger):
    """Base of the loggers of one run directory.

    Args:
        run_dir: the directory.
    """

    def __init__(self, run_dir: str | Path):
        super().__init__()
        self._run_dir = Path(run_dir)

    @property
    def name(self) -> str:
        """Empty: the directory is the run's and not the logger's."""
        return ""

    @property
    def version(self) -> str:
        """Empty: a run has one directory for all its launches."""
        return ""

    @property
    def save_dir(self) -> str:
        return str(self._run_dir)

    @property
    def log_dir(self) -> str:
        return str(self._run_dir)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Writes nothing: the configuration is the run directory's ``config.yaml``."""

    def flush(self) -> None:
        """Hands on what is held back."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes what :meth:`flush` does not."""

    @rank_zero_only
    def save(self) -> None:
        """The same as :meth:`flush`."""
        self.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes what is still to be written; later numbers are still accepted.

        Args:
            status: how the run ended. What has ended one that did not succeed is not to be hidden by a full disk.
        """
        with contextlib.nullcontext() if status == "success" else contextlib.suppress(StorageError):
            self.flush()
            self.close()


class TensorBoardRunLogger(RunLogger):
    """TensorBoard events directly in the run directory, without versions and without ``hparams.yaml``.

    The keys that are logged become a layout of custom charts, see :func:`app.training.logging.layout.custom_scalars`.
    Tags are those of :func:`app.training.logging.tags.tag_of`; what has never changed has no curve.

    Args:
        run_dir: directory of the event files.
        resume_step: the step that the run goes on from; TensorBoard then hides every event of a later step
            that the interrupted launch wrote. None for a new run.
        owes_validation: whether the validation after that step is made again; its numbers, figures and texts are
            then hidden too.

    Raises:
        StorageError: from every call that writes, when the events cannot be written.
    """

    def __init__(self, run_dir: str | Path, resume_step: int | None = None, owes_validation: bool = False):
        super().__init__(run_dir)
        # The purge drops events whose step is not below the given one. TensorBoard takes the first purge that it
        # meets for the beginning of the run and drops nothing, so that the first launch has one too.
        self._purge_step = 0 if resume_step is None else resume_step + (not owes_validation)
        keys: list[str] = []
        self._purged: dict[str, float] = {}
        self._changing = Changing()
        if resume_step is not None:
            # A purge knows steps only: what it takes of the last step's training numbers is written again.
            table = self._run_dir / "metrics.csv"
            columns, purged = read_training_row(table, resume_step if owes_validation else None)
            self._changing = Changing(read_rows(table, resume_step))
            self._purged = {key: number for key, number in purged.items() if self._changing.has(key)}
            keys = [key for key in columns if self._changing.has(key)]
        self._resume_step = resume_step
        self._keys: dict[str, None] = dict.fromkeys(keys)
        self._newest_key_step = resume_step if keys else None  # of a key that this launch's layout lacks
        self._experiment: EventWriter | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> EventWriter:
        """Torch's ``SummaryWriter`` for whatever else a callback wants to show."""
        if self._experiment is None:
            self._experiment = EventWriter(self.log_dir, self._purge_step)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Writes one event that holds all the numbers.

        TensorBoard's own ``add_scalar`` makes an event of each, and its queue of ten then keeps the training loop
        waiting for the thread that writes them.

        Args:
            metrics: key to number.
            step: completed optimizer steps.
        """
        logged = {key: number for key, number in metrics.items() if key not in FRAMEWORK_KEYS}
        numbers = self._changing.of(logged)
        if self._newest_key_step is not None and step != self._newest_key_step:
            self._write_layout()  # the step that brought new keys is over
        if not numbers.keys() <= self._keys.keys():
            self._keys |= dict.fromkeys(numbers)
            self._newest_key_step = step
        if numbers:
            self._add(_scalars(numbers), step)

    def _add(self, summary: Summary, step: int | None = None) -> None:
        if self._purged:
            purged, self._purged = _scalars(self._purged), {}
            self.experiment.file_writer.add_summary(purged, self._resume_step)
        self.experiment.file_writer.add_summary(summary, step)

    def _write_layout(self) -> None:
        self._newest_key_step = None
        # As they were first logged, which is the same whatever the launches; when one began to change may not be.
        self.experiment.add_custom_scalars(
            custom_scalars(key for key in self._changing.seen if key in self._keys)
        )

    @rank_zero_only
    def log_configuration(self, configuration: Mapping[str, Any]) -> None:
        """Enters the run in the table of hyper-parameters, with the newest of :data:`OUTCOMES`.

        Of a resumed run the table shows the configuration of the first launch.

        Args:
            configuration: name to plain value.
        """
        # Whole numbers as texts, for TensorBoard writes 16 as 16.000.
        plain = {
            key.capitalize() if key in FIRST else key: value if isinstance(value, float) else str(value)
            for key, value in configuration.items()
        }
        experiment, start, _ = hparams(plain, dict.fromkeys(OUTCOMES, 0.0))
        for summary in (experiment, start):
            self._add(summary)

    @rank_zero_only
    def log_text(self, tag: str, text: str, step: int) -> None:
        """Writes a text event that is shown as it is, with its line breaks and free of markup.

        Args:
            tag: key of the text, such as ``samples/0``.
            text: any text.
            step: completed optimizer steps.
        """
        # Four spaces make a preformatted block of the Markdown that TensorBoard renders.
        summary = text_summary(tag, "\n".join("    " + line for line in text.split("\n")))
        summary.value[0].tag = tag  # without what torch adds to it
        self._add(summary, step)

    @rank_zero_only
    def log_figure(self, tag: str, png: bytes, step: int) -> None:
        """Writes an image event.

        Args:
            tag: key of the figure, such as ``depth/pathway_share``.
            png: the file's content.
            step: completed optimizer steps.
        """
        width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))  # of the header
        image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
        self._add(Summary(value=[Summary.Value(tag=tag_of(tag), image=image)]), step)

    @rank_zero_only
    def flush(self) -> None:
        """Puts every event so far on the disk."""
        if self._newest_key_step is not None:
            self._write_layout()
        if self._experiment is not None:
            self._experiment.flush()

    @rank_zero_only
    def close(self) -> None:
        """Closes the file; numbers that come later begin another one."""
        if self._experiment is not None:
            self._experiment.close()


class RunFilesLogger(RunLogger):
    """``metrics.csv``, ``details.jsonl``, ``health.jsonl``, ``samples.jsonl`` and figures in the run directory.

    The table has at most one row per step and stage (training, ``val/``, ``test/``), with numbers that read
    back exactly; the lines hold per-layer values, what a watcher found wrong, or generated texts, one line per
    step and key; ``figures/`` has the newest picture of each tag.

    Every call writes at once, so a killed process loses no complete row; :meth:`flush` also survives the
    machine. Whoever writes a checkpoint calls :meth:`flush` first: then no row of a step up to a checkpoint's
    can be missing after a resume from it.

    Args:
        run_dir: directory of the files; each is made when it is first written to.
        resume_step: the step that the run goes on from: rows and lines of later steps, and whatever a crash
            left half-written, are dropped before the first write. None keeps every complete row.

    Raises:
        ValueError: at the first write, if ``metrics.csv`` is there and is no table of steps.
        StorageError: from every call that writes, when a file cannot be written.
    """

    def __init__(self, run_dir: str | Path, resume_step: int | None = None, columns: Sequence[str] = ()):
        super().__init__(run_dir)
        self._columns = columns
        self._resume_step = resume_step
        self._open: dict[str, MetricsTable | KeyedLines] = {}

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds numbers to the row of their step and stage.

        Args:
            metrics: key to number; tensors of one element are read.
            step: completed optimizer steps.

        Raises:
            ValueError: without a step.
        """
        if step is None:
            raise ValueError(
                "metrics.csv needs the number of completed optimizer steps; pass step=trainer.global_step"
            )
        numbers = {key: _number(value) for key, value in metrics.items() if key not in FRAMEWORK_KEYS}
        if not numbers:
            return
        self._file(TABLE).add(step, numbers)

    @rank_zero_only
    def log_details(self, details: Mapping[str, Any], step: int) -> None:
        """Adds one line per key.

        Args:
            details: key to nested lists of numbers.
            step: completed optimizer steps.
        """
        self._file("details.jsonl").put(step, {key: {"values": values} for key, values in details.items()})

    @rank_zero_only
    def log_health(self, findings: Mapping[str, Mapping[str, Any]], step: int) -> None:
        """Adds one line per finding; without any, only makes the file and drops what lies after the resume point.

        Args:
            findings: key of a finding to its plain fields.
            step: completed optimizer steps.
        """
        health = self._file("health.jsonl")
        if findings:
            health.put(step, findings)

    @rank_zero_only
    def log_figure(self, tag: str, png: bytes, step: int) -> None:
        """Replaces the file of a figure, see :func:`figure_name`.

        Args:
            tag: key of the figure, such as ``depth/pathway_share``.
            png: the file's content.
            step: completed optimizer steps; the file is the newest one whatever it is.
        """
        picture = self._run_dir / "figures" / figure_name(tag)
        with writing(picture):
            picture.parent.mkdir(exist_ok=True)
        write_bytes(picture, png)

    @rank_zero_only
    def log_text(self, tag: str, text: str, step: int) -> None:
        """Adds a line to ``samples.jsonl``.

        Args:
            tag: key of the text, such as ``samples/0``.
            text: any text.
            step: completed optimizer steps.
        """
        self._file("samples.jsonl").put(step, {tag: {"text": text}})

    @rank_zero_only
    def flush(self) -> None:
        """Puts every row and line so far on the disk."""
        for file in self._open.values():
            file.sync()

    @rank_zero_only
    def running_hashes(self) -> dict[str, dict[str, Any]]:
        """By file, what a checkpoint carries of the rows and lines that were settled before it; none of empty ones."""
        for name in (TABLE, *LINES):  # what an earlier launch has written counts too
            if (self._run_dir / name).exists():
                with contextlib.suppress(ValueError):  # no table of steps: who writes to it says so
                    self._file(name)
        files = ((name, file.running_hash) for name, file in self._open.items())
        return {name: running.described() for name, running in sorted(files) if running.entries}

    def _file(self, name: str) -> Any:
        """One of the files, which is made where it is not there."""
        if name not in self._open:
            path = self._run_dir / name
            self._open[name] = (
                MetricsTable(path, self._resume_step, self._columns)
                if name == TABLE
                else KeyedLines(path, self._resume_step)
            )
        return self._open[name]


def figure_name(tag: str) -> str:
    """``<tag>.png`` with ``-`` for a slash; where other characters change too, or it is too long, also a hash.

    So that no figure takes the place of another one whose tag differs in more than a slash.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", tag)
    if name != tag.replace("/", "-") or len(name) > MAX_FIGURE_NAME:
        name = (
            f"{name[:MAX_FIGURE_NAME]}-{hashlib.sha256(tag.encode(errors='surrogatepass')).hexdigest()[:8]}"
        )
    return f"{name}.png"


def _scalars(numbers: Mapping[str, float]) -> Summary:
    return Summary(
        value=[Summary.Value(tag=tag_of(key), simple_value=float(value)) for key, value in numbers.items()]
    )


def _number(value: Any) -> str:
    """A number as text that reads back exactly; numpy scalars and tensors of one element count as numbers."""
    return str(int(value)) if isinstance(value, Integral) else repr(float(value))
