"""What a device can do at most, measured in the same run as what is held against it."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from app.bench.timing import cache_bytes, measure

#: side of the square matrices of a product
SIDES = {"cuda": 8192, "cpu": 1024}
QUICK_SIDE = 128
QUICK_BYTES = 2**20
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Ceilings(NamedTuple):
    """Rates of a device.

    Attributes:
        copy: bytes per second, read and written, of a copy that no cache holds.
        products: operations per second of square matrix products, by number format.
        side: of those matrices.
    """

    copy: float
    products: dict[str, float]
    side: int

    def describe(self) -> str:
        """On one line."""
        rates = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in self.products.items())
        return f"copy {self.copy / 1e9:,.4g} GB/s; {self.side}^3 products {rates} TFLOP/s"


def measured(device: torch.device, n_windows: int, quick: bool = False) -> Ceilings:
    """Measures them.

    Args:
        device: whose they are.
        n_windows: of each measurement.
        quick: on what fits into the cache, which is no ceiling.
    """
    generator = torch.Generator("cpu").manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    n_numbers = (QUICK_BYTES if quick else 4 * cache_bytes(device)) // 4
    source = normal(n_numbers)
    target = torch.empty_like(source)
    side = QUICK_SIDE if quick else SIDES[device.type]
    wide = [normal(side, side) for _ in range(2)]

    def product(dtype: torch.dtype) -> Callable[[int], object]:
        left, right = (matrix.to(dtype) for matrix in wide)
        out = torch.empty_like(left)
        return lambda _: torch.mm(left, right, out=out)

    calls: dict[str, Callable[[int], object]] = {"copy": lambda _: target.copy_(source)}
    calls |= {name: product(dtype) for name, dtype in DTYPES.items()}
    times = measure(calls, device, n_windows, 0.0 if quick else None)
    rates = {name: 2 * side**3 / times[name].median for name in DTYPES}
    return Ceilings(2 * 4 * n_numbers / times["copy"].median, rates, side)
