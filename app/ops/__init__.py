"""Operators, each in a reference form (``naive.py``) and a fast form (``vectorized.py``) of one function.

The forms share name, arguments and result. The fast one is the product; the reference is what it is tested
and timed against. ``FAST`` and ``NAIVE`` name the two sets, so that one network can be computed by either.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from app.ops.banked_causal_conv import naive as naive_conv
from app.ops.banked_causal_conv import vectorized as vectorized_conv
from app.ops.banked_diagonal_scan import naive as naive_scan
from app.ops.banked_diagonal_scan import vectorized as vectorized_scan
from app.ops.banked_ffn import naive as naive_ffn
from app.ops.banked_ffn import vectorized as vectorized_ffn
from app.ops.banked_sparse_attention import naive as naive_attention
from app.ops.banked_sparse_attention import vectorized as vectorized_attention
from app.ops.hadamard import naive as naive_hadamard
from app.ops.hadamard import vectorized as vectorized_hadamard
from app.ops.pathway_mix import naive as naive_mix
from app.ops.pathway_mix import vectorized as vectorized_mix
from app.ops.ternary import naive as naive_ternary
from app.ops.ternary import vectorized as vectorized_ternary


class Operations(NamedTuple):
    """One form of every operator."""

    ternary: Callable[..., Tensor]
    learned_step_ternary: Callable[..., Tensor]
    hadamard: Callable[..., Tensor]
    banked_causal_conv: Callable[..., Tensor]
    banked_diagonal_scan: Callable[..., Tensor]
    banked_sparse_attention: Callable[..., Tensor]
    banked_ffn: Callable[..., Tensor]
    pathway_mix: Callable[..., Tensor]


FAST = Operations(
    vectorized_ternary.ternary,
    vectorized_ternary.learned_step_ternary,
    vectorized_hadamard.hadamard,
    vectorized_conv.banked_causal_conv,
    vectorized_scan.banked_diagonal_scan,
    vectorized_attention.banked_sparse_attention,
    vectorized_ffn.banked_ffn,
    vectorized_mix.pathway_mix,
)
NAIVE = Operations(
    naive_ternary.ternary,
    naive_ternary.learned_step_ternary,
    naive_hadamard.hadamard,
    naive_conv.banked_causal_conv,
    naive_scan.banked_diagonal_scan,
    naive_attention.banked_sparse_attention,
    naive_ffn.banked_ffn,
    naive_mix.pathway_mix,
)
