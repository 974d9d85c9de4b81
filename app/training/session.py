"""One launch of a run: what is built, checked, recorded, trained and reported."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from app import __version__
from app.run import manifest
from app.run.atomic import write_text
from app.run.checkpoint import resume_name
from app.run.configuration import strict_load
from app.run.errors import ConfigurationError, ExitCode
from app.run.plan import Plan
from app.run.randomness import seed_initialisation
from app.run.signals import StopRequests
from app.run.status import write_status
from app.training.command_line import RunCLI, describe_network
from app.training.curve import TrainingCurve, seconds_trained
from app.training.distributed import SupervisedLauncher
from app.training.hyperparameters import chosen
from app.training.keepers import STATE_KEY, BestKeeper, RollingKeeper, RunState, VerifiedCheckpointIO
from app.training.language_model import LanguageModelModule
from app.training.loggers import RunFilesLogger, TensorBoardRunLogger
from app.training.nonfinite import NonFiniteStop
from app.training.progress import RunProgress, clock
from app.training.status_file import StatusFile
from app.training.step_keys import StepKeys
from app.training.stopping import StopOnSignal
from app.training.summary import RunSummary

#: parts of a configuration that may differ between two launches of one run
FREE_ON_RESUME = ("run_dir", "resume", "init_from", "trust_imports", "accept_data_change")
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
        self.files = VerifiedCheckpointIO()
        self.resumed: dict[str, Any] | None = None
        self.trainer: Trainer | None = None
        self.model: LanguageModelModule | None = None
        self.summary: RunSummary | None = None
        self.changes: list[str] = []
        self.is_recorded = False

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

    def prepare(self) -> None:
        """Reads the checkpoint, builds model and trainer, checks that they fit, records the launch."""
        if self.launched.checkpoint is not None:
            self.resumed = self.files.preload(self.launched.checkpoint)
        seed_initialisation(self.seed)
        self.model = self.cli.build_model(self.data)
        if self.resumed is not None:
            self._check_same_run(self.resumed[STATE_KEY])
            self._keep_resumable(self.launched.checkpoint, self.resumed)
        else:
            self._begin(self.launched.weights)
        self._build_trainer()
        if self.launched.is_launcher:
            self._record()

    def fit(self) -> None:
        """Trains to the last step."""
        assert self.trainer is not None and self.model is not None
        if self.launched.is_launcher and self.trainer.world_size > 1:
            self.launched.hand_over()
        self.trainer.fit(
            self.model,
            datamodule=self.data,
            ckpt_path=self.launched.checkpoint,
            weights_only=True if self.launched.checkpoint else None,
        )

    # -- building ---------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be resumed."""
        return {"seed": self.seed, "block_size": self.data.block_size, "data": self.data.fingerprint}

    def _build_trainer(self) -> None:
        state = RunState(self.fingerprint, self.launched.lock)
        curve = TrainingCurve(seconds_trained(self.directory.metrics, self.step))
        best = BestKeeper(self.directory.checkpoints, state)
        rolling = RollingKeeper(
            self.directory.checkpoints, state, self.cli.config["checkpoint_every_n_steps"]
        )
        self.summary = RunSummary(self.directory, curve, best)
        # The order counts: what is logged comes before what saves, and what saves before what reports.
        callbacks: list[Callback] = [
            StepKeys(self.seed),
            curve,
            NonFiniteStop(self.seed, self.directory.checkpoints),
            *([RunProgress(curve)] if self.cli.config["trainer"]["enable_progress_bar"] is not False else []),
            StopOnSignal(self.requests, rolling),
            StatusFile(self.directory),
            state,
            best,
            rolling,
            self.summary,
        ]
        step = self.resumed[STATE_KEY]["step"] if self.resumed else None
        if step is None and self.launched.resumes:
            step = 0
        owes_validation = self.resumed is not None and self.resumed[STATE_KEY]["validation_pending"]
        loggers = [
            TensorBoardRunLogger(self.directory.path, step, owes_validation),
            RunFilesLogger(self.directory.path, step, columns=COLUMNS),
        ]
        self.trainer = self.cli.build_trainer(callbacks, [self.files], loggers, self.directory.path)
        try:
            self.data.check_placement(self.trainer.world_size, self.trainer.accumulate_grad_batches)
        except ConfigurationError as error:
            named = (problem.partition(": ") for problem in error.problems)
            problems = [self.cli.located(f"data.init_args.{name}", text) for name, _, text in named]
            raise ConfigurationError(problems) from error
        launcher = self.trainer.strategy.launcher
        if isinstance(launcher, SupervisedLauncher):
            launcher.on_lost = self._lost

    def _lost(self, rank: int, code: int) -> None:
        reason = f"rank {rank} was lost (code {code})"
        write_status(self.directory.status, "failed", self.step, int(ExitCode.RANK_LOST), reason)
        self.launched.close()

    # -- checking ---------------------------------------------------------------------------------------

    def _check_same_run(self, state: dict[str, Any]) -> None:
        assert self.model is not None
        problems = []
        ours, theirs = self.model.network.description(), state["network"]
        for key in sorted({*ours["init_args"], *theirs["init_args"]}):
            mine, other = ours["init_args"].get(key), theirs["init_args"].get(key)
            if mine != other:
                problems.append(
                    f"model.init_args.{key}: {mine!r}, but the run has {other!r}; resuming keeps the architecture, "
                    "use --init_from for another one"
                )
        if ours["class_path"] != theirs["class_path"]:
            problems.append(
                f"model: {ours['class_path']}, but the run has {theirs['class_path']}; start a new run"
            )
        if self.model.optimizer_name != state["optimizer"]:
            problems.append(
                f"model.init_args.optimizer: {self.model.optimizer_name!r}, but the run has {state['optimizer']!r}, "
                "whose moments it cannot use; begin with --init_from"
            )
        if self.seed != state["seed"]:
            problems.append(
                f"seed: {self.seed}, but the run has {state['seed']}; a resumed run keeps its seed"
            )
        for key in sorted({*self.data.fingerprint, *state["data"]}):
            mine, other = self.data.fingerprint.get(key), state["data"].get(key)
            if mine == other:
                continue
            if key == "tokenizer":
                problems.append(
                    f"data: tokenizer is {mine!r}, but the run was trained with {other!r}; restore the text, or set "
                    "the tokenizer_path of the data to the run's tokenizer.json where it has one"
                )
            elif self.cli.launch.accept_data_change:
                self.changes.append(f"data {key}: {other!r} -> {mine!r}")
            else:
                problems.append(
                    f"data: {key} is {mine!r}, but the run was trained with {other!r}; restore the text, or go on "
                    "with the changed one with --accept_data_change"
                )
        if problems:
            raise ConfigurationError(problems)

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
        prefix = "network."
        weights = {name.removeprefix(prefix): x for name, x in content["state_dict"].items()}
        self.launched.notes += self.model.begin(weights)
        ours = self.model.state_dict()
        theirs = {f"{prefix}{name}": x for name, x in self.model.network.starting_weights(weights).items()}
        wrong = [name for name in sorted({*ours, *theirs}) if _shape(ours, name) != _shape(theirs, name)]
        if wrong:
            raise ConfigurationError(
                f"--init_from {path}: the weights do not fit this network: {wrong[0]} is {_shape(theirs, wrong[0])} "
                f"there and {_shape(ours, wrong[0])} here ({len(wrong)} tensors differ)"
            )
        self.model.load_state_dict(theirs)

    # -- recording --------------------------------------------------------------------------------------

    def _record(self) -> None:
        assert self.trainer is not None and self.model is not None
        text = self.cli.parser.dump(self.cli.config, skip_link_targets=True, format="yaml")
        if self.launched.resumes and self.directory.config.exists():
            before = _flat(strict_load(self.directory.config.read_text()))
            after = _flat(strict_load(text))
            for key in sorted({*before, *after}):
                if before.get(key) != after.get(key) and key.split(".")[0] not in FREE_ON_RESUME:
                    self.changes.append(f"{key}: {before.get(key)!r} -> {after.get(key)!r}")
        for logger in self.trainer.loggers:
            if isinstance(logger, TensorBoardRunLogger):
                logger.log_configuration(chosen(strict_load(text), model=self.model, data=self.data))
        self.data.tokenizer.save(self.directory.tokenizer)
        extra = {
            "archlab": __version__,
            "resumed_from": self.launched.checkpoint.name if self.launched.checkpoint else None,
            "init_from": str(self.launched.weights.resolve()) if self.launched.weights else None,
            "changes": self.changes,
            "device": device_name(self.trainer),
            "world_size": self.trainer.world_size,
            "threads": torch.get_num_threads(),
            "data": self.data.fingerprint,
            "network": self.model.network.description(),
        }
        manifest.record_launch(
            self.directory, manifest.collect(["app", "fit", *self.words], seed=self.seed, extra=extra)
        )
        # After the manifest: a run that can be resumed by itself says which weights it began with.
        write_text(self.directory.config, text)
        n_launch = len(list(self.directory.path.glob("config-*.yaml"))) + 1
        write_text(self.directory.path / f"config-{n_launch}.yaml", text)
        write_status(self.directory.status, "starting", self.step)
        self.is_recorded = True

    # -- reporting --------------------------------------------------------------------------------------

    def print_start(self, seconds: float) -> None:
        """Says what is about to be trained, on what, and where it is kept."""
        assert self.trainer is not None and self.model is not None
        if not self.launched.is_launcher:
            return
        trainer, data = self.trainer, self.data
        for note in [*self.launched.notes, *self.cli.notes()]:
            print(f"note     {note}")
        for change in self.changes:
            print(f"changed  {change}")
        print(f"run      {self.directory}")
        if self.resumed is not None:
            print(f"resumed  after step {self.step}")
        print(f"model    {describe_network(self.model.network)}")
        print(f"data     {data.describe()}")
        print(f"device   {device_name(trainer)}, world size {trainer.world_size}")
        accumulation = trainer.accumulate_grad_batches
        print(
            f"steps    {trainer.max_steps:,} of {data.batch_size} windows x {data.block_size} tokens = "
            f"{data.tokens_per_step:,} tokens"
            + (f", in {accumulation} micro-batches" if accumulation > 1 else "")
            + f"; ready after {seconds:.1f} s",
            flush=True,
        )

    def print_end(self) -> None:
        """Says how it ended and what can be done with it."""
        assert self.trainer is not None and self.summary is not None
        if not (self.launched.is_launcher and self.summary.figures):
            return
        figures = self.summary.figures
        print(f"finished step {figures['step']:,} after {clock(figures['launch/seconds'])}")
        if "val/loss" in figures:
            line = (
                f"loss     validation {figures['val/loss']:.4f} nats, {figures['val/bpb']:.4f} bits per byte"
            )
            if "val/word_perplexity" in figures:
                line += f", {figures['val/word_perplexity']:.1f} word perplexity"
            if figures["baseline/bigram_loss"] is not None:
                line += f"; an add-one bigram has {figures['baseline/bigram_loss']:.4f} nats"
            print(line)
        if figures["samples/known_word_share"] is not None:
            share, n_words = figures["samples/known_word_share"], figures["samples/n_words"]
            print(
                f"samples  {share:.0%} of {n_words} generated words of four letters and more occur in the text"
            )
        if (picture := self.directory.figures / "learning_curve.png").exists():
            print(f"picture  {picture}")
        print(f"next     app validate {self.directory}\n         app generate {self.directory}", flush=True)
        print(f"         tensorboard --logdir {self.directory} --host 127.0.0.1", flush=True)


def device_name(trainer: Trainer) -> str:
    """The device in words."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads of {os.cpu_count()})"


def _shape(tensors: dict[str, torch.Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        flat |= _flat(entry, f"{prefix}.{key}" if prefix else str(key))
    return flat
