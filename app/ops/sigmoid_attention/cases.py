"""The attention of a sigmoid GPT, for measurements and checks."""

import math

import torch

from app.ops.case import Arguments, Case, Draw, Size
from app.ops.sigmoid_attention import sigmoid_attention


def _arguments(size: Size, draw: Draw) -> Arguments:
    n_heads, d = size.heads
    heads = {name: draw.activation(size.B, n_heads, size.T, d) for name in "qkv"}
    bias = torch.tensor(-math.log(size.T), device=draw.device)  # where training begins
    return heads | {"bias": bias.requires_grad_()}


def _flops(size: Size) -> int:
    n_heads, d = size.heads
    return 4 * n_heads * size.causal_pairs * d


def _dropout(size: Size, draw: Draw) -> Arguments:
    seed = torch.tensor([size.T, -size.D], dtype=torch.int32, device=draw.device)
    return _arguments(size, draw) | {"dropout": 0.2, "seed": seed}


def _straight_through(size: Size, draw: Draw) -> Arguments:
    return _arguments(size, draw) | {"straight_through": True}


CASES = {
    "sigmoid_attention": Case(sigmoid_attention, _arguments, _flops, "BTD", has_products=True),
    "sigmoid_attention.dropout": Case(sigmoid_attention, _dropout, _flops, "BTD", has_products=True),
    "sigmoid_attention.ste": Case(sigmoid_attention, _straight_through, _flops, "BTD", has_products=True),
}
