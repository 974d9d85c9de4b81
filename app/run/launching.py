"""What one launch is going to do, decided before anything heavy is imported."""

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.run.arguments import Launch
from app.run.checkpoint import list_checkpoints, newest_verified
from app.run.configuration import ConfigFile, find_config, read_config
from app.run.devices import trainer_option
from app.run.directory import RunDirectory, experiment_folder, resolve_run
from app.run.errors import ConfigurationError, IntegrityError, StorageError
from app.run.leftovers import clear
from app.run.lock import RunLock, is_held
from app.run.manifest import first_weights, has_had_checkpoints, last_configuration
from app.run.paths import require_own_folder
from app.run.same_settings import asks_for_nothing_new
from app.run.status import finished, read_status, true_state

#: in words, how a launch has ended that left no checkpoint
_ENDED = {"failed": "failed", "stopped": "was stopped", "killed": "was killed"}
#: free bytes below which no run is started: a configuration, two small checkpoints and their metrics
REQUIRED_BYTES = 50_000_000


@dataclass
class Plan:
    """One launch.

    Attributes:
        files: configuration files, in the order in which they count.
        directory: the run's; None until :meth:`open` where no ``--run_dir`` was given.
        checkpoint: what the run goes on from; None for a start from step 0.
        weights: checkpoint whose weights alone are taken; kept by a run that starts again before its first own one.
        resumes: whether the directory already holds this run.
        replaces: of a run that starts again, how the launch before it ended: ``state``, ``step`` and ``reason``.
        is_finished: whether nothing is left to do.
        notes: what a person should know, such as a damaged checkpoint that was passed over.
        stem: name of the experiment.
    """

    files: list[ConfigFile]
    directory: RunDirectory | None = None
    checkpoint: Path | None = None
    weights: Path | None = None
    resumes: bool = False
    replaces: dict[str, Any] | None = None
    is_finished: bool = False
    notes: list[str] = field(default_factory=list)
    stem: str = "run"
    lock: RunLock | None = None
    is_launcher: bool = True
    _made: list[Path] = field(default_factory=list)

    def open(self) -> RunDirectory:
        """The run directory, made and locked if that has not happened yet, and still ours if it has.

        Raises:
            StorageError: it cannot be made, or another process has taken it over since.
        """
        if self.directory is None:
            self._made = _missing(experiment_folder("runs", self.stem))
            self.directory = RunDirectory.create_default("runs", self.stem, REQUIRED_BYTES)
            made = self.directory
            self._made = [made.checkpoints, made.figures, made.path, *self._made]
        if self.lock is None and self.is_launcher:
            self.lock = RunLock(self.directory, witness=self.directory.manifest)
            self.lock.acquire()
        elif self.lock is not None:
            self.lock.check()
        return self.directory

    @property
    def may_write(self) -> bool:
        """Whether the run directory is still this launch's, and not taken over by another one."""
        return self.lock is not None and self.lock.is_ours

    def close(self) -> None:
        """Gives the lock back; a directory in which no run was begun is left as it was found."""
        is_unused = self.is_launcher and (self.directory is None or not self.directory.is_run)
        if self.lock is not None:
            if is_unused and self.directory is not None and self.lock.is_ours:
                with contextlib.suppress(StorageError):
                    clear(self.directory.path, with_records=True)
            self.lock.release()
        if not is_unused or (self.directory is not None and is_held(self.directory)):
            return  # the latter by another launch, which has not begun its run yet
        for path in self._made:
            with contextlib.suppress(OSError):  # something else has been put there
                path.rmdir()

    def to_json(self) -> str:
        """What another rank needs in order to take part, see :func:`handed_over`."""
        return json.dumps(
            {
                "files": [str(file.path.resolve()) for file in self.files],
                "run_dir": str(Path(self.open().path).resolve()),
                "checkpoint": str(self.checkpoint.resolve()) if self.checkpoint else None,
                "weights": str(self.weights.resolve()) if self.weights else None,
                "resumes": self.resumes,
                "is_finished": self.is_finished,
            }
        )


def make(launch: Launch) -> Plan:
    """Decides what a ``fit`` does.

    Raises:
        ConfigurationError: a configuration that is missing or no strict YAML (all files' problems together), a
            run that exists and is not resumed, or one that is in use.
        IntegrityError: a run whose checkpoints are all damaged.
    """
    given = _given_files(launch)
    plan = Plan(files=given, stem=given[0].path.stem if given else "run")
    try:
        _decide(plan, launch)
    except BaseException:
        plan.close()
        raise
    return plan


def files_of(launch: Launch) -> list[ConfigFile]:
    """The configuration of a launch, in the order in which its files count; nothing is made and nothing locked.

    Raises:
        ConfigurationError: a file that is missing or no strict YAML (all files' problems together), or none at all.
    """
    files = _given_files(launch)
    run, _ = _run_to_resume(launch)
    _complete(files, run)
    return files


def _given_files(launch: Launch) -> list[ConfigFile]:
    """The files that the command line names."""
    given, problems = [], []
    for name in launch.configs:
        try:
            given.append(read_config(find_config(name)))
        except ConfigurationError as error:
            problems += error.problems
    if problems:
        raise ConfigurationError(problems)
    return given


def _complete(files: list[ConfigFile], run: RunDirectory | None) -> None:
    """Puts the configuration of a run that is resumed before all others.

    A run without a checkpoint starts again: with what it is given now, and with its own where that is nothing.
    """
    if run is not None and run.config.exists() and (run.has_checkpoint or not files):
        files.insert(0, read_config(run.config))
    if not files:
        raise ConfigurationError(
            "--config is missing; name a configuration, as in app fit tilelli_banks4; app configs lists them"
        )


def _decide(plan: Plan, launch: Launch) -> None:
    run, checkpoint = _run_to_resume(launch)
    _complete(plan.files, run)
    if launch.init_from is not None:
        plan.weights = weights_of(launch.init_from)
    if run is not None:
        _resume(plan, run, checkpoint, launch)
    elif launch.run_dir is not None:
        _begin(plan, RunDirectory(launch.run_dir))


def _begin(plan: Plan, run: RunDirectory) -> None:
    """Makes the directory of a new run, or takes one whose run has come to no checkpoint."""
    require_own_folder(run, "--run_dir")
    plan._made = [p for p in (run.checkpoints, run.figures) if not p.exists()] + _missing(run.path)
    plan.directory = run
    state = true_state(run)  # asked before the lock is ours
    RunDirectory.open_new(run, REQUIRED_BYTES)
    plan.open()
    run.require_no_checkpoint()  # somebody else may have come that far in between
    if run.is_run:
        _begin_again(plan, run, state)


def _begin_again(plan: Plan, run: RunDirectory, state: str) -> None:
    """A run without a checkpoint starts again from step 0, in place of what the launch before has left.

    Args:
        plan: of the launch.
        run: its directory.
        state: as it was before the lock was taken.
    """
    if state == "finished" or run.summary.exists() or has_had_checkpoints(run):
        raise ConfigurationError(
            f"{run}: its checkpoints are gone, and to start again would lose the figures that they led to; put them "
            f"back into {run.checkpoints}, remove {run}, or begin in another --run_dir"
        )
    ended = read_status(run.status) or {}
    reason = next(iter(str(ended.get("reason") or "").splitlines()), "")
    plan.replaces = {"state": state, "step": ended.get("step"), "reason": reason}
    run.sweep()
    of = f" with the weights of {plan.weights}" if plan.weights else ""
    plan.notes.append(f"{run} holds no checkpoint yet; it starts again from step 0{of}")
    plan.notes.append(
        f"the launch before this one {_ENDED.get(state, 'left no word')}" + f": {reason}" * bool(reason)
    )


def weights_of(argument: str, which: str = "best") -> Path:
    """The checkpoint that a user means by a run directory or a file.

    Args:
        argument: a run directory, or one of its checkpoint files, which is then the answer.
        which: ``best`` of a directory (the last one where there is no best yet) or ``last``.

    Raises:
        ConfigurationError: it is neither, or holds no checkpoint.
    """
    run, file = resolve_run(argument)
    if file is not None:
        return file
    best = list_checkpoints(run.checkpoints, "best")
    found = best[-1][1] if best and which == "best" else newest_verified(run.checkpoints)
    if found is None:
        raise ConfigurationError(f"{argument}: holds no checkpoint yet; let the run reach its first one")
    return found


def _missing(path: Path) -> list[Path]:
    """The folders that making this one makes, innermost first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def _run_to_resume(launch: Launch) -> tuple[RunDirectory | None, Path | None]:
    if launch.resume is None:
        return None, None
    if launch.init_from is not None:
        raise ConfigurationError(
            "--resume and --init_from exclude each other: go on with a run, or begin from its weights"
        )
    if launch.resume != "auto":
        run, checkpoint = resolve_run(launch.resume)
        if launch.run_dir is not None and Path(launch.run_dir).resolve() != Path(run.path).resolve():
            raise ConfigurationError(
                f"--run_dir {launch.run_dir}: differs from the run that is resumed ({run}); leave it out"
            )
        return run, checkpoint
    if launch.run_dir is None:
        raise ConfigurationError("--resume auto: needs --run_dir DIR, the folder to go on in or to start in")
    run = RunDirectory(launch.run_dir)
    return (run, None) if run.is_run else (None, None)


def _resume(plan: Plan, run: RunDirectory, checkpoint: Path | None, launch: Launch) -> None:
    plan.directory, plan.resumes = run, True
    max_steps = _max_steps(plan.files, launch)
    if checkpoint is None and max_steps is not None and finished(run, max_steps):
        given = plan.files[1:] if run.config.exists() else plan.files
        if asks_for_nothing_new(launch, given, run.config, last_configuration(run)):
            plan.is_finished = True
            return
    state = true_state(run)  # asked before the lock is ours
    plan.open()
    run.sweep()
    skipped: list[tuple[Path, str]] = []
    plan.checkpoint = checkpoint or newest_verified(run.checkpoints, skipped)
    plan.notes += [reason for _, reason in skipped]
    if plan.checkpoint is None:
        if skipped:
            raise IntegrityError(
                f"{run}: none of its {len(skipped)} checkpoints is whole ({skipped[0][1]}); "
                "begin again in another --run_dir"
            )
        plan.weights = _begun_from(run)
        _begin_again(plan, run, state)
    elif skipped:
        plan.notes.append(f"going on from {plan.checkpoint.name}, the newest one that is whole")
    elif state == "killed":
        plan.notes.append("the launch before this one was killed")


def _begun_from(run: RunDirectory) -> Path | None:
    """The checkpoint that the run took its first weights from (``--init_from``); None where it drew them."""
    named = first_weights(run)
    if named is not None and not named.is_file():
        raise ConfigurationError(
            f"{run}: holds no checkpoint yet and began with --init_from {named}, which is gone; put that file back, or "
            "begin in another --run_dir with other weights"
        )
    return named


def _max_steps(files: list[ConfigFile], launch: Launch) -> int | None:
    try:
        return int(trainer_option("max_steps", files, launch))
    except (TypeError, ValueError):
        return None


def handed_over(text: str) -> Plan:
    """The plan of a rank that another process has decided for; it holds no lock and writes no status."""
    values: dict[str, Any] = json.loads(text)
    return Plan(
        files=[read_config(path) for path in values["files"]],
        directory=RunDirectory(values["run_dir"]),
        checkpoint=Path(values["checkpoint"]) if values["checkpoint"] else None,
        weights=Path(values["weights"]) if values["weights"] else None,
        resumes=values["resumes"],
        is_finished=values["is_finished"],
        is_launcher=False,
    )
