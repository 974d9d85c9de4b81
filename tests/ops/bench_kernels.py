"""Times the kernels of convolutions, state scan, mixture and quantisers on a GPU, each beside what was predicted for it.

``python -m tests.ops.bench_kernels [--out FILE]``; two minutes, of which compilation takes most. Each call is captured as a
CUDA graph, which proves that nothing in it waits for the device, and replayed over inputs that are larger together than the
L2; medians, with a copy of as many bytes in the same run. Then the kernels of one call by their device time. Right
results come first: ``pytest tests/ops/test_kernels.py -m ''``.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from app.ops import use_form
from app.ops.case import Case, Draw, Size, cases, tensors_of

DEVICE = torch.device("cuda")
USUAL = Size(16, 1024, 512)
# (case, size, microseconds predicted for an H200: forward, forward + backward)
PREDICTED: list[tuple[str, Size, float | None, float | None]] = [
    ("banked_causal_conv.local", USUAL, 13, 46),
    ("banked_causal_conv.wide", USUAL, 26, 88),
    ("banked_causal_conv.local", USUAL._replace(N=1), None, None),
    ("banked_causal_conv.wide", USUAL._replace(N=1), None, None),
    ("banked_causal_conv.wide", USUAL._replace(N=8), None, None),
    ("banked_diagonal_scan", USUAL._replace(N=1), 12, 32),
    ("banked_diagonal_scan", USUAL, 19, 58),
    ("banked_diagonal_scan", USUAL._replace(N=8), None, None),
    ("banked_diagonal_scan", Size(2, 8192, 512), None, None),
    ("pathway_mix", USUAL, 34, 94),
    ("ternary", USUAL, 9, 9),
    ("learned_step_ternary", USUAL, 6, 17),
    *[(f"banked_causal_conv.{name}", Size(16, 128, 96), None, None) for name in ("local", "wide")],
    ("banked_diagonal_scan", Size(16, 128, 96), None, None),
    ("pathway_mix", Size(16, 128, 96), None, None),
]
L2_BYTES, N_REPLAYS = 2**26, 21


def replayed(work: Callable[[], object]) -> float:
    """Microseconds of the device, a graph of ``work`` at a time."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    times = []
    for _ in range(N_REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1000 * begin.elapsed_time(end))
    return median(times)


def forward(case: Case, given: dict[str, Any]) -> Tensor:
    y: Tensor = case.function(**given)
    return y


def both(case: Case, given: dict[str, Any]) -> tuple[Tensor, ...]:
    y = forward(case, given)
    leaves = [x for x in tensors_of(given) if x.requires_grad]
    return torch.autograd.grad(y, leaves, y.detach())


def measured(name: str, size: Size) -> dict[str, Any]:
    case = cases(name.partition(".")[0].replace("learned_step_", ""))[name]
    first = case.arguments(size, Draw(0, DEVICE, torch.bfloat16))
    n_bytes = sum(x.nbytes for x in tensors_of(first)) + case.function(**first).nbytes
    n_sets = 2 + L2_BYTES // n_bytes
    sets = [first, *(case.arguments(size, Draw(i, DEVICE, torch.bfloat16)) for i in range(1, n_sets))]
    sources = [torch.randint(0, 127, (n_bytes // 2,), dtype=torch.int8, device=DEVICE) for _ in sets]
    row: dict[str, Any] = {"case": name, "size": size._asdict(), "bytes": n_bytes}
    row["forward"] = replayed(lambda: [forward(case, given) for given in sets]) / n_sets
    row["both"] = replayed(lambda: [both(case, given) for given in sets]) / n_sets
    row["copy"] = replayed(lambda: [x.clone() for x in sources]) / n_sets
    with torch.profiler.profile() as profile:
        both(case, first)
        torch.cuda.synchronize()
    row["kernels"] = {
        each.key: each.device_time_total for each in profile.key_averages() if each.device_time_total > 0
    }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON of all figures")
    out = parser.parse_args().out
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "- microseconds (predicted)")
    rows = []
    for name, size, *predicted in PREDICTED:
        with use_form("triton"):
            row = measured(name, size)
        rows.append(row | {"predicted": predicted})
        if "banked" in name and size in (USUAL, USUAL._replace(N=1)):
            with use_form("vectorized"):
                row["vectorized"] = measured(name, size)["both"]
        said = [
            f"{row[what]:8.1f} ({guess or '-'})"
            for what, guess in zip(("forward", "both"), predicted, strict=True)
        ]
        print(
            f"{name:26}{tuple(size)[:4]!s:20}{''.join(said)}  copy of as much {row['copy']:.1f}", flush=True
        )
        for kernel, time in sorted(row["kernels"].items(), key=lambda item: -item[1])[:6]:
            print(f"    {time:8.1f}  {kernel[:64]}")
    if out:
        out.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
