import os
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils._python_dispatch import TorchDispatchMode
from unseen_architecture import UnseenModule, UnseenNetwork, train, windows

from app.records import Axis, LanguageModelOutput, Measure, StepRecord
from app.training.run_callbacks.watching import keep_running
from callbacks import BankBalance, DepthTimeFigures, RouteFractions, RunHealth, TextSamples, Throughput
from callbacks.watcher import step_record
from tests.support.two_ranks import two_ranks


def test_an_unseen_architecture_gets_scalars_and_details() -> None:
    network = UnseenNetwork()
    logger = train(UnseenModule(network=network), [RouteFractions(), BankBalance()])
    x, _ = windows(8)
    measures = network.measures(LanguageModelOutput(torch.empty(0), None, torch.zeros(()), [x]))
    scalars, details = logger.scalars[1], logger.details[1]
    assert set(details) == {
        "routes/lanes",
        "routes/halted",
        "routes/grid",
        "routes/doubt",
        "balance/experts_used",
        "balance/experts_liked",
    }
    for key, matrix in details.items():
        values = measures[key.split("/")[1]].values
        torch.testing.assert_close(torch.tensor(matrix, dtype=torch.float64), values.double(), msg=key)
    left = measures["lanes"].values[:, 0]
    assert scalars["routes/lanes/left"] == pytest.approx(left.mean().item())
    assert scalars["routes/lanes/left/l02"] == pytest.approx(left[2].item())
    assert scalars["routes/halted/max"] == pytest.approx(left.float().max().item())
    assert scalars["routes/grid/1.2"] == pytest.approx((1 - left).mean().item() / 3)
    assert scalars["routes/doubt/min"] == pytest.approx(2 * left.min().item())
    excess = (measures["experts_liked"].values * 8 - 1).square().mean()
    assert scalars["balance/excess"] == pytest.approx(excess.item())
    assert scalars["balance/dead_banks"] == (measures["experts_used"].values == 0).sum().item() > 0
    assert scalars["balance/aux_loss"] == pytest.approx(x.double().mean().item() / 100)


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    whole, parts = [RouteFractions(), BankBalance()], [RouteFractions(), BankBalance()]
    train(UnseenModule(), whole, steps=2)
    train(UnseenModule(), parts, steps=2, micro_batches=4)
    for one, other in zip(whole, parts, strict=True):
        assert one.last
        assert other.last == pytest.approx(one.last, rel=1e-7)
        assert list(other.last_details) == list(one.last_details)
        for key, matrix in one.last_details.items():
            torch.testing.assert_close(torch.tensor(other.last_details[key]), torch.tensor(matrix), msg=key)


class DerivingNetwork(UnseenNetwork):
    """Also reports the spread of its tokens, which is no mean of spreads."""

    def measures(self, output: LanguageModelOutput) -> dict[str, Measure]:
        idx = output.routing[0].double()
        sums = torch.stack([torch.ones_like(idx).sum(), idx.sum(), idx.square().sum()]).expand(3, 3)

        def spread(sums: torch.Tensor) -> torch.Tensor:
            n, total, squares = sums.unbind(-1)
            return (squares / n - (total / n).square()).sqrt()

        levels = {"kind": "level", "unit": "nats", "reduce": "sum", "derive": spread}
        return {"spread": Measure(sums, (Axis("layer"),), **levels)}


def test_what_is_derived_is_derived_from_the_whole_step() -> None:
    for micro_batches in (1, 4):
        callback = RouteFractions()
        logger = train(
            UnseenModule(network=DerivingNetwork()),
            [callback, DepthTimeFigures()],
            micro_batches=micro_batches,
        )
        spread = windows(8)[0].double().std(correction=0).item()
        assert callback.last["routes/spread/l02"] == pytest.approx(spread, rel=1e-12)
        assert logger.details[1]["routes/spread"] == pytest.approx([spread] * 3, rel=1e-12)


class Guards(Callback):
    """Lets the trainer's watchers fail, as in a run of the application."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        keep_running(trainer)


def watchers() -> list[Any]:
    return [RouteFractions(), BankBalance(), DepthTimeFigures(), RunHealth()]


def _train_on_rank(rank: int, port: int, others: Sequence[Callback], results: Connection) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", RANK=str(rank))
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", LOCAL_WORLD_SIZE="2", GROUP_RANK="0")
    os.environ["TORCHELASTIC_RUN_ID"] = "1"  # the processes are already there; the trainer starts none
    torch.set_num_threads(1)
    callbacks = watchers()
    calls: list[Any] = []
    all_reduce = torch.distributed.all_reduce

    def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append("agree" if kwargs.get("op") == torch.distributed.ReduceOp.MIN else tensor.dtype)
        return all_reduce(tensor, *args, **kwargs)

    torch.distributed.all_reduce = counted
    own = slice(2 * rank, 2 * rank + 2)
    train(UnseenModule(), [*others, *callbacks], micro_batches=2, own=own, devices=2, strategy="ddp")
    results.send([calls, *(callback.last for callback in callbacks)])


@pytest.mark.process
@pytest.mark.parametrize("others", [[], [Guards()]], ids=["any trainer", "the application's"])
def test_two_ranks_report_the_global_batch(others: list[Callback], tmp_path: Path, free_port: int) -> None:
    single = watchers()
    train(UnseenModule(), single)
    found = two_ranks(
        lambda rank, _, results: _train_on_rank(rank, free_port, others, results), tmp_path / "store"
    )
    for calls, *results in found:
        assert calls.count(torch.float64) == 1, "one all-reduce per logged step, however many watchers"
        assert calls.count("agree") == len(others), "and one to agree on it, where they may fail"
        for callback, last in zip(single, results, strict=True):
            assert last == pytest.approx(callback.last, rel=1e-6)


def test_nothing_is_computed_between_logged_steps() -> None:
    module = UnseenModule(log_every=3)
    logger = train(module, [RouteFractions(), BankBalance()], steps=7, micro_batches=2)
    assert sorted(logger.scalars) == [3, 6]
    assert module.network.n_measured == 2 * 2, "once per micro-batch, whoever asks"


def test_one_transfer_per_logged_step(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []

    class CountReads(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._local_scalar_dense.default:
                reads.append("item")
            return func(*args, **(kwargs or {}))

    class Counted(BankBalance):
        def on_train_batch_end(self, *args: Any) -> None:
            with monkeypatch.context() as patch, CountReads():
                cpu = torch.Tensor.cpu
                patch.setattr(torch.Tensor, "cpu", lambda tensor: reads.append("cpu") or cpu(tensor))
                super().on_train_batch_end(*args)

    train(UnseenModule(log_every=2), [Counted()], steps=4, micro_batches=2)
    assert reads == ["cpu", "cpu"]


def test_watchers_change_neither_weights_nor_random_numbers() -> None:
    states = []
    for callbacks in ([], [RouteFractions(), BankBalance(), Throughput(), TextSamples()]):
        torch.manual_seed(3)
        module = UnseenModule(log_every=2)
        train(module, callbacks, steps=4, micro_batches=2, limit_val_batches=1, val_check_interval=4)
        states.append([*(weight.clone() for weight in module.parameters()), torch.get_rng_state()])
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


def test_a_watcher_without_anything_to_watch_warns_once() -> None:
    class Plain(UnseenNetwork):
        def measures(self, output: LanguageModelOutput) -> dict[str, Measure]:
            return {}

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        logger = train(UnseenModule(network=Plain()), [BankBalance(), RouteFractions()], steps=3)
    messages = [str(warning.message) for warning in caught if "no effect" in str(warning.message)]
    assert len(messages) == 2
    assert "BankBalance" in messages[0]
    assert not logger.scalars


def test_a_module_without_records_is_named() -> None:
    with pytest.raises(ValueError, match="record"):
        step_record({"loss": torch.zeros(())})
    with pytest.raises(ValueError, match="NoneType"):
        step_record(None)


def _one_micro_batch(callback: BankBalance, load: torch.Tensor, *, is_last: bool) -> None:
    record = StepRecord(
        step=1,
        micro_step=0,
        is_last_micro=is_last,
        is_logged=True,
        tokens=1,
        output=LanguageModelOutput(torch.empty(0), None, torch.tensor(0.5), []),
        measure=lambda _: {"load": Measure(load, (Axis("layer"), Axis("bank")), "count", reduce="sum")},
    )
    trainer: Any = SimpleNamespace(loggers=[], callbacks=[])
    module: Any = SimpleNamespace(device=torch.device("cpu"))
    callback.on_train_batch_end(trainer, module, {"record": record}, None, 0)


def test_counts_above_fp32_stay_exact() -> None:
    callback = BankBalance()
    load = torch.tensor([[2**24 + 1, 2**24 - 1]])
    _one_micro_batch(callback, load, is_last=True)
    assert callback.last_details == {"balance/load": load.double().tolist()}


def test_a_step_that_was_interrupted_leaves_nothing_behind() -> None:
    callback = BankBalance()
    _one_micro_batch(callback, torch.tensor([[5, 1]]), is_last=False)
    _one_micro_batch(callback, torch.tensor([[2, 3]]), is_last=True)
    assert callback.last_details == {"balance/load": [[2.0, 3.0]]}


def test_values_that_are_no_tensor_are_refused() -> None:
    with pytest.raises(TypeError, match="the values of a measure are a tensor, not a list"):
        Measure([torch.ones(())], (Axis("layer"),), "level")  # type: ignore[arg-type]
