"""Form of the banked feed-forward network for a GPU: grouped products that gather, activate and scatter.

Shape suffixes: S tokens (B·T), D width, F hidden width, N banks.
"""

from typing import Any

import torch
from torch import Tensor

from app.ops.bank_kernels import (
    Groups,
    group_by_bank,
    grouped_linear,
    grouped_linear_gelu,
    grouped_linear_gelu_backward,
    grouped_outer,
)
from app.ops.precision import matmul_dtype


class _BankedFFN(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h_SD: Tensor, up_NFD: Tensor, down_NDF: Tensor, bank_S: Tensor, dtype: torch.dtype
    ) -> Tensor:
        ctx.dtypes = h_SD.dtype, up_NFD.dtype, down_NDF.dtype
        h, up, down = h_SD.to(dtype), up_NFD.to(dtype), down_NDF.to(dtype)
        groups = group_by_bank(bank_S, up.shape[0])
        hidden, active = grouped_linear_gelu(h, up, groups)
        # The backward makes ``active`` anew: half the memory for one more write.
        ctx.save_for_backward(h, up, down, hidden, *groups)
        return grouped_linear(active, down, groups, scatter=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, up, down, hidden, *saved = ctx.saved_tensors
        groups = Groups(*saved)
        h_dtype, up_dtype, down_dtype = ctx.dtypes
        grad = grad.to(h.dtype).contiguous()
        d_hidden, active = grouped_linear_gelu_backward(grad, down.transpose(1, 2), hidden, groups)
        d_down = grouped_outer(grad, active, groups, down_dtype, gather_y=True)
        d_up = grouped_outer(d_hidden, h, groups, up_dtype, gather_x=True)
        d_h = grouped_linear(d_hidden, up.transpose(1, 2), groups, scatter=True, dtype=h_dtype)
        return d_h, d_up, d_down, None, None


def banked_ffn(h: Tensor, up: Tensor, down: Tensor, bank: Tensor) -> Tensor:
    """Two-layer network; see :func:`app.ops.banked_ffn.banked_ffn`."""
    dtype = matmul_dtype(h)
    with torch.autocast(h.device.type, enabled=False), torch.cuda.device_of(h):
        bank_S = bank.reshape(-1).contiguous()  # of one pathway's column it is a view with gaps
        y = _BankedFFN.apply(h.flatten(0, 1).contiguous(), up, down, bank_S, dtype)
    return y.view(h.shape)
