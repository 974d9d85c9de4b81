"""The modes of crystallised attention: what each needs, which positions a query sees, and the random basis.

Shape suffixes: B batch, H heads, T queries, S keys, d head width, r rank.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Mode = Literal["top1", "topk", "full", "lowrank", "random"]
MODES: tuple[str, ...] = get_args(Mode)


def check(
    q: Tensor, k: Tensor, v: Tensor, mode: str, rank: int | None, top_k: int | None, basis: Tensor | None
) -> None:
    """Whether a mode has what it needs.

    Raises:
        ValueError: with a line for every argument that is missing or out of range.
    """
    problems = []
    if q.dim() != 4 or k.dim() != 4 or k.shape != v.shape or q.shape[:2] != k.shape[:2]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        problems.append(f"q, k, v = {shapes}: must be (B, H, T, d), (B, H, S, d), (B, H, S, d)")
    elif q.shape[-1] != k.shape[-1] or q.shape[-2] > k.shape[-2]:
        problems.append(
            f"q, k = {tuple(q.shape)}, {tuple(k.shape)}: must have one head width, and no more queries than keys"
        )
    if mode not in MODES:
        problems.append(f"mode = {mode!r}: must be one of {', '.join(MODES)}")
    if mode == "topk" and (top_k is None or top_k < 1):
        problems.append(f"top_k = {top_k}: mode topk needs a number of keys, at least 1")
    if mode in ("lowrank", "random"):
        d_head = v.shape[-1]
        if rank is None or not 1 <= rank <= d_head:
            problems.append(f"rank = {rank}: mode {mode} needs one from 1 to the head width, {d_head}")
        if basis is None and mode == "lowrank":
            problems.append("basis = None: mode lowrank needs one, (H, d_head, rank or more)")
        if basis is not None and rank is not None:
            H, wide = v.shape[1], basis.shape[-1] if basis.dim() == 3 else 0
            if basis.dim() != 3 or basis.shape[:2] != (H, d_head) or wide < rank:
                problems.append(
                    f"basis = {tuple(basis.shape)}: must be (H, d_head, r), here ({H}, {d_head}, {rank} or more)"
                )
    if problems:
        raise ValueError("\n".join(problems))


def random_basis(n_heads: int, d_head: int, rank: int, seed: int = 42, layer: int = 0) -> Tensor:
    """Orthonormal columns without any relation to a network: QR (diag R > 0) of a Gaussian per (layer, head).

    The columns of a smaller rank are the first ones of a larger rank.

    Args:
        n_heads: H.
        d_head: d.
        rank: r, from 1 to d.
        seed: of all bases of one experiment.
        layer: with the head, tells one basis of the experiment from the others.

    Returns:
        ``(H, d, r)`` fp32, on the CPU. It keeps r/d of the energy of a vector on average.
    """
    drawn = []
    for head in range(n_heads):
        # Of the key the generator reads 32 bits only: it tells neighbouring (seed, layer, head) apart, and
        # far ones meet by chance alone.
        key = ((seed * 1_000_003 + layer) * 1_000_003 + head) * 0x9E3779B97F4A7C15 % 2**63
        generator = torch.Generator("cpu").manual_seed(key)
        # The device by name: networks are also laid out on one that holds no numbers, to check their arguments.
        drawn.append(
            torch.randn(d_head, d_head, generator=generator, dtype=torch.float64, device=generator.device)
        )
    return orthonormal(torch.stack(drawn))[:, :, :rank].float()


def orthonormal(columns: Tensor) -> Tensor:
    """Q of the QR decomposition with diag R > 0, which is unique, with gradients.

    Args:
        columns: ``(H, d, r)``, r ≤ d. A head whose columns are not independent has no such Q: it gets one of many, and
            no gradient.

    Returns:
        ``(H, d, r)``; the first n columns span what the first n of ``columns`` span.
    """
    q: Tensor = _Orthonormal.apply(columns)
    return q


class _Orthonormal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, columns: Tensor) -> Tensor:
        q, r = torch.linalg.qr(columns)
        sign = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
        q, r = q * sign.unsqueeze(-2), r * sign.unsqueeze(-1)
        ctx.save_for_backward(q, r)
        return q

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """``(G + Q sym(triu(−Qᵀ G))) R⁻ᵀ``, see Roberts & Roberts 2020, arXiv 2009.10071."""
        q, r = ctx.saved_tensors
        rounding = torch.finfo(r.dtype).eps * r.norm(dim=(-2, -1))
        is_basis = (r.diagonal(dim1=-2, dim2=-1).amin(-1) > rounding)[..., None, None]
        upper = (-q.mT @ gradients[0]).triu()
        symmetric = upper + upper.mT - torch.diag_embed(upper.diagonal(dim1=-2, dim2=-1))
        safe = torch.where(is_basis, r, torch.eye(r.shape[-1], dtype=r.dtype, device=r.device))
        down = torch.linalg.solve_triangular(safe.mT, gradients[0] + q @ symmetric, upper=False, left=False)
        return torch.where(is_basis, down, 0.0)


def additive_mask(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor | None:
    """What is added to the scores ``(…, T, S)``; None where every query sees every key.

    Positions out of sight get the most negative finite number: a query that sees nothing at all, such as one
    of padding, gets a finite mean and no NaN that would spread.

    Args:
        q: ``(B, H, T, d)``, the last T of S positions.
        k: ``(B, H, S, d)``.
        mask: None for a causal one; else bool (True is in sight) or additive, broadcastable to (B, H, T, S),
            causality included.
    """
    T, S = q.shape[-2], k.shape[-2]
    mask = None if mask is None else torch.atleast_2d(mask)
    lowest = torch.finfo(q.dtype).min
    if mask is None:
        if T == 1:
            return None
        return torch.full((T, S), lowest, dtype=q.dtype, device=q.device).triu(S - T + 1)
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, lowest)
    return mask.to(q.dtype).clamp(min=lowest)
