"""Triton's interpreter as a GPU computes: it holds bf16 as bits, multiplies these, and cuts off where a GPU rounds."""

from typing import Any

import numpy
import pytest
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def hold_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the time of a test, products of bf16 are those of the numbers, and fp32 is rounded to bf16 to the nearest."""
    monkeypatch.setattr(InterpreterBuilder, "create_dot", _dot_of_numbers)
    monkeypatch.setattr(interpreter, "_convert_float", _rounded)


def _dot_of_numbers(
    self: InterpreterBuilder, a: Any, b: Any, *rest: Any, dot: Any = InterpreterBuilder.create_dot
) -> Any:
    if a.dtype.scalar == tl.bfloat16:
        a, b = (TensorHandle((x.data.astype("uint32") << 16).view("float32"), tl.float32) for x in (a, b))
    return dot(self, a, b, *rest)


def _rounded(x: Any, given: Any, wanted: Any, mode: Any, convert: Any = interpreter._convert_float) -> Any:
    """To the nearest bf16, to even."""
    if given.scalar == tl.float32 and wanted.scalar == tl.bfloat16:
        bits = x.view("uint32")
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return numpy.where(numpy.isnan(x), bits >> 16 | 0x40, rounded).astype("uint16")
    return convert(x, given, wanted, mode)
