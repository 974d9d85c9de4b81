"""One run of a study: where it lies, how far it is, and whether what lies there is its own."""

import csv
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from app.run.atomic import write_json
from app.run.bounded import read_json
from app.run.directory import RunDirectory
from app.run.errors import ConfigurationError
from app.run.leftovers import foreign
from app.run.lock import is_held
from app.run.manifest import launches_of
from app.run.status import read_status
from app.run.storage import make_folder
from app.study.plan import Row

State = Literal["waiting", "running", "finished", "stopped", "failed"]
#: what limits the threads of a process; it decides the order of sums, and with it the bits
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Standing(NamedTuple):
    """How far a run is.

    Attributes:
        state: what it does, or how its last launch ended.
        step: completed optimizer steps.
        exit_code: of the last launch; None where it runs, was killed or never began.
        reason: one line; empty where there is nothing to say.
    """

    state: State
    step: int = 0
    exit_code: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        row: whose configuration it has.
        seed: of it.
        output: folder of the study.
        values: options beside those of the row, such as tuned ones.
        kind: ``seed``, or the name of a point of the tuning grid.
        threads: of the process.
        trusted: import prefixes of the user's own.
    """

    row: Row
    seed: int
    output: Path
    values: Mapping[str, Any]
    kind: str = "seed"
    threads: int = 1
    trusted: Sequence[str] = ()

    @property
    def name(self) -> str:
        """Unique in the study: ``gpt/seed_1``."""
        return f"{self.row.name}/{self.kind}_{self.seed}"

    @property
    def run(self) -> RunDirectory:
        """Folder of the run."""
        return RunDirectory(self.output / "runs" / self.row.name / f"{self.kind}_{self.seed}")

    @property
    def log(self) -> Path:
        """What its launches have printed."""
        return self.output / "jobs" / f"{self.row.name}.{self.kind}_{self.seed}.log"

    @property
    def record(self) -> Path:
        """What it was launched as, to know it again."""
        return self.log.with_suffix(".json")

    @property
    def command(self) -> list[str]:
        """``app fit`` with all its words; the same for the first launch and for going on."""
        trust = [word for prefix in self.trusted for word in ("--trust_imports", prefix)]
        words = [*self.row.words(self.seed, self.values), *trust]
        return [*words, "--run_dir", str(self.run), "--resume", "auto"]

    @property
    def process(self) -> list[str]:
        """The process to start."""
        return [sys.executable, "-m", "app", "fit", *self.command]

    @staticmethod
    def limited(threads: int) -> dict[str, str]:
        """The environment of a process with so many threads."""
        return {**os.environ, **dict.fromkeys(THREADS, str(threads))}

    def environment(self, device: str | None = None) -> dict[str, str]:
        """The process's environment.

        Args:
            device: number of the GPU that it sees alone; None leaves that as it is.
        """
        return self.limited(self.threads) | ({} if device is None else {"CUDA_VISIBLE_DEVICES": device})

    @property
    def digest(self) -> str:
        """Of all that decides the run."""
        return self.row.digest(self.seed, {**self.values, "threads": self.threads})

    def note(self) -> None:
        """Writes down what is about to be launched.

        Raises:
            StorageError: it cannot be written.
        """
        make_folder(self.log.parent, "--output")
        write_json(self.record, {"digest": self.digest, "command": ["app", "fit", *self.command]})

    def problem(self) -> str | None:
        """Why what lies in the folder is not this run's; None where it is, or where nothing lies there."""
        try:
            if not self.run.path.exists() or not any(self.run.path.iterdir()):
                return None
        except OSError as error:
            what = "is a file" if self.run.path.is_file() else f"cannot be read ({error.strerror})"
            return f"row {self.name}: {self.run} {what}; remove it, or use another --output"
        if strangers := foreign(self.run.path):
            return (
                f"row {self.name}: {self.run} holds other files ({', '.join(strangers[:3])}); remove them, or use "
                "another --output"
            )
        try:
            known = read_json(self.record).get("digest")
        except (OSError, ValueError, AttributeError):
            known = None
        if known is None:
            launches = launches_of(self.run)
            if not launches or launches[-1].get("command") == ["app", "fit", *self.command]:
                return None
        if known == self.digest:
            return None
        return (
            f"row {self.name}: {self.run} was made by other settings than the study now has; remove it, or use another "
            "--output"
        )

    def standing(self) -> Standing:
        """How far it is, told in milliseconds; a finished run counts by its files, checkpoints may be gone."""
        if is_held(self.run.path):
            return Standing("running", self._step())
        found = read_status(self.run.status)
        if found is None:
            return Standing("waiting")
        step, code = int(found["step"]), found.get("exit_code")
        reason = str(found.get("reason") or "").partition("\n")[0]
        if (
            found["state"] == "finished"
            and self.run.metrics.is_file()
            and launches_of(self.run)
            and self.summary()
        ):
            return Standing("finished", step, 0, reason)
        if found["state"] == "failed":
            return Standing("failed", step, code, reason)
        return Standing("stopped", step, code, reason or "was killed")

    def summary(self) -> dict[str, Any]:
        """Final figures; empty where there are none."""
        try:
            found = read_json(self.run.summary)
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def progress(self) -> tuple[int, float]:
        """Last logged step, and the seconds of training up to it; zeros where nothing is logged."""
        step, seconds = 0, 0.0
        try:
            with self.run.metrics.open(newline="", encoding="utf-8", errors="replace") as file:
                for row in csv.DictReader(file):
                    try:
                        step, seconds = int(row["step"]), float(row["speed/seconds"])
                    except (KeyError, TypeError, ValueError):
                        continue  # a validation's row, or what a crash has left of one
        except OSError:
            pass
        return step, seconds

    def last_words(self) -> str:
        """The last line of its log that says what was wrong."""
        try:
            lines = [
                line
                for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines()
                if line.strip()
            ]
        except OSError:
            return ""
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or [""])[-1][:300]

    def _step(self) -> int:
        found = read_status(self.run.status)
        return max(self.progress()[0], 0 if found is None else int(found["step"]))


def require_own(jobs: Sequence[Job]) -> None:
    """Refuses folders that hold something else.

    Raises:
        ConfigurationError: naming every row whose folder does.
    """
    if problems := [problem for job in jobs if (problem := job.problem())]:
        raise ConfigurationError(problems)
