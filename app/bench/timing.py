"""Times of calls: in turn, in windows, on inputs that are not in the cache any more."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

#: seconds of calls that a window holds at least
WINDOW_SECONDS = {"cuda": 0.02, "cpu": 0.05}
MIN_WINDOWS = 5
WARM_UP_CALLS = 3
MAX_CALLS = 2000
#: where nothing says how large the processor's cache is
USUAL_CACHE = 32 * 2**20

#: makes the call with this number
Call = Callable[[int], object]


class Timing(NamedTuple):
    """Seconds of one call, of each window."""

    windows: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the windows."""
        return statistics.median(self.windows)

    @property
    def spread(self) -> float:
        """From the fastest to the slowest window, over the median."""
        return (max(self.windows) - min(self.windows)) / self.median

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"median_seconds": self.median, "spread": self.spread, "windows_seconds": list(self.windows)}


class Marks:
    """Points in time between calls: CUDA events on a GPU, which wait for nothing, and the host's clock elsewhere."""

    def __init__(self, device: torch.device):
        self._is_cuda = device.type == "cuda"
        self._marks: list[Any] = []

    def set(self) -> None:
        """Marks what is reached once all that was asked for so far is done."""
        if self._is_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """From each mark to the next; waits for the last one."""
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        if not self._is_cuda:
            return [after - before for before, after in pairs]
        self._marks[-1].synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in pairs]


def measure(
    calls: Mapping[str, Call],
    device: torch.device,
    n_windows: int = 7,
    window_seconds: float | None = None,
) -> dict[str, Timing]:
    """Times several calls.

    Windows are taken in turn, so that whatever else the machine does falls on all calls alike. Each call is warmed up
    first; how many make up a window follows from its own time.

    Args:
        calls: by name; each gets the numbers 0, 1, 2, … one after the other, by which it chooses its inputs.
        device: where they compute.
        n_windows: at least :data:`MIN_WINDOWS` for a figure that is told to anybody.
        window_seconds: calls that last this long make up a window.
    """
    least = WINDOW_SECONDS[device.type] if window_seconds is None else window_seconds
    numbers = dict.fromkeys(calls, 0)

    def window(name: str, n_calls: int) -> float:
        marks, call, first = Marks(device), calls[name], numbers[name]
        marks.set()
        for number in range(first, first + n_calls):
            call(number)
        marks.set()
        numbers[name] += n_calls
        return marks.seconds()[0] / n_calls

    n_calls = {}
    for name in calls:
        window(name, WARM_UP_CALLS)
        n_calls[name] = min(MAX_CALLS, max(1, math.ceil(least / window(name, 1))))
    windows: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(n_windows):
        for name, found in windows.items():
            found.append(window(name, n_calls[name]))
    return {name: Timing(tuple(found)) for name, found in windows.items()}


def cache_bytes(device: torch.device) -> int:
    """The largest cache that all of a device shares: L2 of a GPU, the last level of a processor."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [_size(path) for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max(sizes, default=0) or USUAL_CACHE


def _size(path: Path) -> int:
    try:
        text = path.read_text(encoding="utf-8").strip()
        return int(text.rstrip("KMG")) * {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
    except (OSError, ValueError):
        return 0


def n_copies(n_bytes: int, cache: int) -> int:
    """How many sets of inputs, used in turn, are twice as large as the cache together; two at least."""
    return max(2, math.ceil(2 * cache / max(1, n_bytes)))
