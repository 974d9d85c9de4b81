"""Ratios of times that alternate: what else the machine does falls on both sides alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def seconds(
    tasks: Mapping[str, Callable[[], object]], n_rounds: int, n_first: int = 3
) -> dict[str, list[float]]:
    """Processor seconds of each task in each round, the first rounds left out; every round begins with another one."""
    names = list(tasks)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(n_first + n_rounds):
        at = turn % len(names)
        for name in names[at:] + names[:at]:
            began = time.process_time()
            tasks[name]()
            if turn >= n_first:
                times[name].append(time.process_time() - began)
    return times


def ratio(above: Sequence[float], below: Sequence[float]) -> str:
    """The median of the ratios of pairs, with the 95 % interval that their order alone gives."""
    ratios = sorted(a / b for a, b in zip(above, below, strict=True))
    n = len(ratios)
    half = 0.98 * n**0.5
    low, high = ratios[max(0, int(n / 2 - half))], ratios[min(n - 1, int(n / 2 + half))]
    return f"{statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}]"
