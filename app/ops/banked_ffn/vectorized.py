"""Fast form of the banked feed-forward network: tokens sorted by bank, one product per bank and layer.

Shape suffixes: S tokens (B·T, sorted by bank), D width, F hidden width, N banks.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from app.ops.banks import BankOrder, grouped_linear, grouped_outer, sort_by_bank
from app.ops.precision import matmul_dtype


class _BankedFFN(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h_SD: Tensor, up_NFD: Tensor, down_NDF: Tensor, bank_S: Tensor) -> Tensor:
        groups = sort_by_bank(bank_S, up_NFD.shape[0])
        sorted_SD = h_SD.index_select(0, groups.order)
        hidden_SF = grouped_linear(sorted_SD, up_NFD, groups)
        active_SF = F.gelu(hidden_SF)
        y_SD = grouped_linear(active_SF, down_NDF, groups)
        ctx.save_for_backward(sorted_SD, hidden_SF, active_SF, up_NFD, down_NDF, *groups)
        return y_SD.index_select(0, groups.place)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        sorted_SD, hidden_SF, active_SF, up_NFD, down_NDF, *saved = ctx.saved_tensors
        groups = BankOrder(*saved)
        grad_SD = grad.index_select(0, groups.order)
        d_down = grouped_outer(grad_SD, active_SF, groups)
        d_active = grouped_linear(grad_SD, down_NDF.transpose(1, 2), groups)
        d_hidden = torch.ops.aten.gelu_backward(d_active, hidden_SF)
        d_up = grouped_outer(d_hidden, sorted_SD, groups)
        d_sorted = grouped_linear(d_hidden, up_NFD.transpose(1, 2), groups)
        return d_sorted.index_select(0, groups.place), d_up, d_down, None


def banked_ffn(h: Tensor, up: Tensor, down: Tensor, bank: Tensor) -> Tensor:
    """``W_down[n] · gelu(W_up[n] · h)`` with the weights of each token's bank n; exact (erf) GELU.

    Args:
        h: ``(B, T, D)``.
        up: ``(N, F, D)``.
        down: ``(N, D, F)``.
        bank: ``(B, T)`` int64 in [0, N).

    Returns:
        ``(B, T, D)``, in autocast's dtype inside its context, in that of ``h`` elsewhere.
    """
    dtype = matmul_dtype(h)
    with torch.autocast(h.device.type, enabled=False):
        y = _BankedFFN.apply(h.flatten(0, 1).to(dtype), up.to(dtype), down.to(dtype), bank.reshape(-1))
    return y.view(h.shape)
