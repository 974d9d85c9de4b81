import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from app.run.randomness import derive, rekey, seed_initialisation


@pytest.mark.parametrize(
    ("parts", "value"),
    [
        ((0,), 4246866556266386882),
        ((1337, 1, 0, 0), 7428882885169993466),
        ((1337, 1, 0, 1), 7457196922273398879),
        ((-1, 2**70), 6572748011854261770),
    ],
)
def test_golden_values(parts: tuple[int, ...], value: int) -> None:
    assert derive(*parts) == value


def test_range_and_distinctness() -> None:
    values = [
        derive(seed, step, micro, rank)
        for seed in range(3)
        for step in range(50)
        for micro in range(8)
        for rank in range(8)
    ]
    assert len(set(values)) == len(values)
    assert all(0 <= value < 2**63 for value in values)
    assert derive(1, 23) != derive(12, 3)
    assert derive(True, np.int64(2)) == derive(1, 2)
    top = np.array([value >> 62 for value in values])
    assert abs(top.mean() - 0.5) < 0.02


def test_rekey_repeats_and_tells_positions_apart() -> None:
    def draw(*position: int) -> list[float]:
        rekey(7, *position)
        return torch.rand(4).tolist()

    first = draw(10, 0, 0)
    torch.rand(100)
    assert draw(10, 0, 0) == first
    assert len({tuple(draw(*at)) for at in ((10, 0, 0), (11, 0, 0), (10, 1, 0), (10, 0, 1))}) == 4


def test_rekey_is_cheap() -> None:
    rekey(0, 0, 0, 0)
    times = []
    for step in range(200):
        started = time.perf_counter()
        rekey(0, step, 0, 0)
        times.append(time.perf_counter() - started)
    assert sorted(times)[100] < 50e-6


def test_initialisation_seeds_every_generator() -> None:
    def draw(seed: int) -> tuple[float, float, float]:
        seed_initialisation(seed)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert draw(1337) == draw(1337)
    assert all(left != right for left, right in zip(draw(1337), draw(1338), strict=True))
    draw(2**40)
    draw(-5)


def test_nothing_heavy_is_imported_by_any_module_here() -> None:
    root = Path(__file__).parents[2]
    names = [f"app.run.{path.stem}" for path in sorted((root / "app" / "run").glob("[a-z]*.py"))]
    assert len(names) >= 10
    code = (
        f"import sys, {', '.join(names)}\n"
        "print(sorted({'torch', 'numpy', 'lightning', 'jsonargparse'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
