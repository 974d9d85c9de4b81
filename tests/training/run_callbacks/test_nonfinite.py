"""The gate's counts, and when they end a run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.run.errors import NonFiniteError
from app.training.run_callbacks import nonfinite
from app.training.run_callbacks.nonfinite import COUNTS, GATE_KEY, FiniteGate, NonFiniteStop

NAN = float("nan")


def counted(gate: FiniteGate, norms: list[float], first_step: int = 1) -> tuple[int, int, int]:
    optimizer: Any = SimpleNamespace()
    for step, norm in enumerate(norms, start=first_step):
        gate.update(optimizer, torch.tensor(norm), step)
    return gate.read()


def test_what_is_counted() -> None:
    assert FiniteGate("skip").read() == (0, 0, 0)
    assert counted(FiniteGate("skip"), [1.0, 2.0]) == (0, 0, 0)
    assert counted(FiniteGate("skip"), [1.0, NAN, float("inf"), 1.0, NAN]) == (2, 3, 1)
    assert counted(FiniteGate("stop"), [1.0, 1.0, NAN, 1.0]) == (3, 1, 0)


@pytest.mark.parametrize(("mode", "flags"), [("skip", [0.0, 1.0, 0.0]), ("stop", [0.0, 1.0, 1.0])])
def test_the_flag_that_the_optimizer_sees(mode: Any, flags: list[float]) -> None:
    gate, optimizer = FiniteGate(mode), SimpleNamespace()
    for step, norm in enumerate([1.0, NAN, 1.0], start=1):
        gate.update(optimizer, torch.tensor(norm), step)  # type: ignore[arg-type]
        assert optimizer.found_inf.item() == flags[step - 1]
        assert optimizer.found_inf.shape == ()


def test_another_launch_goes_on_counting() -> None:
    whole = counted(FiniteGate("skip"), [1.0, NAN, NAN, NAN, 1.0])
    first = counted(FiniteGate("skip"), [1.0, NAN, NAN])
    again = FiniteGate("skip")
    again.restore(*first)
    assert again.read() == first
    assert counted(again, [NAN], first_step=4) == (2, 3, 3)
    assert counted(again, [1.0], first_step=5) == whole


class Module:
    def __init__(self, mode: Any, counts: tuple[int, int, int], max_skips: int = 3):
        self.nonfinite = mode
        self.max_skips = max_skips
        self.gate = FiniteGate(mode)
        self.gate.restore(*counts)


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> NonFiniteStop:
    monkeypatch.setattr(nonfinite, "replay", lambda trainer, module, step, seed: f"replayed step {step}")
    (tmp_path / "resume-000010.ckpt").touch()
    return NonFiniteStop(seed=1, checkpoints=tmp_path)


class Logger:
    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, float], int]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.logged.append((metrics, step))


def trainer(step: int = 15) -> Any:
    return SimpleNamespace(
        loggers=[Logger()], datamodule=SimpleNamespace(windows_seen=lambda step: 4 * step), global_step=step
    )


def test_all_is_well(stop: NonFiniteStop) -> None:
    for mode in ("stop", "skip"):
        stop.check(trainer(), Module(mode, (0, 0, 0)), 15)


def test_the_first_bad_step_is_named_and_replayed(stop: NonFiniteStop) -> None:
    with pytest.raises(NonFiniteError) as raised:
        stop.check(trainer(), Module("stop", (12, 4, 4)), 15)
    lines = str(raised.value).splitlines()
    assert "at step 12 (windows 44 to 47)" in lines[0]
    assert lines[1] == "replayed step 12"
    assert "last good checkpoint: resume-000010.ckpt;" in lines[2]


def test_skipping_goes_on_up_to_the_cap(stop: NonFiniteStop) -> None:
    one = trainer()
    stop.check(one, Module("skip", (12, 4, 2)), 15)
    assert not one.loggers[0].logged
    stop.check(one, Module("skip", (12, 4, 2)), 15, logs=True)
    assert one.loggers[0].logged == [({"train/skipped_steps": 4.0}, 15)]
    with pytest.raises(NonFiniteError, match="at step 13 "):
        stop.check(trainer(), Module("skip", (2, 9, 3)), 15)


def test_no_checkpoint_of_a_bad_state(stop: NonFiniteStop) -> None:
    content: dict[str, Any] = {}
    with pytest.raises(NonFiniteError):
        stop.on_save_checkpoint(trainer(), Module("stop", (12, 1, 1)), content)  # type: ignore[arg-type]
    assert content == {}


def test_a_checkpoint_keeps_the_counts_for_those_who_skip(stop: NonFiniteStop) -> None:
    content: dict[str, Any] = {}
    stop.on_save_checkpoint(trainer(), Module("skip", (12, 4, 2)), content)  # type: ignore[arg-type]
    assert content == {GATE_KEY: dict(zip(COUNTS, (12, 4, 2), strict=True))}
    skipping, stopping = Module("skip", (0, 0, 0)), Module("stop", (0, 0, 0))
    for module in (skipping, stopping):
        stop.on_load_checkpoint(trainer(), module, content)  # type: ignore[arg-type]
    assert skipping.gate.read() == (12, 4, 2)
    assert stopping.gate.read() == (0, 0, 0)  # else the first look would end the run
