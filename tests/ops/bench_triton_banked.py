"""Times the kernels of the banked feed-forward network and top-k attention on a GPU beside the form without kernels.

``python -m tests.ops.bench_triton_banked [--profile] [--out FILE]``; about a minute, compilation included. Forward and
forward with backward are captured as CUDA graphs, which proves that nothing in them waits for the device, and replayed
over inputs larger than the L2 together; medians. Attention is compared with ``scaled_dot_product_attention`` of the same
width, 8 heads of 64, in the same run. Right results come first: ``pytest tests/ops/test_triton_banked.py -m ''``.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from app.ops import Form, use_form
from app.ops.banked_ffn import banked_ffn
from app.ops.banked_sparse_attention import banked_sparse_attention

# (operator, B, T, D, N)
SIZES = [
    ("banked_ffn", 16, 128, 96, 4),
    ("banked_ffn", 16, 1024, 512, 1),
    ("banked_ffn", 16, 1024, 512, 4),
    ("banked_ffn", 16, 1024, 512, 8),
    ("banked_sparse_attention", 16, 128, 96, 4),
    ("banked_sparse_attention", 16, 1024, 512, 1),
    ("banked_sparse_attention", 16, 1024, 512, 4),
    ("banked_sparse_attention", 16, 1024, 512, 8),
    ("banked_sparse_attention", 16, 2048, 512, 4),
    ("banked_sparse_attention", 16, 4096, 512, 4),
    ("banked_sparse_attention", 4, 8192, 512, 4),
]
N_INPUTS, N_REPLAYS = 4, 15


def call(op: str, B: int, T: int, D: int, N: int) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """A call under autocast, as in training, and what it has gradients for."""

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        return (torch.randn(shape, device="cuda") * std).requires_grad_()

    h, bank = normal(B, T, D), torch.randint(0, N, (B, T), device="cuda")
    if op == "banked_ffn":
        weights = [normal(N, 2 * D, D, std=D**-0.5), normal(N, D, 2 * D, std=(2 * D) ** -0.5)]
        return lambda: banked_ffn(h, *weights, bank), [h, *weights]
    weights = [normal(N, rows, D, std=D**-0.5) for rows in (32, 32, D)]
    return lambda: banked_sparse_attention(h, *weights, bank, 8), [h, *weights]


def attention(B: int, T: int, D: int) -> tuple[Callable[[], Tensor], list[Tensor]]:
    heads = [
        torch.randn(B, D // 64, T, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in "qkv"
    ]
    return lambda: F.scaled_dot_product_attention(*heads, is_causal=True), heads


def milliseconds(calls: list[tuple[Callable[[], Tensor], list[Tensor]]], with_backward: bool) -> float:
    def run() -> None:
        for function, leaves in calls:
            y = function()
            if with_backward:
                torch.autograd.grad(y, leaves, torch.ones_like(y))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    times = []
    for _ in range(N_REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / len(calls))
    return median(times)


def measured(calls: list[tuple[Callable[[], Tensor], list[Tensor]]]) -> dict[str, float]:
    return {
        name: milliseconds(calls, backward) for name, backward in (("forward", False), ("and backward", True))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", action="store_true", help="kernels of each call by their time")
    parser.add_argument("--out", type=Path, help="JSON of all figures")
    given = parser.parse_args()
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    rows: list[dict[str, Any]] = []
    forms: tuple[Form, ...] = ("triton", "vectorized")
    for op, *size in SIZES:
        calls = [call(op, *size) for _ in range(N_INPUTS)]
        for form in forms:
            with use_form(form), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
                rows.append({"op": op, "size": size, "form": form, **measured(calls)})
                if given.profile and form == "triton":
                    with torch.profiler.profile() as profile:
                        torch.autograd.grad(calls[0][0]().sum(), calls[0][1])
                        torch.cuda.synchronize()
                    print(profile.key_averages().table(sort_by="cuda_time_total", row_limit=14))
        if op == "banked_sparse_attention" and size[2] % 64 == 0:
            rows.append(
                {"op": "scaled_dot_product_attention", "size": size[:3], "form": ""}
                | measured([attention(*size[:3]) for _ in range(N_INPUTS)])
            )
    for row in rows:
        times = "".join(f"{row[name]:9.3f}" for name in ("forward", "and backward"))
        print(f"{row['op']:30}{row['size']!s:22}{row['form']:12}{times} ms")
    if given.out:
        given.out.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
