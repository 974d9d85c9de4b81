from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from unseen_architecture import UnseenModule, UnseenNetwork, train

from app.records import LanguageModelOutput, StepRecord
from callbacks import Throughput, throughput
from callbacks.throughput import flops_per_token, memory_bytes

FLOPS = 6 * 12 * 5  # the head of the test network; its embedding is looked up, its bias is no matrix


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: self.now))


def _drive(
    callback: Throughput, clock: Clock, *, steps: range, world_size: int = 1, validate_after: int = -1
) -> dict[int, dict[str, float]]:
    """Two micro-batches of 10 tokens a step, each 0.25 s of waiting, 1 s of work; even steps are logged."""
    logged: dict[int, dict[str, float]] = {}
    logger = SimpleNamespace(log_metrics=lambda metrics, step: logged.update({step: metrics}))
    trainer: Any = SimpleNamespace(
        datamodule=SimpleNamespace(seconds_in_loader=0.0),
        world_size=world_size,
        loggers=[logger],
        global_step=steps[0] - 1,
        sanity_checking=False,
    )
    module: Any = SimpleNamespace(device=torch.device("cpu"), network=UnseenNetwork())
    batch = torch.zeros(2, 5, dtype=torch.int64), None
    output = LanguageModelOutput(torch.empty(0), None, torch.zeros(()), [])
    callback.on_train_start(trainer, module)
    for step in steps:
        for micro_step in range(2):
            clock.now += 0.25
            trainer.datamodule.seconds_in_loader += 0.25
            callback.on_train_batch_start(trainer, module, batch, 0)
            clock.now += 1.0
            record = StepRecord(step, micro_step, micro_step == 1, step % 2 == 0, 10, output, lambda _: {})
            callback.on_train_batch_end(trainer, module, {"record": record}, batch, 0)
        if step == validate_after:
            callback.on_validation_start(trainer, module)
            clock.now += 1000.0
            callback.on_validation_end(trainer, module)
            clock.now += 50.0  # other callbacks, such as text samples
    return logged


def test_numbers_of_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    logged = _drive(Throughput(peak_tflops=1e-9), Clock(monkeypatch), steps=range(1, 5), world_size=4)
    assert sorted(logged) == [2, 4]
    seconds = 4 * 1.25
    assert logged[4].pop("speed/memory_gib") > 0
    assert logged[4] == pytest.approx(
        {
            "speed/tokens_per_second": 160 / seconds,
            "speed/step_ms": 1000 * seconds / 2,
            "speed/data_wait_share": 0.2,
            "speed/flops_per_token": FLOPS,
            "speed/mfu": 160 / seconds * FLOPS / (4 * 1e3),
        }
    )
    # The first interval begins with the first batch.
    assert logged[2]["speed/step_ms"] == pytest.approx(1000 * (seconds - 0.25) / 2)


@pytest.mark.parametrize("validate_after", [2, 3])
def test_validation_is_left_out(monkeypatch: pytest.MonkeyPatch, validate_after: int) -> None:
    logged = _drive(Throughput(), Clock(monkeypatch), steps=range(1, 5), validate_after=validate_after)
    # The wait beside validation goes with it.
    assert logged[4]["speed/step_ms"] == pytest.approx(1000 * (5 - 0.25) / 2)
    assert logged[4]["speed/data_wait_share"] == pytest.approx(1.0 / 4.75)
    assert "speed/mfu" not in logged[4]


def test_a_resumed_launch_measures_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    logged = _drive(Throughput(), Clock(monkeypatch), steps=range(5, 7))
    assert logged[6]["speed/step_ms"] == pytest.approx(1000 * (5 - 0.25) / 2)


def test_in_a_real_run() -> None:
    callback = Throughput()
    module = UnseenModule(log_every=2)
    logger = train(module, [callback], steps=4, micro_batches=2, limit_val_batches=1, val_check_interval=2)
    assert sorted(logger.scalars) == [2, 4]
    assert logger.scalars[4] == callback.last
    assert "speed/data_wait_share" not in callback.last  # this run has no data module that keeps the time


def test_flops_of_tied_and_self_counting_networks() -> None:
    tied = nn.Sequential(nn.Embedding(12, 5), nn.Linear(5, 12, bias=False), nn.LayerNorm(12))
    tied[1].weight = tied[0].weight
    assert flops_per_token(tied, 8) == FLOPS
    assert flops_per_token(nn.Embedding(12, 5), 8) == 0
    counting = nn.Module()
    counting.flops_per_token = lambda block_size: 100 * block_size  # type: ignore[assignment]
    assert flops_per_token(counting, 8) == 800


def test_memory_is_plausible() -> None:
    assert 2**24 < memory_bytes(torch.device("cpu")) < 2**40


@pytest.mark.parametrize("peak", [0.0, -1.0, float("nan")])
def test_a_peak_must_be_positive(peak: float) -> None:
    with pytest.raises(ValueError, match="peak_tflops"):
        Throughput(peak_tflops=peak)
