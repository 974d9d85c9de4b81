"""Crystallised attention in the place of an attention layer's ``core``: for a measurement, and for good.

Shape suffixes: B batch, H heads, T queries, S keys, d head width, r rank.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from app.models.ranks import world_size
from app.ops.crystal_attention import Mode, crystal_attention, random_basis
from app.ops.crystal_attention.modes import orthonormal

#: sequences that a training forward keeps for the watchers, of all ranks together
WATCHED_SEQUENCES = 4


class ExchangedAttention(nn.Module):
    """One mode of crystallised attention, without weights, for the time of a measurement.

    Args:
        mode: see :func:`app.ops.crystal_attention.crystal_attention`.
        rank: r of ``lowrank`` and ``random``.
        top_k: keys of ``topk``.
        basis: ``(H, d, r or more)``.
    """

    def __init__(
        self,
        mode: Mode,
        rank: int | None = None,
        top_k: int | None = None,
        basis: Tensor | None = None,
    ):
        super().__init__()
        self.mode: Mode = mode
        self.rank = rank
        self.top_k = top_k
        # In a tuple, so that no buffer appears in the state of the network that it stands in.
        self._basis = (basis,)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dropout: float = 0.0,
        *,
        mask: Tensor | None = None,
        scale: float | None = None,
    ) -> Tensor:
        """Takes and returns what :class:`app.models.attention.SoftmaxAttention` does.

        Args:
            q: ``(B, H, T, d)``.
            k: ``(B, H, S, d)``.
            v: ``(B, H, S, d)``.
            dropout: of attention weights.
            mask: what each query may see, causality included; None for causality alone.
            scale: factor on the scores; 1/√d by default.
        """
        (basis,) = self._basis
        if basis is not None and (basis.device != v.device or basis.dtype != v.dtype):
            basis = basis.to(v)
            self._basis = (basis,)
        return crystal_attention(
            q, k, v, self.mode, self.rank, self.top_k, basis, mask=mask, scale=scale, dropout=dropout
        )


class CrystalRecord(NamedTuple):
    """Queries, keys and values of one layer for a few sequences: references, nothing is computed or copied.

    Attributes:
        layer: index of the block.
        q, k, v: ``(b, H, T, d)``, detached.
    """

    layer: int
    q: Tensor
    k: Tensor
    v: Tensor


class CrystalAttention(nn.Module):
    """``topk`` or ``lowrank`` attention as part of a network that trains; see the op for the algebra.

    Gradients flow through the gathered v*, through the r-wide attention and, straight-through, through the
    choice of v*. ``topk`` with two keys and more learns through the softmax over its keys.

    Args:
        n_heads: H.
        d_head: d.
        mode: ``lowrank`` or ``topk``.
        rank: r (``lowrank``).
        top_k: keys that count (``topk``).
        learn_basis: whether ``basis`` is a parameter, of which every forward uses the Q of its QR
            decomposition with diag R > 0, or a buffer.
        seed: of the random orthonormal basis to start from.
        layer: index of the block, which tells its random basis from the others'.
    """

    basis: Tensor | nn.Parameter

    def __init__(
        self,
        n_heads: int,
        d_head: int,
        mode: Literal["topk", "lowrank"] = "lowrank",
        rank: int = 4,
        top_k: int = 2,
        learn_basis: bool = False,
        seed: int = 42,
        layer: int = 0,
    ):
        super().__init__()
        self.mode: Literal["topk", "lowrank"] = mode
        self.rank = rank
        self.top_k = top_k
        self.layer = layer
        self.learn_basis = learn_basis and mode == "lowrank"
        self._record: CrystalRecord | None = None
        if mode == "lowrank":
            basis = random_basis(n_heads, d_head, rank, seed, layer)
            if self.learn_basis:
                self.basis = nn.Parameter(basis)
            else:
                self.register_buffer("basis", basis)

    @torch.no_grad()
    def set_basis(self, modes: Tensor) -> None:
        """Starts from calibrated modes.

        Args:
            modes: ``(H, d, r or more)``, orthonormal columns; the first r are taken.
        """
        self.basis.copy_(modes[:, :, : self.rank])

    def forward(self, q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
        """See :meth:`app.models.attention.SoftmaxAttention.forward`."""
        if self.training:
            few = _watched(len(q))
            self._record = CrystalRecord(self.layer, q[few].detach(), k[few].detach(), v[few].detach())
        if self.mode == "topk":
            return crystal_attention(
                q, k, v, "topk", top_k=self.top_k, dropout=dropout, straight_through=True
            )
        # The decomposition has no bf16 form, and a basis is too small for that to cost anything.
        basis = orthonormal(self.basis.float()) if self.learn_basis else self.basis
        return crystal_attention(
            q, k, v, "lowrank", rank=self.rank, basis=basis, dropout=dropout, straight_through=True
        )

    def take_record(self) -> CrystalRecord | None:
        """What the newest training forward left, once; None after an evaluation."""
        record, self._record = self._record, None
        return record


def _watched(n_sequences: int) -> slice:
    """Which of a rank's sequences are kept: far apart, so that several ranks keep what one would where 4 divides."""
    n_kept = max(1, WATCHED_SEQUENCES // world_size())
    stride = max(1, n_sequences // n_kept)
    return slice(0, n_kept * stride, stride)
