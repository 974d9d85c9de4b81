"""Time a training step of Tilelli on the CPU: the product against the original form, in one run.

``python -m tests.ops.bench_tilelli_cpu`` (``--threads 2 --steps 5``).
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch

from app.models.tilelli import TilelliLM, compute_with
from app.ops import FAST, NAIVE, Operations

VOCABULARY, WIDTH, LAYERS, WINDOWS, LENGTH = 96, 128, 4, 32, 256


def training_step(operations: Operations, n_banks: int, pathways: int) -> Callable[[], None]:
    torch.manual_seed(0)
    network = compute_with(
        TilelliLM(VOCABULARY, WIDTH, LAYERS, n_banks=n_banks, pathways=pathways), operations
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    tokens = torch.randint(0, VOCABULARY, (WINDOWS, LENGTH + 1))

    def step() -> None:
        output = network(tokens[:, :-1], tokens[:, 1:])
        assert output.loss is not None
        (output.loss + output.aux_loss).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(step: Callable[[], None], repetitions: int) -> list[float]:
    step()  # warm-up: memory, caches, optimizer state
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=7, help="timed steps of the fast form")
    parser.add_argument(
        "--naive_steps", type=int, default=3, help="timed steps of the original form; 0 skips it"
    )
    parser.add_argument("--pathways", type=int, default=5, choices=[3, 5])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    processor = platform.processor() or platform.machine()
    print(f"{processor}, {arguments.threads} threads, torch {torch.__version__}")
    print(f"{LAYERS} layers × {WIDTH}, P={arguments.pathways}, {WINDOWS} × {LENGTH} tokens, fp32, AdamW step")
    medians: dict[tuple[str, int], float] = {}
    print(f"{'form':<8}{'banks':>6}{'median ms':>12}{'min':>9}{'max':>9}{'tok/s':>10}")
    for form, operations, repetitions in (
        ("fast", FAST, arguments.steps),
        ("naive", NAIVE, arguments.naive_steps),
    ):
        for n_banks in (1, 4):
            if repetitions == 0:
                continue
            times = seconds(training_step(operations, n_banks, arguments.pathways), repetitions)
            median = medians[form, n_banks] = statistics.median(times)
            print(
                f"{form:<8}{n_banks:>6}{median * 1e3:>12.1f}{min(times) * 1e3:>9.1f}{max(times) * 1e3:>9.1f}"
                f"{WINDOWS * LENGTH / median:>10.0f}"
            )
    print(f"fast N=4 over N=1: {medians['fast', 4] / medians['fast', 1]:.2f}×")
    if arguments.naive_steps:
        for n_banks in (1, 4):
            print(
                f"naive over fast, N={n_banks}: {medians['naive', n_banks] / medians['fast', n_banks]:.1f}×"
            )


if __name__ == "__main__":
    main()
