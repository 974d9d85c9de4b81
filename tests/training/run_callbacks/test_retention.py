"""Which checkpoints there are, and what a state must be to become one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.models.gpt import GPT
from app.run import checkpoint
from app.run.directory import RunDirectory
from app.run.errors import IntegrityError, StorageError
from app.run.saved_state import STATE_KEY
from app.training.language_model import LanguageModelModule
from app.training.logging.loggers import RunFilesLogger
from app.training.run_callbacks.retention import (
    BestCheckpoint,
    LatestCheckpoints,
    RunState,
    VerifiedCheckpointIO,
    validation_due,
)
from app.training.run_callbacks.status_file import StatusFile
from app.training.session import Session
from tests.support.made_runs import checkpoint_content


class Trainer:
    """What a keeper uses of the framework's: it writes a file for every save."""

    def __init__(self, max_steps: int = 100, is_global_zero: bool = True):
        self.max_steps = max_steps
        self.is_global_zero = is_global_zero
        self.enable_validation = True
        self.should_stop = False
        self.val_check_interval = 20
        self.global_step = 0
        self.loggers: list[Any] = []
        self.saved: list[str] = []
        self.strategy = SimpleNamespace(broadcast=lambda value: value)

    def save_checkpoint(self, path: Path) -> None:
        self.saved.append(path.name)
        checkpoint.write({"step": self.global_step}, path)


@pytest.fixture
def module() -> LanguageModelModule:
    return LanguageModelModule(GPT(5, 4, 1, 1, 4))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.ckpt"))


def record(step: int, is_last_micro: bool = True) -> dict[str, Any]:
    return {"record": SimpleNamespace(step=step, is_last_micro=is_last_micro)}


def train(keeper: LatestCheckpoints, trainer: Any, first: int, last: int) -> None:
    for step in range(first, last + 1):
        trainer.global_step = step - 1
        keeper.on_train_batch_end(trainer, None, record(step, is_last_micro=False))  # type: ignore[arg-type]
        trainer.global_step = step
        keeper.on_train_batch_end(trainer, None, record(step))  # type: ignore[arg-type]


def test_the_last_two_stay_and_the_last_step_is_always_saved(tmp_path: Path) -> None:
    trainer = Trainer(max_steps=35)
    keeper = LatestCheckpoints(tmp_path, RunState({}), every_n_steps=10)
    train(keeper, trainer, 1, 35)
    assert trainer.saved == [f"resume-0000{step}.ckpt" for step in (10, 20, 30, 35)]
    assert names(tmp_path) == ["resume-000030.ckpt", "resume-000035.ckpt"]
    assert len(list(tmp_path.iterdir())) == 4  # a sidecar each, nothing else


def test_a_checkpoint_owes_the_validation_of_its_step(tmp_path: Path) -> None:
    trainer, state = Trainer(max_steps=35), RunState({})
    owed = []
    keeper = LatestCheckpoints(tmp_path, state, every_n_steps=10)
    trainer.save_checkpoint = lambda path: owed.append(state.validation_pending)  # type: ignore[method-assign]
    train(keeper, trainer, 1, 35)
    assert owed == [False, True, False, True]
    keeper.on_train_end(trainer, None)  # type: ignore[arg-type]
    assert owed[-1] is False


def test_a_later_history_is_given_up_when_training_starts(tmp_path: Path) -> None:
    trainer, state = Trainer(), RunState({})
    rolling, best = LatestCheckpoints(tmp_path, state, 10), BestCheckpoint(tmp_path, state)
    for name in ("resume-000010.ckpt", "resume-000020.ckpt", "best-000020.ckpt"):
        checkpoint.write({}, tmp_path / name)
    best.load_state_dict({"best_loss": 2.5, "best_step": 8})
    everything = names(tmp_path)
    for keeper in (rolling, best):
        keeper.on_fit_start(trainer, None)  # type: ignore[arg-type]
    assert names(tmp_path) == everything  # a new run removes nothing
    state.resumed_step = 10
    other_rank = Trainer(is_global_zero=False)
    rolling.on_fit_start(other_rank, None)  # type: ignore[arg-type]
    assert names(tmp_path) == everything
    best.load_state_dict({"best_loss": 2.5, "best_step": 8})
    for keeper in (rolling, best):
        keeper.on_fit_start(trainer, None)  # type: ignore[arg-type]
    assert names(tmp_path) == ["resume-000010.ckpt"]
    # The file of step 8 went when that of step 20 came: the next validation is the best there is.
    assert best.state_dict() == {"best_loss": float("inf"), "best_step": 0}


def test_a_best_loss_whose_file_is_there_is_kept(tmp_path: Path) -> None:
    state = RunState({})
    state.resumed_step = 10
    keeper = BestCheckpoint(tmp_path, state)
    checkpoint.write({}, tmp_path / "best-000008.ckpt")
    keeper.load_state_dict({"best_loss": 2.5, "best_step": 8})
    keeper.on_fit_start(Trainer(), None)  # type: ignore[arg-type]
    assert keeper.state_dict() == {"best_loss": 2.5, "best_step": 8}


def test_only_a_lower_finite_loss_is_best(tmp_path: Path, module: LanguageModelModule) -> None:
    trainer, keeper = Trainer(), BestCheckpoint(tmp_path, RunState({}))
    for step, loss in (
        (1, float("nan")),
        (2, 3.0),
        (3, 3.0),
        (4, float("nan")),
        (5, 2.5),
        (6, float("inf")),
        (7, 2.6),
    ):
        trainer.global_step = step
        module.last_validation = {"val/loss": loss}
        keeper.on_validation_end(trainer, module)  # type: ignore[arg-type]
    assert trainer.saved == ["best-000002.ckpt", "best-000005.ckpt"]
    assert names(tmp_path) == ["best-000005.ckpt"]
    assert keeper.state_dict() == {"best_loss": 2.5, "best_step": 5}


def test_the_two_keepers_have_states_of_their_own(tmp_path: Path) -> None:
    state = RunState({})
    assert LatestCheckpoints(tmp_path, state, 1).state_key != BestCheckpoint(tmp_path, state).state_key


@pytest.mark.parametrize(
    ("step", "enabled", "due"), [(20, True, True), (21, True, False), (50, True, True), (20, False, False)]
)
def test_when_a_validation_is_due(step: int, enabled: bool, due: bool) -> None:
    trainer = Trainer(max_steps=50)
    trainer.enable_validation = enabled
    assert validation_due(trainer, step) is due  # type: ignore[arg-type]


def test_what_a_checkpoint_says_of_its_run(tmp_path: Path, module: LanguageModelModule) -> None:
    data = SimpleNamespace(windows_seen=lambda step: 100 + step)
    files = RunFilesLogger(tmp_path)
    for step in (5, 6, 7):
        files.log_metrics({"train/loss": 1.5}, step)
    trainer: Any = SimpleNamespace(global_step=7, datamodule=data, callbacks=[], loggers=[files])
    content: dict[str, Any] = {"loops": {"fit_loop": {}}, "epoch": 3}
    RunState({"seed": 1, "data": {"sha256": "x"}}).on_save_checkpoint(trainer, module, content)
    assert "loops" not in content
    assert content["epoch"] == 0
    said = content[STATE_KEY]
    assert (said["step"], said["windows_seen"], said["validation_pending"], said["seed"]) == (
        7,
        107,
        False,
        1,
    )
    assert said["format"] == checkpoint.FORMAT
    assert said["running_hashes"]["metrics.csv"]["entries"] == 2  # the newest step's may still change
    assert said["network"]["class_path"] == "app.models.gpt.network.GPT"


class Lost:
    """The lock of a run that somebody takes over after so many looks at it."""

    def __init__(self, n_looks: int = 0):
        self.n_looks = n_looks

    def check(self, trusted_seconds: float = 0.0) -> None:
        if not self.n_looks:
            raise StorageError("taken over")
        self.n_looks -= 1


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("n_looks", [0, 1])
def test_a_run_that_somebody_took_over_saves_and_removes_nothing(tmp_path: Path, n_looks: int) -> None:
    """Before a save, and again before what it made superfluous is removed."""
    trainer, state = Trainer(), RunState({})
    keepers: list[Any] = [LatestCheckpoints(tmp_path, state, 10), BestCheckpoint(tmp_path, state)]
    for name in ("resume-000010.ckpt", "resume-000020.ckpt", "best-000010.ckpt"):
        checkpoint.write({}, tmp_path / name)
    before = contents(tmp_path)
    for keeper in keepers:
        state.lock = Lost(n_looks)  # type: ignore[assignment]
        with pytest.raises(StorageError, match="taken over"):
            keeper.save(trainer, 30, False)
    assert trainer.saved == ["resume-000030.ckpt", "best-000030.ckpt"][: 2 * n_looks]
    assert before.items() <= contents(tmp_path).items()


def test_a_run_that_somebody_took_over_keeps_its_later_checkpoints(tmp_path: Path) -> None:
    state = RunState({}, Lost())  # type: ignore[arg-type]
    state.resumed_step = 10
    checkpoint.write({}, tmp_path / "resume-000020.ckpt")
    with pytest.raises(StorageError, match="taken over"):
        LatestCheckpoints(tmp_path, state, 10).on_fit_start(Trainer(), None)  # type: ignore[arg-type]
    assert names(tmp_path) == ["resume-000020.ckpt"]


def test_a_file_is_not_replaced_by_one_that_took_too_long_to_write(tmp_path: Path) -> None:
    path = tmp_path / "resume-000010.ckpt"
    checkpoint.write({"step": 10}, path)
    before = contents(tmp_path)
    with pytest.raises(StorageError, match="taken over"):
        VerifiedCheckpointIO(Lost()).save_checkpoint({"step": 11}, path)  # type: ignore[arg-type]
    assert contents(tmp_path) == before


def test_a_step_does_not_begin_in_a_run_that_somebody_took_over() -> None:
    with pytest.raises(StorageError, match="taken over"):
        RunState({}, Lost()).on_train_batch_start(None, None, {}, 0)  # type: ignore[arg-type]
    RunState({}).on_train_batch_start(None, None, {}, 0)  # type: ignore[arg-type]


def test_the_status_of_a_run_that_somebody_took_over_is_theirs(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(StorageError, match="taken over"):
        StatusFile(run, Lost()).on_train_start(Trainer(), None)  # type: ignore[arg-type]
    assert not run.status.exists()


@pytest.mark.parametrize("may_write", [True, False])
def test_the_loss_of_a_rank_is_noted_in_our_own_run_only(tmp_path: Path, may_write: bool) -> None:
    launched = SimpleNamespace(may_write=may_write, close=lambda: None)
    session: Any = SimpleNamespace(
        directory=RunDirectory(tmp_path), step=3, launched=launched, is_recorded=True
    )
    Session._lost(session, "rank 1 was lost (signal 9)")
    assert session.directory.status.exists() is may_write


def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    files = VerifiedCheckpointIO()
    path = tmp_path / "checkpoints" / "resume-000001.ckpt"
    files.save_checkpoint({"state_dict": {}}, path)  # makes the folder
    with pytest.raises(IntegrityError, match="is no checkpoint of a run"):
        files.load_checkpoint(path)


def test_what_was_read_ahead_is_handed_out_once(tmp_path: Path) -> None:
    files = VerifiedCheckpointIO()
    path = tmp_path / "resume-000001.ckpt"
    files.save_checkpoint({**checkpoint_content(), "x": torch.ones(2)}, path)
    ahead = files.preload(path)
    assert files.load_checkpoint(path) is ahead
    assert files.load_checkpoint(path) is not ahead
    files.remove_checkpoint(path)
    assert not list(tmp_path.iterdir())
