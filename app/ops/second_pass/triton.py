"""Form for a GPU of what some tokens pass: the takers' rows stand side by side, and nothing is computed of the others.

Shape suffixes: B batch, T sequence, S tokens (B·T), D width, F inner width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from app.ops import bank_kernels
from app.ops.depth_attention.triton import depth_attention_of_taken, depth_attention_of_taken_backward
from app.ops.precision import matmul_dtype
from app.ops.second_pass import naive, rows
from app.ops.second_pass.attention import attention, attention_backward, readable

NORMS = ("ln1", "norm", "ln2")
BIASES = ("up.bias", "down.bias")
# Rows of one sum of a weight's gradient: most rows are of nobody, and few sums would leave the GPU idle.
ROWS_PER_SUM = 1024


class _Products:
    """Products of the takers' rows with weights, in one number format.

    Args:
        weights: by name, as they are used.
        takers: whose rows.
    """

    def __init__(self, weights: Mapping[str, Tensor], takers: rows.Takers):
        self.weights = weights
        self.groups = bank_kernels.Groups(None, takers.number)

    def forward(self, x_SI: Tensor, name: str, bias: str | None = None) -> Tensor:
        """``x Wᵀ + b``."""
        return bank_kernels.grouped_linear(x_SI, self.weights[name][None], self.groups, bias=self._bias(bias))

    def forward_gelu(self, x_SI: Tensor, name: str, bias: str) -> tuple[Tensor, Tensor]:
        """``u = x Wᵀ + b``, and its gelu."""
        return bank_kernels.grouped_linear_gelu(x_SI, self.weights[name][None], self.groups, self._bias(bias))

    def backward(self, x_SO: Tensor, name: str) -> Tensor:
        """``x W``."""
        return bank_kernels.grouped_linear(x_SO, self.weights[name].T[None], self.groups)

    def backward_gelu(self, x_SO: Tensor, name: str, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """``(x W) ⊙ gelu'(u)``, and the gelu of u once more."""
        return bank_kernels.grouped_linear_gelu_backward(
            x_SO, self.weights[name].T[None], hidden, self.groups
        )

    def outer(self, y_SO: Tensor, x_SI: Tensor, dtype: torch.dtype) -> Tensor:
        """``Σ y xᵀ``."""
        return bank_kernels.grouped_outer(y_SO, x_SI, self.groups, dtype, most_rows=ROWS_PER_SUM)[0]

    def _bias(self, name: str | None) -> Tensor | None:
        return None if name is None else self.weights[name][None]


class _SecondPass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        names: Sequence[str],
        n_history: int,
        n_heads: int,
        eps: float,
        dtype: torch.dtype,
        taken: Tensor,
        x_SD: Tensor,
        keys: Tensor | None,
        values: Tensor | None,
        *tensors: Tensor,
    ) -> Tensor:
        history, given = tensors[:n_history], dict(zip(names, tensors[n_history:], strict=True))
        D, takers, used = x_SD.shape[1], rows.takers(taken), _used(given, dtype, keys is not None)
        products = _Products(used, takers)
        normed, kept = rows.norm(x_SD, used["ln1.weight"], used["ln1.bias"], eps, takers, dtype, gather=True)
        qkv = products.forward(normed, "qkv")
        mixed, length = qkv, None
        if keys is not None and values is not None:
            keys, values = readable(keys, dtype), readable(values, dtype)
            mixed, length = attention(qkv, keys, values, takers)
        z = products.forward(mixed, "o")
        query = products.forward(z, "query")
        asked = bank_kernels.grouped_linear(query, used["key"].T[None], products.groups)
        over_depth, alpha = depth_attention_of_taken(asked, z, history, takers.place, D**-0.5)
        stream, kept_depth = rows.norm(
            over_depth, used["norm.weight"], used["norm.bias"], eps, takers, torch.float32, gather=False
        )
        normed2, kept2 = rows.norm(
            stream, used["ln2.weight"], used["ln2.bias"], eps, takers, dtype, gather=False
        )
        hidden, active = products.forward_gelu(normed2, "up.weight", "up.bias")
        added = products.forward(active, "down.weight", "down.bias")
        y = rows.put(x_SD, stream, added, takers)
        ctx.save_for_backward(
            x_SD, keys, values, normed, qkv, mixed, length, z, query, asked, over_depth, alpha, stream, normed2,
            hidden, *takers, *kept, *kept_depth, *kept2, *history, *used.values(),
        )  # fmt: skip
        ctx.dtypes, ctx.sizes, ctx.used = (
            {name: w.dtype for name, w in given.items()},
            (eps, n_history),
            list(used),
        )
        ctx.names = names
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x_SD, keys, values, normed, qkv, mixed, length, z, query, asked, over_depth, alpha, stream, normed2,
         hidden, *others) = ctx.saved_tensors  # fmt: skip
        (eps, n_history), grad = ctx.sizes, gradients[0].contiguous()
        takers = rows.Takers(*others[:4])
        kept, kept_depth, kept2 = (rows.Norm(*others[i : i + 2]) for i in (4, 6, 8))
        history, used = (
            others[10 : 10 + n_history],
            dict(zip(ctx.used, others[10 + n_history :], strict=True)),
        )
        products, D, dtype = _Products(used, takers), x_SD.shape[1], normed.dtype
        found: dict[str, Tensor] = {}

        d_added = rows.take(grad, takers, dtype)
        found["down.bias"] = rows.column_sums(d_added, takers, ctx.dtypes["down.bias"])
        d_hidden, active = products.backward_gelu(d_added, "down.weight", hidden)
        found["down.weight"] = products.outer(d_added, active, ctx.dtypes["down.weight"])
        found["up.bias"] = rows.column_sums(d_hidden, takers, ctx.dtypes["up.bias"])
        found["up.weight"] = products.outer(d_hidden, normed2, ctx.dtypes["up.weight"])
        d_normed2 = products.backward(d_hidden, "up.weight")
        d_stream, found["ln2.weight"], found["ln2.bias"] = rows.norm_backward(
            d_normed2, stream, used["ln2.weight"], kept2, eps, takers, beside=grad
        )
        d_depth, found["norm.weight"], found["norm.bias"] = rows.norm_backward(
            d_stream, over_depth, used["norm.weight"], kept_depth, eps, takers
        )
        d_asked, d_history = depth_attention_of_taken_backward(
            d_depth, asked, history, alpha, takers.place, D**-0.5
        )
        # asked = query W_k, so that its weight stands the other way round.
        found["key"] = products.outer(query, d_asked, ctx.dtypes["key"])
        d_query = products.forward(d_asked, "key")
        found["query"] = products.outer(d_query, z, ctx.dtypes["query"])
        d_z = rows.add(products.backward(d_query, "query"), d_depth, takers)
        found["o"] = products.outer(d_z, mixed, ctx.dtypes["o"])
        d_mixed = products.backward(d_z, "o")
        d_keys = d_values = None
        d_qkv = d_mixed
        if length is not None:
            d_qkv, d_keys, d_values = attention_backward(d_mixed, qkv, keys, values, mixed, length, takers)
        d_projections = products.outer(d_qkv, normed, ctx.dtypes["v"])
        found |= dict(zip("qkv" if length is not None else "v", d_projections.split(D), strict=True))
        d_normed = products.backward(d_qkv, "qkv")
        d_x, found["ln1.weight"], found["ln1.bias"] = rows.norm_backward(
            d_normed, x_SD, used["ln1.weight"], kept, eps, takers, by_token=True, beside=grad
        )
        return (
            *[None] * 6, d_x, d_keys, d_values, *d_history, *[found.get(name) for name in ctx.names]
        )  # fmt: skip


class _AdapterPass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, names: Sequence[str], dtype: torch.dtype, taken: Tensor, x_SD: Tensor, *tensors: Tensor
    ) -> Tensor:
        given, takers = dict(zip(names, tensors, strict=True)), rows.takers(taken)
        used = {name: (w if name in BIASES else w.to(dtype)).contiguous() for name, w in given.items()}
        products, x = _Products(used, takers), rows.take(x_SD, takers, dtype)
        hidden, active = products.forward_gelu(x, "down.weight", "down.bias")
        y = rows.put(x_SD, None, products.forward(active, "up.weight", "up.bias"), takers)
        ctx.save_for_backward(x, hidden, *takers, *used.values())
        ctx.names, ctx.dtypes = names, {name: w.dtype for name, w in given.items()}
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, *others = ctx.saved_tensors
        takers, used = rows.Takers(*others[:4]), dict(zip(ctx.names, others[4:], strict=True))
        products, grad = _Products(used, takers), gradients[0].contiguous()
        d_added = rows.take(grad, takers, x.dtype)
        d_hidden, active = products.backward_gelu(d_added, "up.weight", hidden)
        found = {
            "up.weight": products.outer(d_added, active, ctx.dtypes["up.weight"]),
            "up.bias": rows.column_sums(d_added, takers, ctx.dtypes["up.bias"]),
            "down.weight": products.outer(d_hidden, x, ctx.dtypes["down.weight"]),
            "down.bias": rows.column_sums(d_hidden, takers, ctx.dtypes["down.bias"]),
        }
        d_x = rows.put(grad, None, products.backward(d_hidden, "down.weight"), takers)
        return None, None, None, d_x, *[found[name] for name in ctx.names]


def _used(given: Mapping[str, Tensor], dtype: torch.dtype, has_context: bool) -> dict[str, Tensor]:
    """Weights as they are used: matrices in the format of products, those of the attention one below the other."""
    projections = torch.cat([given[name] for name in ("qkv" if has_context else "v")])
    used = {"qkv": projections} | {name: w for name, w in given.items() if name not in ("q", "k", "v")}
    return {
        name: (w if name.startswith(NORMS) or name in BIASES else w.to(dtype)).contiguous()
        for name, w in used.items()
    }


def second_pass(
    x: Tensor,
    taken: Tensor,
    history: Sequence[Tensor],
    weights: Mapping[str, Tensor],
    n_heads: int,
    keys: Tensor | None = None,
    values: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Tokens that go through a block once more; see :func:`app.ops.second_pass.second_pass`.

    Rows wider than 2048, heads wider than 128 and more than 12 earlier outputs are left to the reference.
    """
    D = x.shape[-1]
    if D > naive.WIDEST or len(history) > naive.MOST_HISTORY or D // n_heads > naive.WIDEST_HEAD:
        return naive.second_pass(x, taken, history, weights, n_heads, keys, values, eps)
    earlier = [h.reshape(-1, D).contiguous() for h in history]
    dtype, x_SD = matmul_dtype(x), x.reshape(-1, D).contiguous()
    with torch.autocast(x.device.type, enabled=False), torch.cuda.device_of(x):
        y: Tensor = _SecondPass.apply(
            list(weights), len(earlier), n_heads, eps, dtype, taken, x_SD, keys, values, *earlier, *weights.values()
        )  # fmt: skip
    return y.view(x.shape)


def adapter_pass(x: Tensor, taken: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """``x + up(gelu(down x))`` for some tokens; see :func:`app.ops.second_pass.adapter_pass`.

    Rows wider than 2048 are left to the reference.
    """
    D = x.shape[-1]
    if D > naive.WIDEST:
        return naive.adapter_pass(x, taken, weights)
    x_SD, dtype = x.reshape(-1, D).contiguous(), matmul_dtype(x)
    with torch.autocast(x.device.type, enabled=False), torch.cuda.device_of(x):
        y: Tensor = _AdapterPass.apply(list(weights), dtype, taken, x_SD, *weights.values())
    return y.view(x.shape)
