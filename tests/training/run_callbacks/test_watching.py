"""What goes wrong in a watcher, a figure or a logger is told once and ends nothing."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import unseen_architecture
from lightning.pytorch import Callback
from unseen_architecture import RecordingLogger, UnseenModule, UnseenNetwork

from app.analysis import figures
from app.run.errors import StorageError
from app.training.run_callbacks.watching import keep_running
from callbacks import BankBalance, DepthTimeFigures, RouteFractions, TextSamples, Watcher


class Guards(Callback):
    """Lets the trainer's watchers fail, before any of their hooks is called."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        keep_running(trainer)


class HealthLogger(RecordingLogger):
    """Also keeps what is said about the health of a run."""

    def __init__(self) -> None:
        super().__init__()
        self.health: list[tuple[int, str, str]] = []
        self.fields: dict[str, Mapping[str, Any]] = {}

    def log_health(self, findings: Mapping[str, Mapping[str, Any]], step: int) -> None:
        self.health += [(step, key, fields["state"]) for key, fields in findings.items()]
        self.fields |= findings


@pytest.fixture
def logger(monkeypatch: pytest.MonkeyPatch) -> HealthLogger:
    made = HealthLogger()
    monkeypatch.setattr(unseen_architecture, "RecordingLogger", lambda: made)
    return made


def train(*callbacks: Callback, steps: int = 4, **options: Any) -> UnseenModule:
    module = UnseenModule(network=UnseenNetwork())
    options = {"limit_val_batches": 1, "val_check_interval": 1, "num_sanity_val_steps": 0} | options
    unseen_architecture.train(module, [Guards(), *callbacks], steps=steps, **options)
    return module


class Boom(RuntimeError):
    """What watchers raise here."""


class Faulty(Watcher):
    """Raises in one of its hooks, from a step on, and counts the calls."""

    def __init__(self, hook: str, step: int = 2, error: BaseException | None = None):
        self.n_calls = 0

        def fault(*args: Any, **kwargs: Any) -> None:
            self.n_calls += 1
            if args and getattr(args[0], "global_step", step) >= step:
                raise error or Boom("first line\nsecond line")

        setattr(self, hook, fault)


class Counted(Watcher):
    """Asks for no measures, and counts steps."""

    def __init__(self) -> None:
        self.n_calls = 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.n_calls += 1


HOOKS = [name for name in dir(Callback) if name.startswith("on_") and "exception" not in name and "test" not in name
         and "predict" not in name and "checkpoint" not in name and "sanity" not in name]  # fmt: skip


#: one of each kind: before, within and after steps, of a validation, and at the end
SOME = ("setup", "on_before_optimizer_step", "on_train_batch_end", "on_validation_end", "teardown")


@pytest.mark.parametrize(
    "hook", [*SOME, *(pytest.param(hook, marks=pytest.mark.stress) for hook in HOOKS if hook not in SOME)]
)
def test_a_watcher_that_fails_in_any_hook_is_switched_off(
    hook: str, logger: HealthLogger, capsys: pytest.CaptureFixture[str]
) -> None:
    at_start = hook in ("setup", "on_fit_start", "on_train_start", "on_train_epoch_start")
    faulty = Faulty(hook, step=0 if at_start else 2)
    train(faulty, RouteFractions())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("health ")]
    assert len(lines) == 1, lines
    step = logger.health[0][0]
    assert lines[0] == (
        f"health   step {step}: watcher_failed, Faulty: Boom: first line second line; it is switched off until the next "
        "launch; APP_DEBUG=1 shows more"
    )
    assert logger.health == [(step, "watcher_failed/Faulty", "begins")]
    assert logger.fields["watcher_failed/Faulty"]["place"] == "Faulty"
    assert sorted(logger.scalars) == [1, 2, 3, 4], "the other watcher goes on"
    calls = faulty.n_calls
    getattr(faulty, hook)(None, None, None)
    assert faulty.n_calls == calls, "its hooks are not called any more"


def test_a_network_that_cannot_say_its_measures_is_named_once(
    logger: HealthLogger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measures(self: UnseenNetwork, output: Any) -> Any:
        raise Boom("no layers")

    monkeypatch.setattr(UnseenNetwork, "measures", measures)
    measures.__qualname__ = "UnseenNetwork.measures"
    others = Counted()
    train(RouteFractions(), BankBalance(), others)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("health ")]
    assert lines == [
        "health   step 1: measures_failed, UnseenNetwork.measures: Boom: no layers; watchers that ask it are switched off "
        "until the next launch; APP_DEBUG=1 shows more"
    ]
    assert logger.health == [(1, "measures_failed/UnseenNetwork.measures", "begins")]
    assert others.n_calls == 4, "who does not ask goes on"

    monkeypatch.setattr(UnseenNetwork, "measures", lambda self, output: [])
    train(RouteFractions())
    assert "TypeError: returns no dict of names to Measure;" in capsys.readouterr().out


@pytest.mark.parametrize("error", [StorageError("full"), SystemExit(143), RuntimeError("gloo: peer is gone")])
def test_what_says_how_the_run_ends_is_kept_from_nobody(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        train(Faulty("on_train_batch_end", error=error))
    assert raised.value is error


def test_a_callback_that_is_no_watcher_may_be_a_part_of_the_training() -> None:
    class Own(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise Boom("own")

    with pytest.raises(Boom):
        train(Own())


def test_a_traceback_is_shown_on_demand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(Faulty("on_train_batch_end"))
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("APP_DEBUG", "1")
    train(Faulty("on_train_batch_end"))
    assert capsys.readouterr().err.count("Traceback") == 1


def test_one_watcher_fails_over_what_another_one_writes(logger: HealthLogger) -> None:
    class Deaf(Watcher):
        def on_details(self, *args: Any) -> None:
            raise Boom("not a word")

    balance = BankBalance()
    train(Deaf(), balance)
    assert [key for _, key, _ in logger.health] == ["watcher_failed/Deaf"]
    assert balance.last


def test_the_state_of_a_watcher_outlives_its_failure() -> None:
    class Counting(Watcher):
        n = 7

        def on_train_batch_end(self, *args: Any) -> None:
            raise Boom("no more")

        def state_dict(self) -> dict[str, Any]:
            return {"n": self.n}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.n = state["n"]

    class Unreadable(Counting):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise KeyError("m")

    class Unwritable(Counting):
        def state_dict(self) -> dict[str, Any]:
            raise Boom("no state")

    counting, unreadable, unwritable = Counting(), Unreadable(), Unwritable()
    train(counting, unwritable)
    assert counting.state_dict() == {"n": 7}
    assert unwritable.state_dict() == {}
    train(unreadable, steps=1)
    unreadable.load_state_dict({"m": 8})
    assert unreadable.state_dict() == {"m": 8}, "what it cannot read is handed on"


def test_a_figure_is_left_out_and_tried_again(
    logger: HealthLogger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    n_calls = 0

    def draw_quantity(rows: Any, kept: Any, stamp: str) -> bytes:
        nonlocal n_calls
        n_calls += rows.name == "lanes"
        if rows.name == "lanes" and n_calls <= 2:
            raise Boom("no lanes")
        return b"\x89PNG"

    monkeypatch.setattr(figures, "draw_quantity", draw_quantity)
    watcher = DepthTimeFigures()
    train(watcher)
    drawn = [(tag, step) for tag, _, step in logger.figures]
    assert [step for tag, step in drawn if tag == "depth/lanes"] == [3, 4]
    assert [step for tag, step in drawn if tag == "depth/halted"] == [1, 2, 3, 4]
    key = "figure_left_out/DepthTimeFigures, depth/lanes"
    assert logger.health == [(1, key, "begins"), (3, key, "ends")]
    out = capsys.readouterr().out
    assert out.count("figure_left_out") == 1
    assert (
        "step 1: figure_left_out, DepthTimeFigures, depth/lanes: Boom: no lanes; it is tried again the next time"
        in out
    )


def test_figures_that_fail_alike_share_a_line(
    logger: HealthLogger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(figures, "draw_quantity", lambda *given: 1 / 0)
    train(DepthTimeFigures())
    lines = [line for line in capsys.readouterr().out.splitlines() if "figure_left_out" in line]
    assert len(lines) == 1 and "4 more in health.jsonl: ZeroDivisionError" in lines[0]
    assert len(logger.health) == 7


def test_in_a_trainer_of_somebody_else_a_figure_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "draw_quantity", lambda *given: 1 / 0)
    with pytest.warns(UserWarning, match="DepthTimeFigures: depth/.* is left out") as told:
        unseen_architecture.train(UnseenModule(), [DepthTimeFigures()], limit_val_batches=1)
    assert sum("is left out" in str(warning.message) for warning in told) == 7


def test_what_a_logger_does_not_take_is_left_out(
    logger: HealthLogger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def log_text(tag: str, text: str, step: int) -> None:
        raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")

    logger.log_text = log_text  # type: ignore[method-assign]
    samples = TextSamples()
    train(RouteFractions(), samples)
    assert samples.last and sorted(logger.scalars) == [1, 2, 3, 4]
    assert logger.health == [(1, "not_logged/HealthLogger.log_text", "begins")]
    assert capsys.readouterr().out.count("not_logged, HealthLogger.log_text: UnicodeEncodeError") == 1


def test_a_logger_that_takes_no_word_about_itself(
    logger: HealthLogger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logger.log_health = logger.log_metrics = lambda *args, **kwargs: 1 / 0  # type: ignore[method-assign, assignment]
    train(RouteFractions())
    assert capsys.readouterr().out.count("not_logged, ") == 2


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), StorageError("full")])
def test_a_disk_that_refuses_a_logger_ends_the_run(error: Exception, logger: HealthLogger) -> None:
    def log_metrics(*args: Any, **kwargs: Any) -> None:
        raise error

    logger.log_metrics = log_metrics  # type: ignore[method-assign]
    with pytest.raises(StorageError):
        train(RouteFractions())


def test_one_of_the_frameworks_that_lost_its_connection_does_not(
    logger: HealthLogger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def log_metrics(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route to host")

    logger.log_metrics = log_metrics  # type: ignore[method-assign]
    monkeypatch.setattr(HealthLogger, "__module__", "lightning.pytorch.loggers.mlflow")
    train(RouteFractions())
    assert "not_logged, HealthLogger.log_metrics: ConnectionError: no route" in capsys.readouterr().out


def test_weights_are_those_of_an_undisturbed_run() -> None:
    found = []
    for callbacks in ([], [Faulty("on_train_batch_end"), Faulty("on_before_optimizer_step", step=1)]):
        torch.manual_seed(0)
        found.append([*train(*callbacks).state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))
