"""Accuracy of an evaluation, as a whole and per slice."""

import pytest
import torch

from app.training.task_metrics import TaskSums


def test_shares_are_those_of_all_positions_whatever_the_batches() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 5, 4), torch.randint(-1, 4, (6, 5))
    targets[targets < 0] = -100
    slices = torch.stack([torch.randint(0, 2, (6, 5)), torch.randint(-1, 2, (6, 5))], -1)
    slices[..., 1] = torch.where(slices[..., 1] < 0, -1, slices[..., 1] + 2)
    whole, parts = TaskSums(["a_0", "a_1", "b_0", "b_1"]), TaskSums(["a_0", "a_1", "b_0", "b_1"])
    nothing = logits[..., :0]
    whole.update(logits, targets, slices, nothing)
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        parts.update(logits[part], targets[part], slices[part], nothing[part])
    found = whole.compute()
    assert found == parts.compute()
    scored, right = targets >= 0, logits.argmax(-1) == targets
    assert found["accuracy"] == pytest.approx(right[scored].float().mean().item())
    for number, name in enumerate(whole.slice_names):
        member = scored & (slices == number).any(-1)
        assert found[f"accuracy/{name}"] == pytest.approx(right[member].float().mean().item())
    assert "legal_share" not in found


def test_a_slice_without_a_scored_position_is_left_out() -> None:
    sums = TaskSums(["a_0", "a_1"])
    sums.update(
        torch.eye(3)[None],
        torch.tensor([[0, 1, -100]]),
        torch.tensor([[[0], [0], [1]]]),
        torch.zeros(1, 3, 0),
    )
    assert sums.compute() == {"accuracy/a_0": 1.0, "accuracy": 1.0}


def test_where_the_answer_is_a_matter_of_chance() -> None:
    truth = torch.tensor([[[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]])
    logits = torch.tensor([[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]]).log()
    sums = TaskSums([])
    sums.update(logits, torch.tensor([[1, 2, -100]]), torch.zeros(1, 3, 0, dtype=torch.int64), truth)
    assert sums.compute() == {"accuracy": 0.0, "legal_share": 0.5, "distance": 0.5}
