"""What the router of a Tilelli block decides, and how.

Shape suffixes: B batch, T sequence, P pathways, N banks per pathway.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from app.ops.banked_sparse_attention.selection import largest_first

SMALLEST_WEIGHT = 1e-12  # under a logarithm or a division


class BankRouting(NamedTuple):
    """What the router of one block decided.

    Attributes:
        pathway_weights: ``(B, T, P)``, the weight of each pathway; they sum to 1 unless ``bank_gate="bank"``.
        bank_index: ``(B, T, P)`` int64, the bank that the token uses of each pathway; 0 where top-k routing
            has dropped them all.
        router_weights: ``(B, T, P)``, the pathway weights before top-k routing.
        bank_probability: ``(P, N)``, mean over the batch of each bank's share; None, as all that follows, in a step
            of generation, where no loss asks for it.
        aux_loss: ``()``, the balance losses of this block, before ``aux_weight``.
        auxiliary_means: ``(M,)``, the batch means that ``aux_loss`` is a function of.
    """

    pathway_weights: Tensor
    bank_index: Tensor
    router_weights: Tensor
    bank_probability: Tensor | None = None
    aux_loss: Tensor | None = None
    auxiliary_means: Tensor | None = None


def keep_largest(r_BTPN: Tensor, k: int) -> tuple[Tensor, Tensor | None]:
    """Each token's k largest probabilities, scaled to sum to 1 again; of equals the first are kept.

    Args:
        r_BTPN: probabilities, summing to 1 over the last two axes.
        k: entries to keep; 0, or all there are, keeps everything.

    Returns:
        ``(B, T, P, N)`` probabilities with zeros in place of what is dropped, and what is kept as bool; None
        where everything is.
    """
    n_entries = r_BTPN.shape[-2] * r_BTPN.shape[-1]
    if k == 0 or k >= n_entries:
        return r_BTPN, None
    flat = r_BTPN.flatten(-2)
    kept = torch.zeros_like(flat, dtype=torch.bool)
    kept.scatter_(-1, largest_first(flat.detach(), k), True)
    remaining = flat * kept
    remaining = remaining / remaining.sum(-1, keepdim=True).clamp(min=SMALLEST_WEIGHT)
    return remaining.view_as(r_BTPN), kept.view_as(r_BTPN)


def best_bank(r_BTPN: Tensor, kept_BTPN: Tensor | None, bias_PN: Tensor | None) -> Tensor:
    """The most likely bank of each pathway, ``(B, T, P)``: the first of equals, and the first if all are dropped.

    Args:
        r_BTPN: probabilities, zero where dropped.
        kept_BTPN: what top-k routing has kept; None if everything.
        bias_PN: added to the probabilities for this choice alone (arXiv 2408.15664).
    """
    score = r_BTPN.detach()
    if bias_PN is not None:
        score = score + bias_PN
        if kept_BTPN is not None:
            score = score.masked_fill(~kept_BTPN, float("-inf"))
    return score.argmax(-1)


def gate(r_BTPN: Tensor, bank_BTP: Tensor, bank_gate: str) -> Tensor:
    """The pathway weights ``(B, T, P)``: the sum over banks, or with ``bank`` the share of the chosen one.

    By the task loss alone, banks of one pathway are never compared under ``sum``: with z the logits, G_p the
    gain of pathway p, ``∂L/∂z_pn = r_pn (G_p − Σ_q w_q G_q)`` differs between banks by r_pn only, so whichever
    bank is ahead runs away. Under ``bank`` the choice has a gradient.
    """
    if bank_gate == "sum":
        return r_BTPN.sum(-1)
    return r_BTPN.gather(-1, bank_BTP.unsqueeze(-1)).squeeze(-1)


def bank_load(
    bank_BTP: Tensor, weights_BTP: Tensor, n_banks: int, dim: int | tuple[int, ...] = (0, 1)
) -> Tensor:
    """Tokens that use each bank, int64: ``(P, N)``; a token uses no bank of a pathway that weighs nothing.

    Args:
        bank_BTP: chosen banks; axes before those may be there.
        weights_BTP: pathway weights.
        n_banks: N.
        dim: the axes of batch and sequence.
    """
    used = bank_BTP.unsqueeze(-1) == torch.arange(n_banks, device=bank_BTP.device)
    return (used & (weights_BTP > 0).unsqueeze(-1)).sum(dim)


def gumbel_like(logits: Tensor) -> Tensor:
    """Independent draws of the standard Gumbel distribution: the largest of logits plus these is a sample."""
    drawn = torch.empty_like(logits).exponential_()
    # A draw of 0 is one in 2⁵³; one that is infinite would make a softmax of it no number.
    return -drawn.clamp_(min=torch.finfo(drawn.dtype).tiny).log()


def pathway_entropy(pathway_weights: Tensor) -> Tensor:
    """Entropy in nats over the last axis, of weights clamped at 1e-12."""
    weights = pathway_weights.clamp(min=SMALLEST_WEIGHT)
    return -(weights * weights.log()).sum(-1)
