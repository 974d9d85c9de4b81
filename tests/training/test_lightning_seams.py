"""Each way around the framework, shown to be needed: a test that fails says that a seam can go, or has to change."""

import inspect
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, LearningRateMonitor
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch.utils.data import DataLoader

from app.training import lightning_seams

REPOSITORY = Path(__file__).parents[2]
#: an import of what the framework keeps to itself, or a use of it on one of its objects
PRIVATE = re.compile(
    r"from lightning[\w.]* import [^#\n]*\b_[A-Za-z]"
    r"|\b(trainer|pl_module|module|callback|loop|model|strategy)\._[a-z](?!_)\w*"
    r"|self\._(trainer|average_model|launcher|ddp_kwargs|swap_models)\b"
)


def test_what_the_framework_keeps_to_itself_is_used_in_one_file() -> None:
    found = {
        file.relative_to(REPOSITORY).as_posix(): match[0]
        for folder in ("app/training", "app/commands", "callbacks", "datamodules")
        for file in (REPOSITORY / folder).rglob("*.py")
        if (match := PRIVATE.search(file.read_text()))
    }
    assert found.pop("app/training/lightning_seams.py")
    assert found.pop("app/training/first_weights.py") == "module._buffers"  # PyTorch's
    assert not found


class Line(LightningModule):
    """One layer, on an endless enough stream."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.layer(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Seen(Callback):
    """What happened, by name, with the optimizer steps that were complete."""

    def __init__(self) -> None:
        self.steps: dict[str, list[int]] = {"start": [], "batch": [], "validation": []}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.steps["start"].append(trainer.global_step)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.steps["batch"].append(trainer.global_step)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.steps["validation"].append(trainer.global_step)


class Steps(Logger):
    """At which steps something was logged."""

    name = version = ""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int | None] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.steps.append(step)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


def fit(*callbacks: Callback, ckpt_path: Path | None = None, **options: Any) -> tuple[Trainer, Line]:
    """A fit on the framework alone."""
    defaults: dict[str, Any] = {
        "max_steps": 6, "val_check_interval": 100, "limit_val_batches": 1, "log_every_n_steps": 3, "logger": False,
    }  # fmt: skip
    module, data = Line(), torch.ones(64, 2)
    trainer = Trainer(
        accelerator="cpu", max_epochs=-1, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=list(callbacks), **defaults | options,
    )  # fmt: skip
    loaders = [DataLoader(data, batch_size=1) for _ in range(2)]
    trainer.fit(module, *loaders, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return trainer, module


# -- loops ----------------------------------------------------------------------------------------------


def test_the_framework_validates_by_micro_batches_and_not_after_the_last_step() -> None:
    seen = Seen()
    fit(seen, accumulate_grad_batches=2, val_check_interval=4)
    assert seen.steps["validation"] == [2, 4, 6]
    seen = Seen()
    fit(seen, val_check_interval=4)
    assert seen.steps["validation"] == [4]


def test_the_framework_stops_in_the_midst_of_a_step() -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            trainer.should_stop = args[-1] == 2

    seen = Seen()
    fit(Stop(), seen, accumulate_grad_batches=2)
    assert seen.steps["batch"] == [0, 1, 1]


def test_the_framework_runs_no_hook_where_no_step_is_left(tmp_path: Path) -> None:
    trainer, _ = fit()
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    seen = Seen()
    fit(seen, ckpt_path=tmp_path / "a.ckpt")
    assert seen.steps["start"] == []


def test_the_framework_loses_a_validation_that_a_checkpoint_owes(tmp_path: Path) -> None:
    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "owes.ckpt")

    fit(Save(), val_check_interval=4)
    seen = Seen()
    fit(seen, ckpt_path=tmp_path / "owes.ckpt", val_check_interval=4, max_steps=8)
    assert seen.steps["validation"] == [8]


def test_the_framework_numbers_steps_from_zero_and_logs_neither_the_first_nor_the_last() -> None:
    logger = Steps()
    fit(LearningRateMonitor(logging_interval="step"), logger=logger, max_steps=7)
    assert logger.steps == [2, 5]


def test_the_framework_exchanges_a_flag_before_every_step() -> None:
    assert "self._broadcast_sigterm_tensor()" in inspect.getsource(_TrainingEpochLoop.advance)


def test_the_framework_sets_handlers_of_its_own() -> None:
    class Handler(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.found = signal.getsignal(signal.SIGTERM)

    handler = Handler()
    before = signal.getsignal(signal.SIGTERM)
    fit(handler)
    assert handler.found != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_module_says_by_an_error_that_it_has_no_trainer() -> None:
    module = Line()
    with pytest.raises(RuntimeError, match="not attached"):
        module.trainer  # noqa: B018
    assert not lightning_seams.is_attached(module)


# -- ranks ----------------------------------------------------------------------------------------------


def test_the_framework_wraps_a_module_on_a_stream_apart() -> None:
    assert "torch.cuda.stream" in inspect.getsource(DDPStrategy._setup_model)


def test_the_framework_kills_all_ranks_when_one_ends_badly() -> None:
    assert "_launch_process_observer" in inspect.getsource(_SubprocessScriptLauncher.launch)


# -- callbacks ------------------------------------------------------------------------------------------


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone()


class Weights(Callback):
    """The weights after the last step, and when everything that follows a validation uses them."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.trained = weights(pl_module)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.after_validation = weights(pl_module)


def test_the_framework_forgets_the_trained_weights_at_the_end(tmp_path: Path) -> None:
    seen = Weights()
    trainer, module = fit(seen, EMAWeightAveraging(decay=0.9))
    assert not torch.equal(weights(module), seen.trained)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    trained = torch.cat([value.flatten() for value in content["current_model_state"].values()])
    assert torch.equal(trained, weights(module))


def test_the_framework_ends_the_swap_before_what_follows_a_validation() -> None:
    seen = Weights()
    fit(seen, EMAWeightAveraging(decay=0.9), val_check_interval=6)
    assert torch.equal(seen.after_validation, seen.trained)


def test_the_framework_averages_from_the_first_weights_on(tmp_path: Path) -> None:
    trainer, module = fit(EMAWeightAveraging(update_starting_at_step=100))
    assert torch.equal(weights(module), weights(Line()))
    assert trainer.global_step == 6


def test_the_framework_averages_buffers() -> None:
    assert inspect.signature(EMAWeightAveraging).parameters["use_buffers"].default is True


def test_the_frameworks_checkpoint_decides_the_patience() -> None:
    stops = EarlyStopping("val/loss", patience=1)
    later = EarlyStopping("val/loss", patience=5)
    later.load_state_dict(stops.state_dict())
    assert later.patience == 1


def test_the_framework_asks_of_each_hook_whether_its_name_is_a_parameter() -> None:
    """And takes a generator for each callback in each hook, to profile nothing."""

    class Counts(lightning_seams.QuickNotes, Line):
        n_notes = 0

        def __setattr__(self, name: str, value: Any) -> None:
            Counts.n_notes += name == "_current_fx_name"
            super().__setattr__(name, value)

    class Profiled(lightning_seams.Unprofiled):
        n_contexts = 0

        def profile(self, action_name: str) -> Any:
            Profiled.n_contexts += 1
            return super().profile(action_name)

    slow = []
    own = torch.nn.Module.__setattr__

    def noted(self: torch.nn.Module, name: str, value: Any) -> None:
        slow.append(name)
        own(self, name, value)

    patch = pytest.MonkeyPatch()
    patch.setattr(torch.nn.Module, "__setattr__", noted)
    try:
        module, plain = Counts(), Line()
        for each, profiler in ((module, Profiled()), (plain, None)):
            slow.clear()
            trainer = Trainer(max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False,
                              enable_progress_bar=False, enable_model_summary=False, profiler=profiler)  # fmt: skip
            trainer.fit(each, DataLoader(torch.ones(8, 1, 2), batch_size=None))
            n_slow = slow.count("_current_fx_name")
            assert n_slow == 0 if each is module else n_slow > 4 * 10
    finally:
        patch.undo()
    assert Counts.n_notes > 4 * 10
    assert Profiled.n_contexts > 4 * 10
    assert torch.equal(module.layer.weight, plain.layer.weight)
