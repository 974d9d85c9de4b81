# mypy: allow-untyped-defs
"""Form of the routes for GPUs: one launch decides, two send the gradients back.

Shape suffixes: S tokens (B·T).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from app.ops.routing import naive

GAP = tl.constexpr(naive.MINIMUM_GAP)
# Tokens of a program, and programs whose sums one step of the last launch adds.
TOKENS, PARTS, WARPS = 1024, 64, 4


class _Routing(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, score: Tensor, base: Tensor, offsets: Tensor, scale: float, temperature: float, is_ordinal: bool
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        score, base, offsets = (x.contiguous() for x in (score, base, offsets))
        S = score.numel()
        route = torch.empty(score.shape, dtype=torch.int64, device=score.device)
        probabilities = torch.empty(*score.shape, 4, dtype=torch.float32, device=score.device)
        thresholds = torch.empty(3, dtype=torch.float32, device=score.device)
        _forward_kernel[(triton.cdiv(S, TOKENS),)](
            score, base, offsets, route, probabilities, thresholds, S, scale, temperature, is_ordinal, TOKENS,
            num_warps=WARPS,
        )  # fmt: skip
        # The thresholds move before the backward pass where another forward comes first.
        ctx.save_for_backward(score, base.clone(), offsets)
        ctx.options = scale, temperature, is_ordinal
        ctx.mark_non_differentiable(route)
        return route, probabilities, thresholds

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        score, base, offsets = ctx.saved_tensors
        S = score.numel()
        n_programs = triton.cdiv(S, TOKENS)
        d_score, d_offsets = torch.empty_like(score), torch.empty_like(offsets)
        partial = torch.empty(n_programs, 4, dtype=torch.float32, device=score.device)
        of_probabilities, of_thresholds = (g.contiguous() for g in gradients[1:])
        _backward_kernel[(n_programs,)](
            score, base, offsets, of_probabilities, d_score, partial, S, *ctx.options, TOKENS, num_warps=WARPS
        )
        scale, _, is_ordinal = ctx.options
        _offsets_kernel[(1,)](
            partial,
            base,
            offsets,
            of_thresholds,
            d_offsets,
            n_programs,
            scale,
            is_ordinal,
            PARTS,
            num_warps=1,
        )
        return d_score, None, d_offsets, None, None, None


def routing(
    score: Tensor, base: Tensor, offsets: Tensor, offset_scale: float, temperature: float, is_ordinal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Routes, probabilities and thresholds; see :func:`app.ops.routing.routing`."""
    if {score.dtype, base.dtype, offsets.dtype} != {torch.float32}:
        return naive.routing(score, base, offsets, offset_scale, temperature, is_ordinal)
    with torch.cuda.device_of(score):
        found: tuple[Tensor, Tensor, Tensor] = _Routing.apply(
            score, base, offsets, offset_scale, temperature, is_ordinal
        )
    return found


@triton.jit
def _tanh(x):
    return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0


@triton.jit
def _thresholds(base, offsets, scale):
    """The three, and before the least distance was kept the latter two."""
    t1 = tl.load(base) + scale * _tanh(tl.load(offsets))
    wanted2 = tl.load(base + 1) + scale * _tanh(tl.load(offsets + 1))
    wanted3 = tl.load(base + 2) + scale * _tanh(tl.load(offsets + 2))
    t2 = tl.maximum(wanted2, t1 + GAP)
    t3 = tl.maximum(wanted3, t2 + GAP)
    return t1, t2, t3, wanted2, wanted3


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _soft(d, t1, t2, t3, temperature, IS_ORDINAL: tl.constexpr):
    """Four probabilities; between them, with ``ordinal`` the three sigmoids, with centres the four signs."""
    if IS_ORDINAL:
        a1 = _sigmoid(temperature * (d - t1))
        a2 = _sigmoid(temperature * (d - t2))
        a3 = _sigmoid(temperature * (d - t3))
        return 1.0 - a1, a1 - a2, a2 - a3, a3, a1, a2, a3, a3
    x0 = d - (t1 - tl.maximum(t2 - t1, GAP))
    x1, x2 = d - (t1 + t2) / 2.0, d - (t2 + t3) / 2.0
    x3 = d - (t3 + tl.maximum(t3 - t2, GAP))
    least = tl.minimum(tl.minimum(tl.abs(x0), tl.abs(x1)), tl.minimum(tl.abs(x2), tl.abs(x3)))
    e0, e1 = tl.exp(temperature * (least - tl.abs(x0))), tl.exp(temperature * (least - tl.abs(x1)))
    e2, e3 = tl.exp(temperature * (least - tl.abs(x2))), tl.exp(temperature * (least - tl.abs(x3)))
    total = e0 + e1 + e2 + e3
    return e0 / total, e1 / total, e2 / total, e3 / total, _sign(x0), _sign(x1), _sign(x2), _sign(x3)


@triton.jit
def _sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def _forward_kernel(
    score, base, offsets, route, probabilities, thresholds, S, scale, temperature,
    IS_ORDINAL: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    t1, t2, t3, _, _ = _thresholds(base, offsets, scale)
    if tl.program_id(0) == 0:
        tl.store(thresholds, t1)
        tl.store(thresholds + 1, t2)
        tl.store(thresholds + 2, t3)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    d = tl.load(score + token, mask=token < S, other=0.0)
    above = (d > t1).to(tl.int64) + (d > t2).to(tl.int64) + (d > t3).to(tl.int64)
    tl.store(route + token, above, mask=token < S)
    p0, p1, p2, p3, _, _, _, _ = _soft(d, t1, t2, t3, temperature, IS_ORDINAL)
    to = probabilities + token.to(tl.int64) * 4
    tl.store(to, p0, mask=token < S)
    tl.store(to + 1, p1, mask=token < S)
    tl.store(to + 2, p2, mask=token < S)
    tl.store(to + 3, p3, mask=token < S)


@triton.jit
def _backward_kernel(
    score, base, offsets, grad, d_score, partial, S, scale, temperature,
    IS_ORDINAL: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Gradient of the scores, and this program's sums of those of thresholds, or of centres."""
    t1, t2, t3, _, _ = _thresholds(base, offsets, scale)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    inside = token < S
    d = tl.load(score + token, mask=inside, other=0.0)
    p0, p1, p2, p3, s0, s1, s2, s3 = _soft(d, t1, t2, t3, temperature, IS_ORDINAL)
    of = grad + token.to(tl.int64) * 4
    g0, g1 = tl.load(of, mask=inside, other=0.0), tl.load(of + 1, mask=inside, other=0.0)
    g2, g3 = tl.load(of + 2, mask=inside, other=0.0), tl.load(of + 3, mask=inside, other=0.0)
    if IS_ORDINAL:
        d1 = (g1 - g0) * temperature * s0 * (1.0 - s0)
        d2 = (g2 - g1) * temperature * s1 * (1.0 - s1)
        d3 = (g3 - g2) * temperature * s2 * (1.0 - s2)
        d4 = tl.zeros_like(d1)
    else:
        mean = p0 * g0 + p1 * g1 + p2 * g2 + p3 * g3
        d1, d2 = -temperature * s0 * p0 * (g0 - mean), -temperature * s1 * p1 * (g1 - mean)
        d3, d4 = -temperature * s2 * p2 * (g2 - mean), -temperature * s3 * p3 * (g3 - mean)
    tl.store(d_score + token, d1 + d2 + d3 + d4, mask=inside)
    to = partial + tl.program_id(0) * 4
    # A threshold, or centre, moves the distance the other way.
    tl.store(to, -tl.sum(tl.where(inside, d1, 0.0), 0))
    tl.store(to + 1, -tl.sum(tl.where(inside, d2, 0.0), 0))
    tl.store(to + 2, -tl.sum(tl.where(inside, d3, 0.0), 0))
    tl.store(to + 3, -tl.sum(tl.where(inside, d4, 0.0), 0))


@triton.jit
def _column(partial, column, n_programs, PARTS: tl.constexpr):
    total = tl.zeros([PARTS], tl.float32)
    for first in range(0, n_programs, PARTS):
        part = first + tl.arange(0, PARTS)
        total += tl.load(partial + part * 4 + column, mask=part < n_programs, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def _share(wanted, pushed):
    """Of the gradient of the larger one, what goes to the first; of equals, half."""
    return tl.where(wanted > pushed, 1.0, tl.where(wanted < pushed, 0.0, 0.5))


@triton.jit
def _offsets_kernel(
    partial, base, offsets, of_thresholds, d_offsets, n_programs, scale,
    IS_ORDINAL: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    t1, t2, t3, wanted2, wanted3 = _thresholds(base, offsets, scale)
    c0, c1 = _column(partial, 0, n_programs, PARTS), _column(partial, 1, n_programs, PARTS)
    c2, c3 = _column(partial, 2, n_programs, PARTS), _column(partial, 3, n_programs, PARTS)
    d1, d2, d3 = c0, c1, c2
    if not IS_ORDINAL:
        # left = t2 − t1 and right = t3 − t2, unless these are below the least distance.
        left = tl.where(t2 - t1 >= GAP, c0, 0.0)
        right = tl.where(t3 - t2 >= GAP, c3, 0.0)
        d1 = c0 + left + c1 / 2.0
        d2 = -left + c1 / 2.0 + c2 / 2.0 - right
        d3 = c2 / 2.0 + c3 + right
    d1 += tl.load(of_thresholds)
    d2 += tl.load(of_thresholds + 1)
    d3 += tl.load(of_thresholds + 2)
    kept3 = _share(wanted3, t2 + GAP)
    d2 += d3 * (1.0 - kept3)
    kept2 = _share(wanted2, t1 + GAP)
    d1 += d2 * (1.0 - kept2)
    h1, h2, h3 = _tanh(tl.load(offsets)), _tanh(tl.load(offsets + 1)), _tanh(tl.load(offsets + 2))
    tl.store(d_offsets, d1 * scale * (1.0 - h1 * h1))
    tl.store(d_offsets + 1, d2 * kept2 * scale * (1.0 - h2 * h2))
    tl.store(d_offsets + 2, d3 * kept3 * scale * (1.0 - h3 * h3))
