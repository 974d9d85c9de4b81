"""Sums over an evaluated split, exact whatever its batches and ranks."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric


class Totals(NamedTuple):
    """What a split adds up to, over all ranks.

    Attributes:
        nats: cross-entropy of all counted targets.
        tokens: counted targets.
        n_bytes: UTF-8 bytes of those targets.
    """

    nats: float
    tokens: float
    n_bytes: float


class EvaluationSums(Metric):
    """Nats, tokens and bytes of a split, in double precision: the figure does not depend on how it falls into batches.

    One state holds all three, so that the ranks exchange once. It is made for one evaluation: a module that is turned
    into another precision takes the metrics inside of it along.
    """

    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor, token_bytes: Tensor) -> None:
        """Adds a batch.

        Args:
            logits: ``(B, T, V)``.
            targets: ``(B, T)`` int64; −100 counts nothing, so padding leaves no trace.
            token_bytes: ``(V,)`` float64, UTF-8 bytes of each token.
        """
        nats = F.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none"
        ).double()
        counted = targets >= 0
        n_bytes = (token_bytes[targets.clamp(min=0)] * counted).sum()
        self.sums += torch.stack([nats.sum(), counted.sum().double(), n_bytes])

    def compute(self) -> Totals:
        return Totals(*self.sums.tolist())
