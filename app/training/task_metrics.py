"""Sums over the evaluation of a synthetic task: accuracy as a whole and per slice."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class TaskSums(Metric):
    """Scored and right answers of every slice, exact whatever the batches and ranks.

    Args:
        slice_names: of the slices, the same on every rank.
    """

    answers: Tensor
    chances: Tensor

    def __init__(self, slice_names: Sequence[str]) -> None:
        super().__init__()
        self.slice_names = list(slice_names)
        # The last row is of all positions; the columns are scored and right ones.
        zeros = torch.zeros(len(self.slice_names) + 1, 2, dtype=torch.int64)
        self.add_state("answers", zeros, dist_reduce_fx="sum")
        self.add_state("chances", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor, slices: Tensor, truth: Tensor) -> None:
        """Adds a batch.

        Args:
            logits: ``(B, T, V)``.
            targets: ``(B, T)`` int64, −100 where nothing is scored.
            slices: ``(B, T, S)`` int64, indices of ``slice_names``; −1 for none.
            truth: ``(B, T, V)`` distributions of the targets, or ``(B, T, 0)``.
        """
        scored = targets >= 0
        guess = logits.argmax(-1)
        counted = torch.stack([scored, scored & (guess == targets)], -1).flatten(0, 1).to(torch.int64)
        self.answers[-1] += counted.sum(0)
        for of_kind in slices.unbind(-1):
            # Positions without a slice go where those of all are, with nothing to add.
            place = torch.where(of_kind < 0, len(self.slice_names), of_kind).flatten()
            self.answers.index_add_(0, place, counted * (of_kind >= 0).flatten()[:, None])
        if truth.shape[-1]:
            legal = truth.gather(-1, guess[..., None])[..., 0] > 0
            distance = (logits.float().softmax(-1) - truth).abs().sum(-1) / 2
            sums = torch.stack([scored.sum(), (scored & legal).sum(), (distance * scored).sum()])
            self.chances += sums.double()

    def compute(self) -> dict[str, float]:
        """Shares of right answers by key, of slices that hold any position; see ``on_validation_epoch_end``."""
        names = [*(f"accuracy/{name}" for name in self.slice_names), "accuracy"]
        found = {name: right / n for name, (n, right) in zip(names, self.answers.tolist(), strict=True) if n}
        scored, legal, distance = self.chances.tolist()
        if scored:
            found |= {"legal_share": legal / scored, "distance": distance / scored}
        return found
