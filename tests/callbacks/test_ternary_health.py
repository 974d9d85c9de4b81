import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from unseen_architecture import UnseenModule, UnseenNetwork, train

from app.records import TernaryWeight
from callbacks import RunHealth, TernaryHealth


class TernaryNetwork(UnseenNetwork):
    """Two layers of two ternary weights each, and one outside; every optimizer step moves what it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.stored = {
            "blocks.0.a": torch.tensor([[-1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]),
            "blocks.0.b": torch.tensor([0.0, 0.0]),
            "blocks.1.a": torch.tensor([1.0, -1.0, -1.0, 0.0]),
            "blocks.1.b": torch.tensor([1.0]),
            "head": torch.tensor([0.0, 1.0]),
        }
        self.n_read = 0

    def ternary_weights(self) -> dict[str, TernaryWeight]:
        self.n_read += 1
        layers = {name: int(name[7]) if name.startswith("blocks") else None for name in self.stored}
        return {
            # The same memory each time: what was before the step has to be kept by the watcher.
            name: TernaryWeight(trits.to(torch.int8), torch.tensor(0.5 * (1 + number)), layers[name])
            for number, (name, trits) in enumerate(self.stored.items())
        }


class Moving(UnseenModule):
    """Changes trits in the optimizer's step: step n flips what ``moves[n]`` names."""

    def __init__(self, moves: dict[int, list[tuple[str, int]]], log_every: int = 1) -> None:
        super().__init__(log_every, TernaryNetwork())
        self.moves = moves

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        step = self.trainer.global_step + 1
        super().optimizer_step(*arguments, **options)
        for name, entry in self.moves.get(step, []):
            flat = self.network.stored[name].view(-1)
            flat[entry] = 1.0 if flat[entry] == 0 else 0.0


MOVES = {
    2: [("blocks.0.a", 0)],
    3: [("blocks.1.a", 0), ("blocks.1.a", 1), ("head", 0)],
    4: [("blocks.1.a", 0)],
}


def test_numbers_of_a_logged_step() -> None:
    callback = TernaryHealth()
    logger = train(Moving(MOVES), [callback], steps=3)
    expected = {
        "ternary/negative": (0 + 1 / 5) / 2,
        "ternary/zero": (5 / 8 + 3 / 5) / 2,
        "ternary/zero/l00": 5 / 8,
        "ternary/zero/max": 5 / 8,
        "ternary/zero/worst_layer": 0,
        "ternary/positive/outside": 1.0,
        "ternary/scale/l00": 0.75,
        "ternary/scale/l01": 1.75,
        "ternary/scale/worst_layer": 0,
        "ternary/scale/outside": 2.5,
        "ternary/flips": 1.0,
        "ternary/flips/l00": 0.0,
        "ternary/flips/l01": 2.0,
        "ternary/flips/worst_layer": 0,
        "ternary/flips/outside": 1.0,
        "ternary/flip_share/l01": 2 / 5,
    }
    found = logger.scalars[3]
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert found == callback.last
    assert len([key for key in found if key.startswith("ternary/zero")]) == 7
    details = logger.details[3]
    assert details["ternary/flips"] == [0.0, 2.0]
    assert details["ternary/weights"]["blocks.1.a"] == pytest.approx([0.25, 0.75, 0.0, 1.5, 2.0])
    for share in ("negative", "zero", "positive"):
        assert 0 <= found[f"ternary/{share}/min"] <= found[f"ternary/{share}/max"] <= 1


def test_flips_are_those_of_the_logged_step_alone() -> None:
    """Steps 2 and 3 flip trits that step 4 partly flips back; only what step 4 itself did counts."""
    module = Moving(MOVES, log_every=4)
    logger = train(module, [TernaryHealth()], steps=6, micro_batches=2)
    assert sorted(logger.scalars) == [4]
    assert logger.scalars[4]["ternary/flips/l01"] == 1.0
    assert logger.scalars[4]["ternary/flips/l00"] == 0.0
    assert module.network.n_read == 2, "the steps between are not looked at"


def test_one_transfer_per_logged_step(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    cpu = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: reads.append(tensor.numel()) or cpu(tensor))
    train(Moving({}), [TernaryHealth()], steps=2, micro_batches=2)
    assert [numel for numel in reads if numel == 5 * 5] == [25, 25]
    assert reads[:2] == [25, 25], "what follows is the end of training"


def test_watchers_share_one_reading_before_the_step_and_one_after() -> None:
    module = Moving({2: [("blocks.0.a", 0)]}, log_every=2)
    first, health, second = TernaryHealth(), RunHealth(), TernaryHealth()
    train(module, [first, health, second], steps=3)
    assert module.network.n_read == 2, "of three steps the second is a logged one"
    train(module, [third := TernaryHealth()], steps=2)
    assert first.last == second.last
    assert third.last["ternary/flips"] == 0.5
    assert module.network.n_read == 4, "a second training with the same steps reads its own weights"


def test_a_network_without_ternary_weights_warns_once() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        logger = train(UnseenModule(), [TernaryHealth()], steps=3)
    assert len([w for w in caught if "TernaryHealth has no effect" in str(w.message)]) == 1
    assert not logger.scalars


def test_more_layers_than_eight_are_summarised() -> None:
    module = Moving({})
    module.network.stored = {f"blocks.{i}.a": torch.ones(2) for i in range(9)}
    logger = train(module, [TernaryHealth()])
    assert not [key for key in logger.scalars[1] if "/l0" in key]
    assert len(logger.details[1]["ternary/zero"]) == 9


def test_a_fit_that_broke_off_leaves_nothing_to_the_next() -> None:
    class Breaking(Moving):
        breaks = True

        def optimizer_step(self, *arguments: Any, **options: Any) -> None:
            step = self.trainer.global_step + 1
            super().optimizer_step(*arguments, **options)
            if self.breaks and step == 2:
                raise RuntimeError("broke off")

    module = Breaking({1: [("blocks.0.a", 0)]}, log_every=2)
    callback = TernaryHealth()
    with pytest.raises(RuntimeError, match="broke off"):
        train(module, [callback], steps=2)
    module.breaks = False
    assert train(module, [callback], steps=2).scalars[2]["ternary/flips"] == 0
