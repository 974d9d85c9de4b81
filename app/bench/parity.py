"""How far two computations of one thing may be apart, as ‖a − b‖ / ‖b‖."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# fp32, another order of the same operations.
OUTPUT = 1e-5
GRADIENT = 1e-4
# bf16 keeps 8 bits: about three digits.
BFLOAT16 = 1e-2
# Two numbers closer than this, relative, are a near-tie: which of them is larger is a matter of rounding.
NEAR_TIE = 1e-5
# The same where both are rounded to bf16, and products of its numbers are added up.
NEAR_TIE_BFLOAT16 = 2**-6


def relative_error(actual: Tensor, expected: Tensor, least: float = 0.0) -> float:
    """‖actual − expected‖ / ‖expected‖ in double precision; against zeros, the norm of what is not zero.

    Args:
        actual: any shape.
        expected: the same shape.
        least: a norm below which ``expected`` is nothing; the difference is then measured by this one.
    """
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    actual, expected = actual.detach().double(), expected.detach().double()
    norm = max(expected.norm().item(), least)
    return (actual - expected).norm().item() / (norm or 1.0)


@contextmanager
def any_order() -> Iterator[None]:
    """For the time of a ``with`` block, a GPU may add up in any order: for references that are close all the same."""
    strict = torch.are_deterministic_algorithms_enabled()
    if strict:
        torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        if strict:
            torch.use_deterministic_algorithms(True)


@contextmanager
def exact_products() -> Iterator[None]:
    """For the time of a ``with`` block, a GPU computes fp32 products and convolutions in fp32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
