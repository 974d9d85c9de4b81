import io
import json
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from unseen_architecture import BLOCK_SIZE, VOCAB_SIZE, UnseenModule, UnseenNetwork, train

from app.models.equilibrium import EquilibriumLM
from app.records import Axis, LanguageModelOutput, Measure, StepRecord, TernaryWeight
from app.training.logging.loggers import RunFilesLogger
from app.training.run_callbacks.curve import TrainingCurve
from app.training.run_callbacks.progress import RunProgress
from callbacks import RunHealth

LAYER, PATHWAY, BANK = Axis("layer"), Axis("pathway", ("local", "dense")), Axis("bank")
EVEN = {
    "load": Measure(torch.ones(2, 2, 2), (LAYER, PATHWAY, BANK), "count", reduce="sum"),
    "share": Measure(torch.full((2, 2), 0.5), (LAYER, PATHWAY), "share"),
    "doubt": Measure(torch.full((2,), 0.6), (LAYER,), "level", unit="nats"),
    "cuts": Measure(torch.tensor([[1.0, 2.0, 3.0]] * 2), (LAYER, Axis("cut")), "threshold"),
}


class Network(nn.Module):
    """One weight per layer; trits are its sign pattern."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ParameterList([nn.Parameter(torch.zeros(4)) for _ in range(2)])

    def ternary_weights(self) -> dict[str, TernaryWeight]:
        return {
            f"blocks.{i}": TernaryWeight(weight.detach().sign().to(torch.int8), torch.ones(()), i)
            for i, weight in enumerate(self.blocks)
        }


class Module(SimpleNamespace):
    """What a callback asks of the training module; watchers share what they read under its identity."""

    __hash__ = object.__hash__


class Driver:
    """Feeds logged steps to a callback: what each step reports is given, nothing is trained."""

    def __init__(self, callback: RunHealth, run: Path, start: int = 0) -> None:
        self.callback = callback
        run.mkdir(exist_ok=True)
        self.trainer: Any = SimpleNamespace(
            loggers=[RunFilesLogger(run, resume_step=start)],
            callbacks=[],
            global_step=start,
            is_global_zero=True,
        )
        self.module: Any = Module(
            device=torch.device("cpu"), network=Network(), gradient_norm=None, is_logged=lambda step: True
        )
        callback.on_train_start(self.trainer, self.module)

    def step(
        self, step: int, norm: float | None = None, flips: tuple[int, ...] = (0, 1), **changes: Any
    ) -> None:
        self.trainer.global_step = step - 1
        self.callback.on_train_batch_start(self.trainer, self.module, None, 0)  # type: ignore[arg-type]
        for layer in flips:
            weight = self.module.network.blocks[layer]
            with torch.no_grad():
                weight[0] = 1 - weight[0]
        self.module.gradient_norm = None if norm is None else torch.tensor(norm)
        for layer, weight in enumerate(self.module.network.blocks):
            weight.grad = torch.full((4,), 1.0 + layer)
        measures = EVEN | {
            name: Measure(
                values, EVEN[name].axes, EVEN[name].kind, reduce=EVEN[name].reduce, unit=EVEN[name].unit
            )
            for name, values in changes.items()
        }
        output = LanguageModelOutput(torch.empty(0), None, torch.zeros(()), [])
        record = StepRecord(step, 0, True, True, 1, output, lambda _: measures)
        self.callback.on_train_batch_end(self.trainer, self.module, {"record": record}, None, 0)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "health.jsonl").read_text().splitlines()]


def test_a_healthy_run_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    driver = Driver(RunHealth(), tmp_path)
    for step in range(10, 500, 10):
        driver.step(step, norm=1.0 + step % 3)
    assert (tmp_path / "health.jsonl").read_text() == ""
    assert capsys.readouterr().out == ""
    assert driver.callback.last == {"health/open": 0.0}


def _load(dead: int) -> Tensor:
    load = torch.ones(2, 2, 2)
    load.view(-1)[dead] = 0
    return load


#: condition → what the bad steps report, step at which it is told, layer, place
BAD = {
    "dead_bank": ({"load": _load(7)}, 260, 1, "layer 1, pathway dense, bank 1"),
    "one_sided": ({"share": torch.tensor([[0.5, 0.5], [0.04, 0.96]])}, 50, 1, "layer 1, pathway dense"),
    "low_entropy": ({"doubt": torch.tensor([0.06, 0.6])}, 50, 0, "layer 0"),
    "threshold_order": ({"cuts": torch.tensor([[1.0, 2.0, 3.0], [2.0, 1.9, 3.0]])}, 50, 1, "layer 1"),
    "no_flips": ({"flips": (0,)}, 260, 1, "layer 1"),
    "gradient_spike": ({"norm": 11.0}, 100, 1, "largest in blocks.1"),
}


@pytest.mark.parametrize("condition", BAD)
def test_each_condition_is_told_when_it_begins_and_when_it_ends(
    condition: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, told_at, layer, place = BAD[condition]
    # A spike needs a history to stand out from, and would soon be part of it.
    first, last = (100, 120) if condition == "gradient_spike" else (50, 400)
    driver = Driver(RunHealth(), tmp_path)
    for step in range(10, 500, 10):
        driver.step(step, **({"norm": 1.0} | (bad if first <= step <= last else {})))
    begins, ends = lines(tmp_path)
    assert (begins["step"], begins["state"], begins["condition"]) == (told_at, "begins", condition)
    assert (begins["layer"], begins["place"]) == (layer, place)
    assert begins["remedy"]
    assert (ends["step"], ends["state"], ends["key"]) == (last + 10, "ends", begins["key"])
    said, over = capsys.readouterr().out.splitlines()
    assert said.startswith(f"health   step {told_at}: {condition}, {place}: ")
    assert said.endswith(f"try first: {begins['remedy']}")
    assert over == f"health   step {last + 10}: {condition}, {place}: is over"


def test_a_bank_is_dead_only_after_the_whole_time(tmp_path: Path) -> None:
    driver = Driver(RunHealth(), tmp_path)
    for step in range(10, 211, 10):
        driver.step(step, load=_load(0))
    assert lines(tmp_path) == []
    driver.step(220)  # one token is enough
    for step in range(230, 431, 10):
        driver.step(step, load=_load(0))
    assert lines(tmp_path) == []
    driver.step(440, load=_load(0))
    assert [line["step"] for line in lines(tmp_path)] == [440]


def test_a_value_beside_its_limit_is_told_once(tmp_path: Path) -> None:
    driver = Driver(RunHealth(), tmp_path)
    for step in range(1, 40):
        share = 0.951 if step % 2 else 0.949
        driver.step(
            step,
            share=torch.tensor([[share, 1 - share]] * 2),
            doubt=torch.tensor([0.5, 0.069 + step % 2 / 1e3]),
        )
    assert [(line["step"], line["condition"], line["layer"]) for line in lines(tmp_path)] == [
        (1, "one_sided", 0),
        (1, "one_sided", 1),
        (2, "low_entropy", 1),
    ]


def test_many_places_share_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    driver = Driver(RunHealth(dead_steps=5), tmp_path)
    for step in (1, 7):
        driver.step(step, load=torch.zeros(2, 2, 2))
    (line,) = capsys.readouterr().out.splitlines()
    assert "layer 0, pathway local, bank 0; " in line
    assert "; 5 more in health.jsonl" in line
    assert len(lines(tmp_path)) == 8


def test_a_share_that_is_meant_to_be_large_is_no_finding(tmp_path: Path) -> None:
    callback = RunHealth()
    share = torch.tensor([[0.97, 0.03]])
    for target, n_findings in ((None, 1), (torch.tensor([0.96, 0.04]), 0)):
        callback.report({"share": Measure(share, (LAYER, PATHWAY), "share", target=target)})
        assert len(callback.open) == n_findings


def test_norms_that_are_not_finite_are_left_to_the_gate(tmp_path: Path) -> None:
    driver = Driver(RunHealth(), tmp_path)
    for step in range(1, 20):
        driver.step(step, norm=float("nan") if step % 2 else 1.0)
    assert lines(tmp_path) == []


def _bad_run(callback: RunHealth, run: Path, steps: range, start: int = 0) -> None:
    """From step 30 on a dead bank and still weights, from 100 to 330 a one-sided router, a spike at 300."""
    driver = Driver(callback, run, start)
    for step in steps:
        one_sided = torch.tensor([[0.01, 0.99], [0.5, 0.5]])
        driver.step(
            step,
            norm=50.0 if step == 300 else 1.0,
            flips=() if step >= 30 else (0, 1),
            **({"load": _load(3)} if step >= 30 else {}),
            **({"share": one_sided} if 100 <= step <= 330 else {}),
        )


@pytest.mark.parametrize("saved_at", [60, 110, 230, 240, 300, 340])
def test_a_resumed_run_neither_repeats_nor_forgets(saved_at: int, tmp_path: Path) -> None:
    whole, first = RunHealth(), RunHealth()
    _bad_run(whole, tmp_path / "whole", range(10, 401, 10))
    expected = (tmp_path / "whole/health.jsonl").read_text()
    assert [line["step"] for line in lines(tmp_path / "whole")] == [100, 240, 240, 240, 300, 310, 340]
    saved: dict[str, Any] = {}
    _bad_run(first, tmp_path / "broken", range(10, saved_at + 1, 10))
    saved = torch_copy(first.state_dict())
    driver = Driver(first, tmp_path / "broken", saved_at)  # goes on past the checkpoint and is then killed
    for step in range(saved_at + 10, saved_at + 31, 10):
        driver.step(step, share=torch.tensor([[0.5, 0.5], [0.99, 0.01]]))
    assert (tmp_path / "broken/health.jsonl").read_text() != expected
    second = RunHealth()
    second.load_state_dict(saved)
    _bad_run(second, tmp_path / "broken", range(saved_at + 10, 401, 10), start=saved_at)
    assert (tmp_path / "broken/health.jsonl").read_text() == expected
    assert second.state_dict() == whole.state_dict()


def torch_copy(state: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a checkpoint: plain values only."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_lines_after_the_checkpoint_go_even_where_nothing_follows(tmp_path: Path) -> None:
    driver = Driver(RunHealth(), tmp_path)
    driver.step(10)
    driver.step(20, share=torch.tensor([[0.01, 0.99], [0.5, 0.5]]))
    assert len(lines(tmp_path)) == 1
    again = Driver(RunHealth(), tmp_path, start=10)
    again.step(20)
    assert lines(tmp_path) == []


def test_a_lone_bar_is_not_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal a line stands above the bar, alone and whole, and the bar goes on below it."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "300")
    bar = RunProgress(TrainingCurve(), plain=False)
    driver = Driver(RunHealth(), tmp_path)
    trainer = driver.trainer
    trainer.max_steps = 20
    bar.on_train_start(trainer, driver.module)
    driver.step(10, share=torch.tensor([[0.01, 0.99], [0.5, 0.5]]))
    bar.on_train_end(trainer, driver.module)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue().replace("\r", "\n"))
    (said,) = [line.strip() for line in plain.splitlines() if "one_sided" in line]
    assert said.startswith(
        "health   step 10: one_sided, layer 0, pathway dense: has 99.0% of share; try first: "
    )
    assert "0/20" not in said
    assert "0/20" in plain[plain.index("one_sided") :]


def test_an_unseen_architecture_is_judged(capsys: pytest.CaptureFixture[str]) -> None:
    class Lopsided(UnseenNetwork):
        def measures(self, output: LanguageModelOutput) -> dict[str, Measure]:
            lanes = torch.tensor([[0.99, 0.01]] * 3)
            return super().measures(output) | {"lanes": Measure(lanes, (LAYER, Axis("lane")), "share")}

    callback = RunHealth(dead_steps=2)
    logger = train(UnseenModule(network=Lopsided()), [callback], steps=4, micro_batches=2)
    out = capsys.readouterr().out
    assert "step 1: one_sided, layer 0, lane 0; layer 1, lane 0; layer 2, lane 0: has 99.0% of lanes" in out
    assert "step 4: dead_bank, layer 0, lane left, bank 3" in out
    assert logger.scalars[4]["health/open"] == len(callback.open) == 3 + 10


def test_what_is_not_in_force_yet_is_not_judged() -> None:
    """Per layer; where micro-batches of a step differ, the whole step is not judged."""

    class WarmingUp(UnseenNetwork):
        def measures(self, output: LanguageModelOutput) -> dict[str, Measure]:
            found = super().measures(output)
            # Measured once per micro-batch: two layers begin with step 2, the last one in the middle of step 3.
            begun = torch.tensor([self.n_measured > last for last in (2, 2, 5)])
            lanes = torch.tensor([[0.99, 0.01]] * 3)
            return {
                "lanes": Measure(lanes, (LAYER, Axis("lane")), "share", in_force=begun[:, None]),
                "doubt": Measure(torch.zeros(3), (LAYER,), "level", unit="nats", in_force=begun),
                "experts_used": replace(
                    found["experts_used"], values=torch.zeros(3, 2, 4).long(), in_force=begun[:, None, None]
                ),
            }

    callback = RunHealth(dead_steps=1)
    logger = train(UnseenModule(network=WarmingUp()), [callback], steps=4, micro_batches=2)
    assert [logger.scalars[step]["health/open"] for step in (1, 2, 3, 4)] == [0, 4, 4, 6 + 2 * 8]
    counts = Counter(fields["condition"] for fields in callback.open.values())
    assert counts == {"one_sided": 3, "low_entropy": 3, "dead_bank": 2 * 8}


def test_a_routing_warm_up_is_healthy_and_what_follows_may_not_be(capsys: pytest.CaptureFixture[str]) -> None:
    """While all tokens are sent forward nothing is said; then of the layer alone whose thresholds are out of reach."""
    torch.manual_seed(0)
    network = EquilibriumLM(
        VOCAB_SIZE, BLOCK_SIZE, d_model=8, n_heads=2, n_layers=3, d_ff=8, dropout=0.0, warmup_steps=4,
        standardize=True, soft="ordinal", shared_router=False,
    )  # fmt: skip
    stuck = network.routing_decisions[1]
    stuck.threshold_momentum = 0.0
    stuck.running_thresholds += 100.0
    callback = RunHealth()
    logger = train(UnseenModule(network=network), [callback], steps=6, step_windows=64)
    assert [logger.scalars[step]["health/open"] for step in range(1, 7)] == [0, 0, 0, 2, 2, 2]
    assert {(fields["condition"], fields["place"]) for fields in callback.open.values()} == {
        ("one_sided", "layer 1, route forward")
    }
    assert (
        "step 4: one_sided, layer 1, route forward; layer 1, route forward: has 100.0% of "
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("argument", "value"),
    [("dead_steps", 0), ("max_share", 1.0), ("min_entropy", 0.5), ("still_steps", 0), ("spike_factor", 2.0)],
)
def test_arguments_out_of_range_are_named(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=argument):
        RunHealth(**{argument: value})


def test_other_ranks_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    driver = Driver(RunHealth(), tmp_path)
    driver.trainer.is_global_zero = False
    driver.trainer.loggers = []  # loggers act on rank zero only
    driver.step(10, share=torch.tensor([[0.01, 0.99], [0.5, 0.5]]))
    assert len(driver.callback.open) == 1
    assert capsys.readouterr().out == ""
