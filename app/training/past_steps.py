"""Makes steps of a run again, bit for bit, beside the run.

The order of windows is a function of the seed and the position, randomness one of the seed, the step and the
micro-batch, and every launch is recorded with its configuration. So any step can be made again from the nearest
checkpoint before it, or from the first weights. Nothing in the run directory changes.
"""

import tempfile
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from app.run.arguments import Launch
from app.run.checkpoint import read, resume_name
from app.run.configuration import ConfigFile
from app.run.directory import RunDirectory
from app.run.errors import ConfigurationError, IntegrityError
from app.run.history import Piece, begin_of, configuration_of, pieces
from app.run.manifest import first_weights
from app.run.randomness import rekey, seed_initialisation
from app.run.saved_state import STATE_KEY
from app.training.command_line import RunCLI
from app.training.first_weights import take_weights
from app.training.framework_output import silence_framework
from app.training.language_model import LanguageModelModule
from app.training.options import allowed
from app.training.run_callbacks.compiled_steps import CompiledSteps
from app.training.run_callbacks.curve import TrainingCurve
from app.training.run_callbacks.graphed_steps import GraphedSteps
from app.training.run_callbacks.nonfinite import NonFiniteStop, replay
from app.training.run_callbacks.retention import RunState, VerifiedCheckpointIO
from app.training.run_callbacks.step_keys import StepKeys
from app.training.run_callbacks.weight_averaging import train_on
from app.training.run_path import retake
from app.training.same_run import check_same_run


class PastStep(NamedTuple):
    """A step that was made again.

    Attributes:
        step: its number, from 1.
        figures: as the training curve has them.
        finding: what a look at every module found in it; empty without one.
    """

    step: int
    figures: dict[str, float]
    finding: str


#: takes a step that was made again; True ends the sweep
See = Callable[[PastStep], bool]


class Also(NamedTuple):
    """What else is looked at on the way.

    Attributes:
        is_validated: whether validations are made where the run made them, and at the end of every piece.
        see_validation: takes the step and the figures of each.
        state_steps: after which the state is looked at.
        see_state: takes such a step and the content of a checkpoint after it.
    """

    is_validated: bool = False
    see_validation: Callable[[int, dict[str, float]], None] = lambda step, figures: None
    state_steps: Collection[int] = ()
    see_state: Callable[[int, dict[str, Any]], None] = lambda step, content: None


class PastSteps:
    """Makes steps of a run again.

    Args:
        run: its directory.
        trusted: import prefixes of somebody's own code.
        examines: whether each wanted step is made once more before, eagerly and with every module watched.
        also: what else is looked at on the way.
        from_first: whether to begin with the first weights, and to believe no checkpoint.
    """

    def __init__(
        self,
        run: RunDirectory,
        trusted: Sequence[str],
        examines: bool = False,
        also: Also | None = None,
        from_first: bool = False,
    ):
        self.run = run
        self.trusted = list(trusted)
        self.examines = examines
        self.also = also or Also()
        self.from_first = from_first

    def make(self, wanted: Collection[int], see: See) -> None:
        """Makes steps again, in one sweep from first to last.

        Args:
            wanted: numbers of steps, from 1.
            see: is given each of them.

        Raises:
            ConfigurationError: the run cannot be made again here.
            IntegrityError: what it begins from is damaged.
        """
        silence_framework()
        with tempfile.TemporaryDirectory() as folder:
            at, checkpoint = 0, None
            remaining = sorted(wanted)
            while remaining:
                begin, newer = self._begin_of(remaining[0])
                if checkpoint is None or begin > at:
                    at, checkpoint = begin, newer
                # As far as no checkpoint is nearer to what follows.
                n_together = 1
                while n_together < len(remaining) and self._begin_of(remaining[n_together])[0] <= at:
                    n_together += 1
                together, remaining = remaining[:n_together], remaining[n_together:]
                for piece in pieces(self.run, at, together[-1]):
                    end = Path(folder) / resume_name(piece.last)
                    if self._make(piece, checkpoint, {*together}, see, end):
                        return
                    at, checkpoint = piece.last, end

    def _begin_of(self, step: int) -> tuple[int, Path | None]:
        return (0, None) if self.from_first else begin_of(self.run, step)

    def _make(
        self, piece: Piece, checkpoint: Path | None, wanted: Collection[int], see: See, end: Path
    ) -> bool:
        """Makes the steps of a piece; whether the sweep is over."""
        cli = RunCLI(Launch(trust_imports=self.trusted), [self._configuration(piece)])
        if not self.also.is_validated:
            cli.config["trainer"]["limit_val_batches"] = 0
        files, content = VerifiedCheckpointIO(), None
        if checkpoint is not None:
            content = files.preload(checkpoint)
            content[STATE_KEY]["validation_pending"] = False  # it leaves no trace in what is trained
            if not self.also.is_validated:
                train_on(content)
        data, seed = cli.build_data(), cli.config["seed"]
        seed_initialisation(seed)
        model = cli.build_model(data, content["state_dict"] if content else None)
        if content is None:
            self._begin(model, files)
        else:
            check_same_run(model, data, seed, content[STATE_KEY], accept_data_change=False)
            data.go_on_from(content[STATE_KEY]["step"], content[STATE_KEY]["windows_seen"])
        curve = TrainingCurve()
        watch = _Watch(piece.last, wanted, curve, see, self.also, end)
        described = {
            "seed": seed,
            "block_size": data.block_size,
            "data": data.fingerprint,
            "configuration": {},
            "place": {},
        }
        callbacks: list[Callback] = [
            *([_Examination(seed, watch)] if self.examines else []),
            StepKeys(seed),
            *([GraphedSteps()] if cli.config["graph"] else []),
            curve,
            NonFiniteStop(seed, self.run.checkpoints),
            RunState(described),
            watch,
        ]
        trainer = cli.build_trainer(callbacks, [files], [], end.parent)
        if trainer.world_size > 1 or piece.launch.place.get("world_size", 1) > 1:
            raise ConfigurationError(
                f"{self.run}: steps {piece.first + 1} to {piece.last} were made by several processes, which add up in "
                "another order than one; they can be made again by a run alone"
            )
        if piece.launch.n_threads and trainer.strategy.root_device.type == "cpu":
            torch.set_num_threads(piece.launch.n_threads)  # sums are cut by them
        compiles = retake(piece.launch.path)
        trainer.callbacks[:0] = [CompiledSteps(compiles)] if compiles != "none" else []  # type: ignore[attr-defined]
        data.check_placement(1, trainer.accumulate_grad_batches)
        model.logged_steps = wanted
        path = None if checkpoint is None else str(checkpoint)
        with warnings.catch_warnings():
            # The watchers' states in the checkpoint are not needed.
            warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`, callbacks used")
            trainer.fit(model, datamodule=data, ckpt_path=path, weights_only=True if path else None)
        return watch.is_over

    def _configuration(self, piece: Piece) -> ConfigFile:
        """That of the launch, without what only watches or ends a training."""
        configuration = configuration_of(self.run, piece.launch)
        trainer = dict(configuration.get("trainer") or {})
        averages = tuple(f".{name}" for name in allowed.AVERAGES) if self.also.is_validated else ()
        callbacks = trainer.get("callbacks") or []
        own = [each for each in callbacks if not _only_watches(each) or _named(each).endswith(averages)]
        kept = {name: value for name, value in trainer.items() if name not in allowed.OPTIONS}
        configuration["trainer"] = kept | ({"callbacks": own} if own else {}) | {"enable_progress_bar": False}
        return ConfigFile(self.run.config, configuration, {})

    def _begin(self, model: Any, files: VerifiedCheckpointIO) -> None:
        """From the first weights: drawn, or those of another run."""
        source = first_weights(self.run)
        if source is None:
            model.begin(None)
            return
        if not source.is_file():
            raise IntegrityError(
                f"{self.run}: began with the weights of {source}, which is gone; put it back"
            )
        take_weights(model, files.load_checkpoint(source)["state_dict"], f"--init_from {source}")


def _only_watches(callback: Any) -> bool:
    """Whether a callback of a configuration is one of those that leave the training as it is."""
    named = _named(callback)
    return "." not in named or named.startswith(("callbacks.", "lightning."))


def _named(callback: Any) -> str:
    named = callback.get("class_path") if isinstance(callback, dict) else callback
    return named if isinstance(named, str) else ""


class _Watch(Callback):
    """Hands on the wanted steps, and ends the training at the last one of its piece."""

    def __init__(
        self, last: int, wanted: Collection[int], curve: TrainingCurve, see: See, also: Also, end: Path
    ):
        self.last, self.wanted, self.curve, self.see, self.also, self.end = (
            last,
            wanted,
            curve,
            see,
            also,
            end,
        )
        self.finding = ""
        self.is_over = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        record = outputs["record"]
        if not record.is_last_micro:
            return
        if record.step in self.wanted:
            self.is_over = self.see(PastStep(record.step, dict(self.curve.last), self.finding))
            self.finding = ""
        if record.step >= self.last or self.is_over:
            trainer.should_stop = True
            if not self.is_over:
                trainer.save_checkpoint(self.end)
        if record.step in self.also.state_steps:
            passed = self.end.with_name("passed.ckpt")
            trainer.save_checkpoint(passed)
            self.also.see_state(record.step, read(passed))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LanguageModelModule)
        self.also.see_validation(trainer.global_step, dict(pl_module.last_validation))


class _Examination(Callback):
    """Looks at every module in a wanted step before it is made."""

    def __init__(self, seed: int, watch: _Watch):
        self.seed, self.watch = seed, watch

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step + 1
        if batch_idx % trainer.accumulate_grad_batches == 0 and step in self.watch.wanted:
            self.watch.finding = replay(trainer, pl_module, step, self.seed)
            rekey(self.seed, trainer.global_step, 0, trainer.global_rank)
