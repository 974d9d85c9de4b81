"""Time of a training step against the share of tokens that the budget lets be computed again.

    python -m tests.models.bench_equilibrium --device cpu
    python -m tests.models.bench_equilibrium --device cuda --d_model 512 --n_layers 8 --block_size 1024 --rows 16

Prints one line per form: milliseconds of forward, backward and what moves after the step, median of several windows
taken in turn, so that a machine that slows down slows all forms down. Then the quantiles of all layers alone, and on
CUDA whether a step waits for a value. On the CPU it is processor time, meant for one thread (OMP_NUM_THREADS=1).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from app.models.equilibrium import EquilibriumLM
from app.ops.histogram import histogram_quantiles

IMPROVED: dict[str, Any] = dict(
    statistics="lagged",
    standardize=True,
    soft="ordinal",
    shared_router=False,
    quantile="histogram",
    warmup_steps=0,
)
FORMS: dict[str, dict[str, Any]] = {
    "original": {"warmup_steps": 0},
    "improved, every token computed": IMPROVED,
    **{
        f"budget {ratio}, {order}": IMPROVED
        | {"enforce_budget": True, "total_budget_ratio": ratio, "budget_order": order}
        for order in ("deviation", "causal")
        for ratio in (1.6, 1.3, 1.0)
    },
}


def step_of(options: dict[str, Any], arguments: argparse.Namespace) -> Callable[[], None]:
    """A training step without the optimizer."""
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    network: Any = EquilibriumLM(
        arguments.vocab_size,
        arguments.block_size,
        arguments.d_model,
        arguments.n_heads,
        arguments.n_layers,
        2 * arguments.d_model,
        dropout=0.0,
        reprocess_context=arguments.reprocess_context,
        **options,
    ).to(device)
    if arguments.compile:
        for block in network.blocks:
            block.compile()
    idx = torch.randint(0, arguments.vocab_size, (arguments.rows, arguments.block_size), device=device)

    def step() -> None:
        network.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            output = network(idx, idx)
        (output.loss + output.aux_loss).backward()
        network.after_optimizer_step(1)
        for total in network.step_sums():
            total.zero_()

    return step


def milliseconds(work: Callable[[], None], device: str, repeats: int) -> float:
    """Of one call; on the CPU those in which this process had a core, whoever else wanted one."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    for _ in range(repeats):
        work()
    if device == "cuda":
        torch.cuda.synchronize()
    return (clock() - start) / repeats * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    for name, default in {
        "d_model": 256, "n_heads": 4, "n_layers": 6, "block_size": 256, "rows": 4, "vocab_size": 96,
        "windows": 5, "repeats": 1,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--reprocess_context", action="store_true")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    steps = {name: step_of(options, arguments) for name, options in FORMS.items()}
    for step in steps.values():
        for _ in range(3):  # thresholds have begun to move, and everything is laid out
            step()
    windows: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.windows):
        for name, step in steps.items():
            windows[name].append(milliseconds(step, arguments.device, arguments.repeats))
    for name, found in windows.items():
        print(f"{name:<32} {statistics.median(found):9.2f} ms  ({min(found):.2f} to {max(found):.2f})")
    counts = torch.randint(0, 9, (arguments.n_layers, 4096), device=arguments.device)
    levels = torch.tensor([0.55, 0.8, 0.95], device=arguments.device)

    def quantiles_alone() -> None:
        histogram_quantiles(levels, counts, -8, 8)

    quantiles = [milliseconds(quantiles_alone, arguments.device, 50) for _ in range(arguments.windows)]
    print(f"{'quantiles of all layers':<32} {1e3 * statistics.median(quantiles):9.2f} us")
    if arguments.device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        for step in steps.values():
            step()
        torch.cuda.set_sync_debug_mode("default")
        print("no step waits for a value")


if __name__ == "__main__":
    main()
