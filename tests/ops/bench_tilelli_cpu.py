"""Time a training step of Tilelli on the CPU: the product against the original form, in one run.

``python -m tests.ops.bench_tilelli_cpu`` (``--threads 2 --rounds 5``).
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch

from app.models.tilelli import TilelliLM, compute_with
from app.ops import FAST, NAIVE, Operations

Case = tuple[str, int]  # form and number of banks
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


def interleaved(
    steps: Mapping[Case, Callable[[], None]], rounds: int, clock: Callable[[], float]
) -> dict[Case, list[float]]:
    """Seconds of each step, taken in turn, so that whatever else the machine does falls on all of them alike."""
    for step in steps.values():
        step()  # warm-up: memory, caches, optimizer state
    times: dict[Case, list[float]] = {case: [] for case in steps}
    for _ in range(rounds):
        for case, step in steps.items():
            start = clock()
            step()
            times[case].append(clock() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each form and number of banks")
    parser.add_argument("--fast_only", action="store_true", help="leave the original form out")
    parser.add_argument("--pathways", type=int, default=5, choices=[3, 5])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    processor = platform.processor() or platform.machine()
    print(f"{processor}, {arguments.threads} threads, torch {torch.__version__}")
    print(f"{LAYERS} layers × {WIDTH}, P={arguments.pathways}, {WINDOWS} × {LENGTH} tokens, fp32, AdamW step")
    forms = {"fast": FAST} if arguments.fast_only else {"fast": FAST, "naive": NAIVE}
    times = interleaved(
        {
            (form, n_banks): training_step(operations, n_banks, arguments.pathways)
            for form, operations in forms.items()
            for n_banks in (1, 4)
        },
        arguments.rounds,
        # Several threads wait for each other in processor time; a single one is not charged for other programs.
        time.process_time if arguments.threads == 1 else time.perf_counter,
    )
    print(f"{'form':<8}{'banks':>6}{'median ms':>12}{'min':>9}{'max':>9}{'tok/s':>10}")
    for (form, n_banks), seconds in times.items():
        median = statistics.median(seconds)
        print(
            f"{form:<8}{n_banks:>6}{median * 1e3:>12.1f}{min(seconds) * 1e3:>9.1f}{max(seconds) * 1e3:>9.1f}"
            f"{WINDOWS * LENGTH / median:>10.0f}"
        )
    print(f"fast N=4 over N=1: {ratio(times['fast', 4], times['fast', 1])}")
    if not arguments.fast_only:
        for n_banks in (1, 4):
            print(f"naive over fast, N={n_banks}: {ratio(times['naive', n_banks], times['fast', n_banks])}")


def ratio(one: list[float], other: list[float]) -> str:
    """Median over the rounds of the ratio within each, and the ratio of the shortest times."""
    each = statistics.median(a / b for a, b in zip(one, other, strict=True))
    return f"{each:.2f}× (of the shortest {min(one) / min(other):.2f}×)"


if __name__ == "__main__":
    main()
