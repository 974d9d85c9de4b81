"""Several output heads that shall differ, and a judge without parameters that weighs them.

Shape suffixes: n branches, B batch, T sequence, D width, V vocabulary, J pairs of branches.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST = 1e-8  # of a probability inside a logarithm
WANTED_DIVERGENCE = 0.08  # nats
INITIAL_STD = 0.02


class BranchHeads(nn.Module):
    """``logits_i = W_i (h + o_i) / τ_i`` with learned offsets and fixed temperatures from 0.8 to 1.2.

    Args:
        d_model: D.
        vocab_size: V.
        n_branches: n ≥ 1; a single branch has temperature 1 and no diversity loss.
        diversity_target: divergence of a pair, in nats, from which on the loss is 0.
    """

    def __init__(
        self,
        d_model: int,
        vocab_size: int,
        n_branches: int = 2,
        diversity_target: float = WANTED_DIVERGENCE,
    ):
        super().__init__()
        self.diversity_target = diversity_target
        self.offsets = nn.Parameter(INITIAL_STD * torch.randn(n_branches, d_model))
        self.heads = nn.Parameter(INITIAL_STD * torch.randn(n_branches, vocab_size, d_model))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of every branch.

        Args:
            hidden: ``(B, T, D)``.

        Returns:
            Logits ``(n, B, T, V)``, and the diversity loss ``()`` of all tokens, not yet weighted.
        """
        logits = self.logits(hidden)
        return logits, diversity_loss(divergence(logits), self.diversity_target)

    def logits(self, hidden: Tensor) -> Tensor:
        """``(n, B, T, V)``."""
        n, V, _ = self.heads.shape
        shift = torch.einsum("nvd,nd->nv", self.heads, self.offsets)
        # W (h + o) as W h + W o: one product for all branches, without a shifted copy of h for each.
        together = F.linear(hidden, self.heads.flatten(0, 1), shift.flatten())  # (B, T, n·V)
        ends = (0.8, 1.2) if n > 1 else (1.0, 1.0)
        # In bf16, 0.8 would be 0.801.
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        temperature = torch.linspace(*ends, n, dtype=dtype, device=hidden.device)
        return (together.unflatten(-1, (n, V)) / temperature[:, None]).movedim(-2, 0)


def divergence(branch_logits: Tensor) -> Tensor:
    """Jensen–Shannon divergence of each pair of branches, mean over tokens, in nats.

    Args:
        branch_logits: ``(n, B, T, V)``.

    Returns:
        ``(J,)`` in [0, ln 2], J = n(n − 1)/2.
    """
    p = _probabilities(branch_logits)
    if len(p) == 1:
        return p.new_zeros(0)
    pairs = [_jensen_shannon(p[i], p[j]).mean() for i, j in combinations(range(len(p)), 2)]
    return torch.stack(pairs)


def diversity_loss(divergences: Tensor, target: float = WANTED_DIVERGENCE) -> Tensor:
    """``()``: by how much pairs fall short of the wanted divergence; 0 without pairs."""
    if divergences.numel() == 0:
        return divergences.sum()
    return (target - divergences).relu().mean()


def _probabilities(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)


def _log(p: Tensor) -> Tensor:
    return p.clamp(min=SMALLEST).log()


def _jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """``(B, T)``."""
    middle = _log((p + q) / 2)
    return ((p * (_log(p) - middle)).sum(-1) + (q * (_log(q) - middle)).sum(-1)) / 2


class VerifierOutput(NamedTuple):
    """What the verifier decided.

    Attributes:
        logits: ``(B, T, V)``, the weighted sum of the branches'.
        weights: ``(n, B, T)``, they add up to 1.
        confidence: ``(B, T)`` largest weight, in [1/n, 1].
    """

    logits: Tensor
    weights: Tensor
    confidence: Tensor


class Verifier(nn.Module):
    """Weighs branches by how sure they are, how well they agree with the mean, and how far they set off their best.

    Score w₁·(1 − entropy / largest entropy) + w₂·cosine to the mean distribution + w₃·(top-1 − top-2 probability);
    weights of the branches are a softmax over the sharpened score. There is nothing to learn.

    Args:
        weights: w₁, w₂, w₃.
        sharpness: factor on the score inside of the softmax; 0 gives every branch the same weight.
    """

    def __init__(self, weights: Sequence[float] = (0.4, 0.4, 0.2), sharpness: float = 4.0):
        super().__init__()
        self.weights = tuple(weights)
        self.sharpness = sharpness

    def forward(self, branch_logits: Tensor) -> VerifierOutput:
        """Mix ``(n, B, T, V)``."""
        p = _probabilities(branch_logits)
        entropy = -(p * _log(p)).sum(-1)  # (n, B, T)
        certainty = 1 - entropy / entropy.amax(0).clamp(min=SMALLEST)
        agreement = F.cosine_similarity(p, p.mean(0, keepdim=True), dim=-1)
        top = p.topk(min(2, p.shape[-1]), dim=-1).values
        separation = top[..., 0] - top[..., 1] if top.shape[-1] > 1 else top[..., 0]
        of_certainty, of_agreement, of_separation = self.weights
        score = of_certainty * certainty + of_agreement * agreement + of_separation * separation
        weights = (self.sharpness * score).softmax(0)
        logits = (weights.unsqueeze(-1) * branch_logits).sum(0)
        return VerifierOutput(logits, weights, weights.amax(0))
