"""Reading and grouping tokens by the weight bank that each of them chose.

Nothing here asks an accelerator for a value: shapes depend on the number of tokens and banks alone, however
the tokens are spread.

Shape suffixes: B batch, T sequence, N banks, S tokens (B·T), I and O input and output features.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows of one block where groups are padded to whole blocks. Every bank wastes half a block on average, and a
# block that is too short starves the matrix product.
ROWS_PER_BLOCK = 128


class BankOrder(NamedTuple):
    """Tokens sorted by bank, each bank's tokens in their original order.

    Attributes:
        order: ``(S,)`` int64, the token at each sorted position.
        bank: ``(S,)`` int64, the bank at each sorted position.
        ends: ``(N,)`` int64, where each bank's tokens end.
        place: ``(S,)`` int64, the sorted position of each token; reading rows back through it is several
            times faster than writing them out through ``order``.
    """

    order: Tensor
    bank: Tensor
    ends: Tensor
    place: Tensor


def sort_by_bank(bank_S: Tensor, n_banks: int) -> BankOrder:
    """Sort tokens by bank; stable, so that sums over a bank always run in the same order."""
    bank, order = torch.sort(bank_S, stable=True)
    ends = torch.searchsorted(bank, torch.arange(n_banks, device=bank.device), right=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=order.device))
    return BankOrder(order, bank, ends, place)


def read_bank(y_NBTD: Tensor, bank_BT: Tensor) -> Tensor:
    """The output of each token's own bank, ``(B, T, D)``, out of the outputs of all banks."""
    index = bank_BT[None, :, :, None].expand(1, -1, -1, y_NBTD.shape[-1])
    return y_NBTD.gather(0, index).squeeze(0)


def bank_indicator(bank_S: Tensor, n_banks: int, dtype: torch.dtype) -> Tensor:
    """``(N, S)``: 1 where a token chose a bank; a product with it sums rows bank by bank."""
    return (bank_S == torch.arange(n_banks, device=bank_S.device).unsqueeze(1)).to(dtype)


class BankSums:
    """Sums of rows over the tokens of each bank, in one order always.

    Args:
        bank_S: the bank of each row.
        n_banks: N.
        dtype: of the rows.
    """

    def __init__(self, bank_S: Tensor, n_banks: int, dtype: torch.dtype):
        # On the CPU a pass over sorted rows takes two fifths of the time of a product with so few columns; on
        # a GPU so few sums would leave it idle.
        self.indicator_NS = None
        if bank_S.device.type == "cpu":
            self.order_S, _, ends_N, _ = sort_by_bank(bank_S, n_banks)
            self.starts_N = torch.cat([ends_N.new_zeros(1), ends_N[:-1]])
        else:
            self.indicator_NS = bank_indicator(bank_S, n_banks, dtype)

    def add_to(self, total_ND: Tensor, rows_SD: Tensor) -> None:
        """Adds the sums of these rows to a total, in place."""
        if self.indicator_NS is not None:
            total_ND.addmm_(self.indicator_NS, rows_SD)
        else:
            total_ND += F.embedding_bag(self.order_S, rows_SD, self.starts_N, mode="sum")


def grouped_linear(x_SI: Tensor, weight_NOI: Tensor, groups: BankOrder) -> Tensor:
    """``y = x W[n]ᵀ``, ``(S, O)``, for rows that are sorted by bank n."""
    n_banks, n_outputs, _ = weight_NOI.shape
    if n_banks == 1:
        return x_SI @ weight_NOI[0].T
    if x_SI.device.type != "cpu":
        return blocked_linear(x_SI, weight_NOI, groups)
    y = x_SI.new_empty(x_SI.shape[0], n_outputs)
    for n, rows in enumerate(_slices(groups)):
        torch.mm(x_SI[rows], weight_NOI[n].T, out=y[rows])
    return y


def grouped_outer(y_SO: Tensor, x_SI: Tensor, groups: BankOrder) -> Tensor:
    """``Σ y xᵀ`` over the rows of each bank, ``(N, O, I)``; zeros for a bank without rows."""
    n_banks = groups.ends.shape[0]
    if n_banks == 1:
        return (y_SO.T @ x_SI).unsqueeze(0)
    if x_SI.device.type != "cpu":
        return blocked_outer(y_SO, x_SI, groups)
    outer = x_SI.new_empty(n_banks, y_SO.shape[1], x_SI.shape[1])
    for n, rows in enumerate(_slices(groups)):
        torch.mm(y_SO[rows].T, x_SI[rows], out=outer[n])
    return outer


def blocked_linear(x_SI: Tensor, weight_NOI: Tensor, groups: BankOrder) -> Tensor:
    """:func:`grouped_linear` at a fixed shape: each bank padded to whole blocks, one batched product."""
    row, block_bank = _blocks(groups)
    padded = x_SI.new_zeros(block_bank.shape[0] * ROWS_PER_BLOCK, x_SI.shape[1]).index_copy_(0, row, x_SI)
    blocks = padded.view(-1, ROWS_PER_BLOCK, x_SI.shape[1])
    y = blocks @ weight_NOI.index_select(0, block_bank).transpose(1, 2)
    return y.reshape(-1, y.shape[-1]).index_select(0, row)


def blocked_outer(y_SO: Tensor, x_SI: Tensor, groups: BankOrder) -> Tensor:
    """:func:`grouped_outer` at a fixed shape."""
    row, block_bank = _blocks(groups)
    n_blocks = block_bank.shape[0]
    y, x = (
        rows.new_zeros(n_blocks * ROWS_PER_BLOCK, rows.shape[1])
        .index_copy_(0, row, rows)
        .view(n_blocks, -1, rows.shape[1])
        for rows in (y_SO, x_SI)
    )
    per_block = y.transpose(1, 2) @ x
    indicator = bank_indicator(block_bank, groups.ends.shape[0], per_block.dtype)
    return (indicator @ per_block.flatten(1)).view(-1, *per_block.shape[1:])


def _slices(groups: BankOrder) -> list[slice]:
    # On the CPU the ends are already in the host's memory: reading them waits for nothing.
    ends = groups.ends.tolist()
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _blocks(groups: BankOrder) -> tuple[Tensor, Tensor]:
    """The row of each sorted token in the padded layout, and the bank of each block."""
    n_banks = groups.ends.shape[0]
    starts = torch.cat([groups.ends.new_zeros(1), groups.ends[:-1]])
    blocks = (groups.ends - starts + ROWS_PER_BLOCK - 1) // ROWS_PER_BLOCK
    block_ends = blocks.cumsum(0)
    shift = (block_ends - blocks) * ROWS_PER_BLOCK - starts
    n_tokens = groups.order.shape[0]
    row = torch.arange(n_tokens, device=shift.device) + shift.index_select(0, groups.bank)
    # CapacityBuffer for every spread of the tokens: whole blocks, and one that is partly filled for each bank.
    n_blocks = n_tokens // ROWS_PER_BLOCK + n_banks
    block_bank = torch.searchsorted(block_ends, torch.arange(n_blocks, device=shift.device), right=True)
    return row, block_bank.clamp_(max=n_banks - 1)
