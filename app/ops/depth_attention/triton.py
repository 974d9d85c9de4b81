# mypy: allow-untyped-defs
"""Form of attention over depth for GPUs: a launch each way; forward, every number is read once.

Shape suffixes: S tokens (B·T), n earlier outputs, D width.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.ops.bank_kernels import tile_width
from app.ops.depth_attention import naive

# Earlier outputs that the kernels have an argument for, and the widest rows that fit into registers.
MOST_HISTORY, WIDEST = 12, 2048
TILE, WARPS = 2048, 4


class _DepthAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, asked_SD: Tensor, z_SD: Tensor, *history_SD: Tensor) -> Tensor:
        S, D = z_SD.shape
        dtype = reduce(torch.promote_types, (h.dtype for h in history_SD), z_SD.dtype)
        dtype = torch.promote_types(dtype, asked_SD.dtype)
        mixed = torch.empty_like(z_SD, dtype=dtype)
        alpha = torch.empty(S, len(history_SD), dtype=torch.float32, device=z_SD.device)
        grid, shape = _launch(S, D, len(history_SD))
        _forward_kernel[grid](
            asked_SD, z_SD, *_twelve(history_SD), mixed, alpha, None, S, D, 1.0, TAKEN=False, **shape
        )
        ctx.save_for_backward(asked_SD, alpha, *history_SD)
        ctx.z_dtype = z_SD.dtype
        return mixed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        asked_SD, alpha, *history_SD = ctx.saved_tensors
        grad = grad.contiguous()
        S, D = grad.shape
        d_asked = torch.empty_like(asked_SD)
        d_history = [torch.empty_like(h) for h in history_SD]
        grid, shape = _launch(S, D, len(history_SD))
        _backward_kernel[grid](
            grad, asked_SD, *_twelve(history_SD), alpha, d_asked, *_twelve(d_history), None, S, D, 1.0,
            TAKEN=False, **shape,
        )  # fmt: skip
        return d_asked, grad.to(ctx.z_dtype), *d_history


def depth_attention_of_taken(
    asked_SD: Tensor, z_SD: Tensor, history_SD: Sequence[Tensor], place_S: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Of some tokens, whose rows stand together, over the history of all, without a graph.

    Args:
        asked_SD: by place, contiguous.
        z_SD: by place, contiguous.
        history_SD: at most 12, by token, contiguous.
        place_S: int32, where the rows of a token stand; −1 for one that does not take part.
        scale: factor on ``asked_SD``.

    Returns:
        The mixture, fp32, and the shares ``(S, n)``, both by place.
    """
    S, D = history_SD[0].shape
    mixed = torch.empty_like(z_SD, dtype=torch.float32)
    alpha = torch.empty(S, len(history_SD), dtype=torch.float32, device=z_SD.device)
    grid, shape = _launch(S, D, len(history_SD))
    _forward_kernel[grid](
        asked_SD, z_SD, *_twelve(history_SD), mixed, alpha, place_S, S, D, scale, TAKEN=True, **shape
    )
    return mixed, alpha


def depth_attention_of_taken_backward(
    grad_SD: Tensor,
    asked_SD: Tensor,
    history_SD: Sequence[Tensor],
    alpha: Tensor,
    place_S: Tensor,
    scale: float,
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of ``asked_SD``, by place, and of the history, by token, zeros where it does not take part."""
    S, D = history_SD[0].shape
    d_asked = torch.empty_like(asked_SD)
    d_history = [torch.empty_like(h) for h in history_SD]
    grid, shape = _launch(S, D, len(history_SD))
    _backward_kernel[grid](
        grad_SD, asked_SD, *_twelve(history_SD), alpha, d_asked, *_twelve(d_history), place_S, S, D, scale,
        TAKEN=True, **shape,
    )  # fmt: skip
    return d_asked, d_history


def _launch(S: int, D: int, n: int) -> tuple[tuple[int], dict[str, int]]:
    block = tile_width(D, WIDEST)
    tokens = max(1, TILE // block)
    return (triton.cdiv(S, tokens),), {"N": n, "TOKENS": tokens, "BLOCK": block, "num_warps": WARPS}


def _twelve(tensors: Sequence[Tensor]) -> list[Tensor]:
    """One for each argument of a kernel, which looks at the first n."""
    return [*tensors, *[tensors[0]] * (MOST_HISTORY - len(tensors))]


def depth_attention(asked: Tensor, z: Tensor, history: Sequence[Tensor]) -> Tensor:
    """``z + Σ α_i h_i``; see :func:`app.ops.depth_attention.depth_attention`."""
    D = z.shape[-1]
    if len(history) > MOST_HISTORY or D > WIDEST or torch.float64 in {x.dtype for x in (asked, z, *history)}:
        return naive.depth_attention(asked, z, history)
    rows = [x.reshape(-1, D).contiguous() for x in (asked, z, *history)]
    with torch.cuda.device_of(z):
        mixed: Tensor = _DepthAttention.apply(*rows)
    return mixed.view(z.shape)


@triton.jit
def _read(x_SD, at, inside):
    return tl.load(x_SD + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _places(place, S, D, TAKEN: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr):
    """Tokens and where their own rows stand, and which there are; the last two for every number of a row."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    channel = tl.arange(0, BLOCK)
    row, is_row = token, token < S
    if TAKEN:
        row = tl.load(place + token, mask=is_row, other=-1)
        is_row = row >= 0
    at = tl.cast(token, tl.int64)[:, None] * D + channel[None, :]
    own = tl.cast(row, tl.int64)[:, None] * D + channel[None, :]
    return token, row, is_row, at, own, is_row[:, None] & (channel < D)[None, :]


@triton.jit
def _forward_kernel(
    asked, z, h0, h1, h2, h3, h4, h5, h6, h7, h8, h9, h10, h11, mixed, alpha, place, S, D, scale,
    TAKEN: tl.constexpr, N: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    history = (h0, h1, h2, h3, h4, h5, h6, h7, h8, h9, h10, h11)
    _, row, is_row, at, own, inside = _places(place, S, D, TAKEN, TOKENS, BLOCK)
    a = _read(asked, own, inside) * scale
    total = tl.zeros([TOKENS, BLOCK], tl.float32)
    largest = tl.full((TOKENS,), float("-inf"), tl.float32)
    length = tl.zeros([TOKENS], tl.float32)
    scores = ()
    for i in tl.static_range(N):
        # Earlier terms shrink as a larger score turns up, so that each output is read once.
        h = _read(history[i], at, inside)
        score = tl.sum(a * h, 1)
        scores = scores + (score,)
        now = tl.maximum(largest, score)
        shrink, weight = tl.exp(largest - now), tl.exp(score - now)
        length = length * shrink + weight
        total = total * shrink[:, None] + weight[:, None] * h
        largest = now
    total = _read(z, own, inside) + total / length[:, None]
    tl.store(mixed + own, total.to(mixed.dtype.element_ty), mask=inside)
    for i in tl.static_range(N):
        share = tl.exp(scores[i] - largest) / length
        tl.store(alpha + tl.cast(row, tl.int64) * N + i, share, mask=is_row)


@triton.jit
def _backward_kernel(
    grad, asked, h0, h1, h2, h3, h4, h5, h6, h7, h8, h9, h10, h11, alpha,
    d_asked, d0, d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, place, S, D, scale,
    TAKEN: tl.constexpr, N: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    history = (h0, h1, h2, h3, h4, h5, h6, h7, h8, h9, h10, h11)
    gradients = (d0, d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11)
    token, row, is_row, at, own, inside = _places(place, S, D, TAKEN, TOKENS, BLOCK)
    # Where nothing is read all numbers are 0, and so are the gradients of the history.
    everywhere = (token < S)[:, None] & (tl.arange(0, BLOCK) < D)[None, :]
    g = _read(grad, own, inside)
    mean = tl.zeros([TOKENS], tl.float32)
    d_alphas = ()
    shares = ()
    for i in tl.static_range(N):
        share = tl.load(alpha + tl.cast(row, tl.int64) * N + i, mask=is_row, other=0.0)
        d_alpha = tl.sum(g * _read(history[i], at, inside), 1)
        mean += share * d_alpha
        d_alphas = d_alphas + (d_alpha,)
        shares = shares + (share,)
    a = _read(asked, own, inside) * scale
    total = tl.zeros([TOKENS, BLOCK], tl.float32)
    for i in tl.static_range(N):
        # Read again, out of the cache: its score's gradient is known now.
        d_score = shares[i] * (d_alphas[i] - mean)
        total += d_score[:, None] * _read(history[i], at, inside)
        d_h = shares[i][:, None] * g + d_score[:, None] * a
        tl.store(gradients[i] + at, d_h.to(gradients[i].dtype.element_ty), mask=everywhere)
    tl.store(d_asked + own, (total * scale).to(d_asked.dtype.element_ty), mask=inside)
