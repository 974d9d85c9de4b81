"""One launch of a run: what is built, checked, recorded, trained and reported."""

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger

from app import __version__
from app.run import manifest, trust
from app.run.atomic import write_text
from app.run.checkpoint import resume_name
from app.run.configuration import LAUNCH_KEYS, read_config, strict_load
from app.run.errors import ConfigurationError, ExitCode
from app.run.launching import Plan
from app.run.leftovers import clear
from app.run.randomness import seed_initialisation
from app.run.rank_processes import OTHERS
from app.run.same_settings import digest
from app.run.saved_state import STATE_KEY
from app.run.signals import StopRequests
from app.run.status import read_status, write_status
from app.run.terminal import say
from app.training import run_path
from app.training.command_line import RunCLI
from app.training.distributed import broken_connections_told
from app.training.ending import print_ending
from app.training.estimate import describe_network, device_name
from app.training.first_weights import take_weights
from app.training.language_model import LanguageModelModule
from app.training.logging.loggers import RunFilesLogger, RunLogger, TensorBoardRunLogger
from app.training.options import allowed
from app.training.options.hyperparameters import chosen
from app.training.plain_data import PlainDataModule
from app.training.reproducible import is_reproducible
from app.training.run_callbacks.compiled_steps import CompiledSteps
from app.training.run_callbacks.curve import TrainingCurve, seconds_trained
from app.training.run_callbacks.graphed_steps import GraphedSteps
from app.training.run_callbacks.integrity import IntegrityStop
from app.training.run_callbacks.nonfinite import NonFiniteStop
from app.training.run_callbacks.progress import RunProgress
from app.training.run_callbacks.progress_notes import ProgressNotes
from app.training.run_callbacks.retention import (
    BestCheckpoint,
    LatestCheckpoints,
    RunState,
    VerifiedCheckpointIO,
)
from app.training.run_callbacks.status_file import StatusFile
from app.training.run_callbacks.step_keys import StepKeys
from app.training.run_callbacks.stopping import StopOnSignal
from app.training.run_callbacks.summary import RunSummary
from app.training.run_callbacks.watching import keep_running
from app.training.run_callbacks.weight_averaging import RunAveraging, train_on
from app.training.same_run import check_same_run
from app.training.sharded import SupervisedFSDPStrategy

#: what a reader of metrics.csv looks for first
COLUMNS = ("tokens_seen", "train/loss", "train/bpb", "val/loss", "val/bpb")


class Session:
    """Builds and runs one launch.

    Args:
        cli: the parsed configuration.
        data: the data module, its text read.
        launched: directory, lock and checkpoint of this launch.
        requests: the process's signal handlers.
        words: the command line, for the record.
    """

    def __init__(self, cli: RunCLI, data: Any, launched: Plan, requests: StopRequests, words: list[str]):
        self.cli = cli
        self.data = data
        self.launched = launched
        self.directory = launched.open()
        self.requests = requests
        self.words = words
        self.seed: int = cli.config["seed"]
        self.files = VerifiedCheckpointIO(launched.lock)
        self.resumed: dict[str, Any] | None = None
        self.trainer: Trainer | None = None
        self.model: LanguageModelModule | None = None
        self.summary: RunSummary | None = None
        self.configuration: dict[str, Any] = strict_load(self.cli.resolved)
        self.changes: list[str] = []
        self.path: dict[str, Any] = {}
        self.is_inexact = False
        self.is_recorded = False
        self.is_finished = False

    @property
    def step(self) -> int:
        """Completed optimizer steps."""
        if self.trainer is not None and self.trainer.global_step:
            return int(self.trainer.global_step)
        return int(self.resumed[STATE_KEY]["step"]) if self.resumed else 0

    @property
    def is_incomplete(self) -> bool:
        """Whether training ended before its last step without having been told to by a signal."""
        return self.trainer is not None and self.trainer.global_step < self.trainer.max_steps

    @property
    def ended_by(self) -> str:
        """Which of the framework's callbacks has ended it before its last step, and why; empty otherwise."""
        return allowed.ended_by(self.trainer) if self.trainer is not None and self.is_incomplete else ""

    def prepare(self) -> None:
        """Reads the checkpoint, builds model and trainer, checks that they fit, records the launch."""
        if self.launched.checkpoint is not None:
            self.resumed = self.files.preload(self.launched.checkpoint)
        seed_initialisation(self.seed)
        self.model = self.cli.build_model(self.data, self.resumed["state_dict"] if self.resumed else None)
        if self.resumed is not None:
            state = self._completed(self.resumed[STATE_KEY])
            self.changes += check_same_run(
                self.model, self.data, self.seed, state, self.cli.launch.accept_data_change
            )
            if self._has_nothing_left(state):
                self.is_finished = True
                return
            self._check_exact()
            self.data.go_on_from(state["step"], state["windows_seen"])
            self._keep_resumable(self.launched.checkpoint, self.resumed)
        else:
            self._begin(self.launched.weights)
        self._build_trainer()
        if self.launched.is_launcher:
            self._record()

    def _check_exact(self) -> None:
        """Data of somebody's own may not know how to go on."""
        assert self.resumed is not None
        if not isinstance(self.data, PlainDataModule):
            return
        problem = self.data.inexact(self.resumed.get(type(self.data).__name__))
        if problem and not self.cli.launch.resume_inexact:
            raise ConfigurationError(
                f"{problem}; give it a stateful one, or begin that epoch anew with --resume_inexact true"
            )
        if problem:
            self.is_inexact = True
            self.launched.notes.append(f"{problem}: that epoch begins anew")

    def fit(self) -> None:
        assert self.trainer is not None and self.model is not None
        with broken_connections_told():
            self.trainer.fit(
                self.model,
                datamodule=self.data,
                ckpt_path=self.launched.checkpoint,
                weights_only=True if self.launched.checkpoint else None,
            )

    # -- building ---------------------------------------------------------------------------------------

    def _described(self) -> dict[str, Any]:
        """What checkpoints say of the run, for whoever resumes it; where it computes is added with the trainer."""
        return {
            "seed": self.seed,
            "block_size": self.data.block_size,
            "data": self.data.fingerprint,
            "configuration": {k: v for k, v in self.configuration.items() if k not in LAUNCH_KEYS},
        }

    def _place(self) -> dict[str, Any]:
        """Where this launch computes: only at an equal place do equal runs end in equal bits."""
        assert self.trainer is not None
        device = self.trainer.strategy.root_device
        return {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "torch": str(torch.__version__),
            "world_size": self.trainer.world_size,
            "reproducible": is_reproducible(device),
        }

    def _take_path(self) -> dict[str, Any]:
        """How this launch computes: as the run has at an equal place, and as this place has it elsewhere."""
        assert self.trainer is not None and self.model is not None
        state = self.resumed[STATE_KEY] if self.resumed else {}
        files = self.launched.files[1:] if self.launched.resumes else self.launched.files
        says_compile = self.cli.launch.value("compile") is not None or any("compile" in x.data for x in files)
        path, notes = run_path.take(
            self.cli,
            self.model.network,
            self.trainer.strategy.root_device,
            self.data.block_size,
            state.get("path"),
            self.resumed is not None and state["place"] != self._place(),
            says_compile,
        )
        self.launched.notes += notes
        return path

    def _build_trainer(self) -> None:
        described = self._described()
        state = RunState(described, self.launched.lock)
        curve = TrainingCurve(seconds_trained(self.directory.metrics, self.step))
        best = BestCheckpoint(self.directory.checkpoints, state)
        config = self.cli.config
        rolling = LatestCheckpoints(
            self.directory.checkpoints,
            state,
            config["checkpoint_every_n_steps"],
            config["keep_every_n_steps"],
        )
        graphed = GraphedSteps() if config["graph"] else None
        guarding = (config["verify_state"], config["verify_every_n_steps"])
        self.summary = RunSummary(self.directory, curve, best, graphed)
        # The order counts: what is logged comes before what saves, and what saves before what reports.
        callbacks: list[Callback] = [
            StepKeys(self.seed),
            *([graphed] if graphed else []),
            curve,
            ProgressNotes(),
            *([IntegrityStop(self.seed, self.directory.checkpoints, *guarding)] if any(guarding) else []),
            NonFiniteStop(self.seed, self.directory.checkpoints),
            *([RunProgress(curve)] if self.cli.config["trainer"]["enable_progress_bar"] is not False else []),
            StopOnSignal(self.requests, rolling),
            StatusFile(self.directory, self.launched.lock),
            state,
            best,
            rolling,
            self.summary,
        ]
        step = self.resumed[STATE_KEY]["step"] if self.resumed else None
        owes_validation = self.resumed is not None and self.resumed[STATE_KEY]["validation_pending"]
        loggers: list[Logger] = [
            TensorBoardRunLogger(self.directory.path, step, owes_validation),
            RunFilesLogger(self.directory.path, step, columns=COLUMNS),
        ]
        self.trainer = self.cli.build_trainer(callbacks, [self.files], loggers, self.directory.path)
        keep_running(self.trainer, self.step)
        averages = any(isinstance(c, RunAveraging) for c in self.trainer.callbacks)  # type: ignore[attr-defined]
        if averages and isinstance(self.trainer.strategy, SupervisedFSDPStrategy):
            what = "an average is a copy of the whole network; leave it out, or train by ddp in place of fsdp"
            raise ConfigurationError(self.cli.located("trainer.callbacks", what))
        if self.resumed is not None and not averages and train_on(self.resumed):
            self.launched.notes.append(
                "the average of the weights ends here: training goes on from the trained ones"
            )
        try:
            self.data.check_placement(self.trainer.world_size, self.trainer.accumulate_grad_batches)
        except ConfigurationError as error:
            named = (problem.partition(": ") for problem in error.problems)
            section = "trainer" if isinstance(self.data, PlainDataModule) else "data.init_args"
            problems = [self.cli.located(f"{section}.{name}", text) for name, _, text in named]
            raise ConfigurationError(problems) from error
        self._check_validation()
        described["place"] = self._place()
        OTHERS.on_lost = self._lost
        described["path"] = self.path = self._take_path()
        if self.path["compile"] != "none":
            self.trainer.callbacks.insert(0, CompiledSteps(self.path["compile"]))  # type: ignore[attr-defined]

    def _check_validation(self) -> None:
        """A share of the validation split that is less than a batch would be none."""
        assert self.trainer is not None
        limit: int | float = self.trainer.limit_val_batches
        if limit <= 0 or not isinstance(limit, float):
            return
        n_batches = self.data.n_validation_batches(
            self.trainer.world_size, self.trainer.accumulate_grad_batches
        )
        if n_batches and int(n_batches * limit) == 0:
            raise ConfigurationError(
                self.cli.located(
                    "trainer.limit_val_batches",
                    f"{limit} of {n_batches} validation batches is none; write {math.ceil(1e4 / n_batches) / 1e4} or "
                    "more, a number of batches, or 0 to leave validation out",
                )
            )

    def _lost(self, reason: str) -> None:
        if self.is_recorded and self.launched.may_write:
            write_status(self.directory.status, "failed", self.step, int(ExitCode.RANK_LOST), reason)
        self.launched.close()

    def _completed(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state of a checkpoint of any format; what the first one does not say stands in its run directory."""
        if "windows_seen" not in state:
            before = self._kept_configuration()
            state["windows_seen"] = state["step"] * before["data"]["init_args"]["batch_size"]
            state |= {"configuration": before, "place": {}}
        return state

    def _kept_configuration(self) -> dict[str, Any]:
        """What the run's ``config.yaml`` says, as it now is."""
        kept = read_config(self.directory.config).data
        return {key: value for key, value in kept.items() if key not in LAUNCH_KEYS}

    def _has_nothing_left(self, state: dict[str, Any]) -> bool:
        """Whether the run was finished before, at this length or a greater one, or ended by what still ends it."""
        status = read_status(self.directory.status)
        if status is None or status["state"] != "finished" or state["validation_pending"]:
            return False
        max_steps = self.cli.config["trainer"]["max_steps"]
        if state["step"] >= max_steps:
            return True
        before = state["configuration"]
        return (
            bool(status.get("reason"))
            and status["step"] == state["step"]
            and max_steps <= before["trainer"]["max_steps"]
            and allowed.lengths(self.configuration) == allowed.lengths(before)
        )

    def abandon(self, code: ExitCode, reason: str) -> None:
        """Records an end that the main thread does not come to."""
        if self.is_recorded and self.launched.may_write:
            write_status(self.directory.status, "stopped", self.step, int(code), reason)
        self.launched.close()

    def _keep_resumable(self, checkpoint: Path | None, content: dict[str, Any]) -> None:
        """A best checkpoint that is gone on from stays resumable when later ones are given up."""
        assert checkpoint is not None
        name = resume_name(content[STATE_KEY]["step"])
        if self.launched.is_launcher and checkpoint.name != name:
            self.files.save_checkpoint(content, self.directory.checkpoints / name)

    def _begin(self, path: Path | None) -> None:
        assert self.model is not None
        if path is None:
            self.launched.notes += self.model.begin(None)
            return
        content = self.files.load_checkpoint(path)
        self.launched.notes += take_weights(self.model, content["state_dict"], f"--init_from {path}")

    # -- recording --------------------------------------------------------------------------------------

    def _record(self) -> None:
        assert self.trainer is not None and self.model is not None
        self.launched.open()  # building has taken its time; is it still ours?
        if self.resumed is not None:
            self._note_changes(self.resumed[STATE_KEY])
        else:
            if (
                self.launched.resumes and self.directory.config.exists()
            ):  # what is begun again, perhaps mended
                self._note_changes({"configuration": self._kept_configuration(), "place": {}})
            clear(self.directory.path)
        # The first file: from here on the run can say how it ends, even on a disk that fills up.
        write_status(self.directory.status, "starting", self.step)
        self.is_recorded = True
        for logger in self.trainer.loggers:
            if isinstance(logger, TensorBoardRunLogger):
                data = self.data.inner if isinstance(self.data, PlainDataModule) else self.data
                logger.log_configuration(chosen(self.configuration, model=self.model, data=data))
            elif not isinstance(logger, RunLogger):
                logger.log_hyperparams(_flat(self.configuration))
        if self.data.tokenizer is not None:
            self.data.tokenizer.save(self.directory.tokenizer)
        extra = {
            "archlab": __version__,
            "resumed_from": self.launched.checkpoint.name if self.launched.checkpoint else None,
            "first_step": self.step,
            "configuration": self._described()["configuration"],
            "init_from": str(self.launched.weights.resolve()) if self.launched.weights else None,
            "replaces": self.launched.replaces,
            "resume_inexact": self.is_inexact,
            "changes": self.changes,
            "configuration_sha256": digest(self.cli.resolved),
            "device": device_name(self.trainer),
            "world_size": self.trainer.world_size,
            "threads": torch.get_num_threads(),
            "place": self._place(),
            "path": self.path,
            "data": self.data.fingerprint,
            "network": self.model.network.description(),
            "trust_imports": trust.sealed(self.directory, self.cli.launch.trust_imports),
        }
        manifest.record_launch(
            self.directory, manifest.collect(["app", "fit", *self.words], seed=self.seed, extra=extra)
        )
        # After the manifest: a run that can be resumed by itself says which weights it began with.
        text = self.cli.resolved
        write_text(self.directory.config, text)
        n_launch = len(list(self.directory.path.glob("config-*.yaml"))) + 1
        write_text(self.directory.path / f"config-{n_launch}.yaml", text)

    def _note_changes(self, state: dict[str, Any]) -> None:
        """What is otherwise than the checkpoint says, which nobody edits as they might ``config.yaml``."""
        before, after = _flat(state["configuration"]), _flat(self._described()["configuration"])
        if state["place"] not in ({}, self._place()):
            before, after = before | state["place"], after | self._place()
            self.launched.notes.append(
                "the run goes on at another place: as exactly, but not to the same bits"
            )
        elif run_path.differs(self.path, state.get("path", self.path)):
            self.launched.notes.append(
                "the run goes on by another path: as exactly, but not to the same bits"
            )
        before |= _flat(state.get("path", {}), "path")
        after |= _flat(self.path, "path")
        # An option that one of the two versions of this program does not know is no change of the user's.
        for key in sorted({*before} & {*after}):
            of_option = run_path.OPTIONS.get(key)
            if before[key] != after[key] and (of_option is None or before[of_option] == after[of_option]):
                self.changes.append(f"{key}: {before[key]!r} -> {after[key]!r}")

    # -- reporting --------------------------------------------------------------------------------------

    def print_start(self, seconds: float) -> None:
        """Says what is about to be trained, on what, and where it is kept."""
        assert self.trainer is not None and self.model is not None
        if not self.launched.is_launcher:
            return
        trainer, data = self.trainer, self.data
        for note in [*self.launched.notes, *self.cli.notes(), *data.notes()]:
            say("note", note)
        for change in self.changes:
            say("changed", change)
        say("run", str(self.directory))
        if self.resumed is not None:
            say("resumed", f"after step {self.step}")
        say("model", describe_network(self.model.network))
        say("data", data.describe())
        fast = "" if is_reproducible(trainer.strategy.root_device) else ", not reproducible"
        say("path", run_path.describe(self.path))
        say("device", f"{device_name(trainer)}, world size {trainer.world_size}{fast}")
        accumulation = trainer.accumulate_grad_batches
        say(
            "steps",
            f"{trainer.max_steps:,} of {data.batch_size} windows x {data.block_size} tokens = "
            f"{data.tokens_per_step:,} tokens"
            + (f", in {accumulation} micro-batches" if accumulation > 1 else "")
            + f"; ready after {seconds:.1f} s",
        )

    def print_end(self) -> None:
        """Says how it ended and what can be done with it."""
        assert self.trainer is not None and self.summary is not None
        if self.launched.is_launcher and self.summary.figures:
            writes = self.data.tokenizer is not None
            print_ending(self.summary.figures, self.trainer, self.directory, self.ended_by, writes)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        flat |= _flat(entry, f"{prefix}.{key}" if prefix else str(key))
    return flat
