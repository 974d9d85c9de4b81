"""Losses that keep the router of a Tilelli block from using one bank or one pathway for everything.

All of them are functions of batch means, so that the loss of a global batch is that function of the means over
all ranks.

Shape suffixes: B batch, T sequence, P pathways, N banks per pathway, M means.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from app.models.tilelli.routing import SMALLEST_WEIGHT, bank_load

BALANCE_FACTOR = 0.01
BIAS_STEP = 1e-3

Balance = Literal["original", "switch", "bias", "none"]


@dataclass(frozen=True)
class BalanceLosses:
    """The auxiliary loss of one block: the rule for its banks, the router's z-loss, the rule for its pathways.

    Attributes:
        n_pathways: P.
        n_banks: N; a single bank needs no balance.
        balance: ``original`` is ``0.01 · mean_pn (r̄_pn − 1/N)²``. Its target cannot be reached, r sums to 1 over
            all P·N entries; the gradient nevertheless points to the uniform spread. ``switch`` is
            ``0.01 · mean_p N Σ_n f_pn · mean(r_pn / Σ_m r_pm)``, with f the share of tokens that use a bank and a
            gradient through the second factor (Switch Transformer, arXiv 2101.03961, equation 4). ``bias`` and
            ``none`` are no loss.
        router_z_loss: weight of ``mean logsumexp(logits)²`` (ST-MoE, arXiv 2202.08906, equation 5).
        pathway_balance: weight of ``mean_p (w̄_p − 1/P)²``, with w the sum over banks.
    """

    n_pathways: int
    n_banks: int
    balance: Balance
    router_z_loss: float
    pathway_balance: float

    def means(self, r_BTPN: Tensor, bank_BTP: Tensor, bank_probability_PN: Tensor, logits: Tensor) -> Tensor:
        """The batch means that :meth:`total` is a function of, ``(M,)`` with their graph; empty without a loss.

        Args:
            r_BTPN: probabilities, after top-k routing.
            bank_BTP: chosen banks.
            bank_probability_PN: mean of r.
            logits: ``(B, T, P·N)`` of the router, without noise.
        """
        means = []
        weights_BTP = r_BTPN.sum(-1)
        if self._judges_banks("original"):
            means.append(bank_probability_PN)
        if self._judges_banks("switch"):
            load = bank_load(bank_BTP, weights_BTP, self.n_banks)
            share = r_BTPN / weights_BTP.clamp(min=SMALLEST_WEIGHT).unsqueeze(-1)
            means += [load / bank_BTP[..., 0].numel(), share.mean((0, 1))]
        if self.router_z_loss > 0:
            means.append(logits.logsumexp(-1).square().mean())
        if self.pathway_balance > 0:
            means.append(weights_BTP.mean((0, 1)))
        return torch.cat([mean.reshape(-1) for mean in means]) if means else r_BTPN.new_zeros(0)

    def total(self, means: Tensor) -> Tensor:
        """The loss ``(...)`` of ``(..., M)`` means, of one batch or averaged over several."""
        banks = (self.n_pathways, self.n_banks)
        n_entries = self.n_pathways * self.n_banks
        loss = means.new_zeros(means.shape[:-1])
        rest = means
        if self._judges_banks("original"):
            probability, rest = rest[..., :n_entries].unflatten(-1, banks), rest[..., n_entries:]
            loss = loss + BALANCE_FACTOR * (probability - 1 / self.n_banks).square().mean((-2, -1))
        if self._judges_banks("switch"):
            load, rest = rest[..., :n_entries].unflatten(-1, banks), rest[..., n_entries:]
            share, rest = rest[..., :n_entries].unflatten(-1, banks), rest[..., n_entries:]
            loss = loss + BALANCE_FACTOR * self.n_banks * (load * share).sum(-1).mean(-1)
        if self.router_z_loss > 0:
            loss = loss + self.router_z_loss * rest[..., 0]
            rest = rest[..., 1:]
        if self.pathway_balance > 0:
            loss = loss + self.pathway_balance * (rest - 1 / self.n_pathways).square().mean(-1)
        return loss

    def _judges_banks(self, balance: Balance) -> bool:
        return self.balance == balance and self.n_banks > 1


def bias_step(load_PN: Tensor) -> Tensor:
    """How the bias of each bank moves after an optimizer step (loss-free balancing, arXiv 2408.15664).

    Args:
        load_PN: tokens of the global batch that used each bank, int64.

    Returns:
        ``1e-3 · sign(mean load − load)``, ``(P, N)``.
    """
    above_mean = load_PN.sum(-1, keepdim=True) - load_PN.shape[-1] * load_PN  # in integers: exact
    return BIAS_STEP * above_mean.sign()
