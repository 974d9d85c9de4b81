"""Reference form of what a router of banks decides.

Shape suffixes: B batch, T sequence, P pathways, N banks per pathway.
"""

import torch
from torch import Tensor


def bank_router(logits: Tensor, n_banks: int, by_bank: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """The weight of each pathway, its likeliest bank, and how likely each bank is on average.

    Args:
        logits: ``(B, T, P·N)``; probabilities are a softmax over the last axis, in fp32 at least.
        n_banks: N.
        by_bank: a pathway weighs as much as its likeliest bank, not as all of them together.

    Returns:
        ``(B, T, P)`` weights; ``(B, T, P)`` int64, the first of equally likely ones, without a gradient; ``(P, N)``,
        the mean over tokens.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    r_BTPN = wide.softmax(-1).unflatten(-1, (-1, n_banks))
    bank = r_BTPN.detach().argmax(-1)
    weights = r_BTPN.gather(-1, bank.unsqueeze(-1)).squeeze(-1) if by_bank else r_BTPN.sum(-1)
    return weights, bank, r_BTPN.mean((0, 1))
