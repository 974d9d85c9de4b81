"""Which tokens a step trains on: a pure function of the seed and the window's running number.

Training windows are numbered through the whole run, and how many have been consumed is its position: a step
takes the next ``batch_size`` of them. Every epoch cuts the text into disjoint tiles from a random phase and
visits them in a random order; two plainer orders are there to be compared with. Nothing is
remembered between calls, so a resumed run, another batch size, another number of ranks or loader workers, and another
accumulation see the same sequence.

Window ``start`` covers the tokens ``[start, start + block_size]``, both ends included: inputs are the first
``block_size`` of them, targets the last.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from app.run.errors import ConfigurationError

_N_ROUNDS = 10  # even; fewer leave a measurable pattern in the order of small epochs
# The rounds of the permutation use the streams 0, 1, …; the phase has one of its own.
_PHASE_STREAM = np.array([1 << 32], dtype=np.uint64)
_START_STREAM = np.array([2 << 32], dtype=np.uint64)

#: ``reshuffled``: new tiles in a new order in every epoch; ``fixed``: those of the first epoch in all of them;
#: ``random``: each window begins anywhere, whatever was trained on before
WindowOrder = Literal["reshuffled", "fixed", "random"]


@dataclass(frozen=True)
class TrainWindows:
    """The endless sequence of training windows over ``n_tokens`` tokens.

    The number of tiles is the same in every epoch, ``max(1, n_tokens // block_size - 1)``, which leaves
    ``slack`` tokens over. The phase is uniform on ``[0, slack]``, so an epoch leaves out ``phase`` tokens at
    the head and ``slack - phase`` at the tail, together fewer than two blocks, and trains on every target in
    between once. Over the epochs every position is covered: phase 0 reaches the first token and
    phase ``slack`` the last one. (A phase below ``block_size`` would never reach the last
    ``n_tokens % block_size`` tokens.)

    Args:
        n_tokens: length of the training split, at least ``block_size + 1``.
        block_size: targets per window, at least 1.
        seed: non-negative, below 2^63.
        repeat_windows: if positive, only the first so many windows exist, repeated in the same order
            (to overfit on purpose).
        order: of the windows; what is said above is ``reshuffled``.
    """

    n_tokens: int
    block_size: int
    seed: int
    repeat_windows: int = 0
    order: WindowOrder = "reshuffled"

    def __post_init__(self) -> None:
        assert self.n_tokens > self.block_size >= 1, "the caller checks that one window fits"

    @property
    def n_tiles(self) -> int:
        """Windows per epoch."""
        return max(1, self.n_tokens // self.block_size - 1)

    @property
    def slack(self) -> int:
        """Largest phase."""
        return self.n_tokens - 1 - self.n_tiles * self.block_size

    def starts(self, index: np.ndarray) -> np.ndarray:
        """First tokens of windows.

        Args:
            index: ``(n,)`` running numbers, non-negative, in any order and from any epochs.

        Returns:
            ``(n,)`` int64 in ``[0, n_tokens - 1 - block_size]``.
        """
        index = np.asarray(index, dtype=np.uint64).reshape(-1)
        if self.repeat_windows:
            index = index % np.uint64(self.repeat_windows)
        if self.order == "random":
            bits = _random_bits(self.seed, index, _START_STREAM)
            return (bits % np.uint64(self.n_tokens - self.block_size)).astype(np.int64)
        epoch, place = np.divmod(index, np.uint64(self.n_tiles))
        if self.order == "fixed":
            epoch = np.zeros_like(epoch)
        phase = _random_bits(self.seed, epoch, _PHASE_STREAM) % np.uint64(self.slack + 1)
        tile = permuted(place, self.n_tiles, self.seed, epoch)
        return (phase + tile * np.uint64(self.block_size)).astype(np.int64)


def permuted(place: np.ndarray, size: int, seed: int, epoch: np.ndarray) -> np.ndarray:
    """Element at each place of a permutation of ``range(size)`` chosen by seed and epoch.

    Elements are written as pairs ``(left, right)`` on a grid of about ``sqrt(size)`` times ``sqrt(size)``
    cells, and every round shifts one of the two by a keyed hash of the other: a generalised Feistel network,
    a permutation of the grid whatever the hash. Elements that land on one of the few cells beyond ``size``
    go round again until they do not, which makes it a permutation of ``range(size)`` (Black and Rogaway,
    "Ciphers with Arbitrary Finite Domains", 2002). Over seeds and epochs every order is about equally
    likely: within a few percent where there are only a handful of elements, closer for more.

    Args:
        place: ``(n,)`` uint64 in ``[0, size)``.
        size: at least 1.
        seed: non-negative, below 2^63.
        epoch: ``(n,)`` uint64.

    Returns:
        ``(n,)`` uint64 in ``[0, size)``.
    """
    width = np.uint64(math.isqrt(size - 1) + 1)  # the square root, rounded up
    height = np.uint64(-(-size // int(width)))
    # The keys do not depend on the element: computed once, used at every turn of the walk.
    keys = _random_bits(seed, epoch, np.arange(_N_ROUNDS, dtype=np.uint64)[:, None])
    element = place.copy()
    walking = np.arange(len(place))
    while len(walking):
        left, right = np.divmod(element[walking], width)
        for number in range(0, _N_ROUNDS, 2):
            left = (left + mix(right ^ keys[number, walking]) % height) % height
            right = (right + mix(left ^ keys[number + 1, walking]) % width) % width
        element[walking] = left * width + right
        walking = walking[element[walking] >= size]
    return element


def shard(batch_size: int, world_size: int, accumulation: int) -> int:
    """Windows in the micro-batch of one rank.

    Raises:
        ConfigurationError: the numbers do not divide.
    """
    n_shares = world_size * accumulation
    if batch_size % n_shares:
        below = batch_size // n_shares * n_shares
        nearest = f"{below} or {below + n_shares}" if below else str(n_shares)
        raise ConfigurationError(
            f"batch_size: {batch_size} windows per optimizer step cannot be divided evenly by {world_size} "
            f"rank(s) × {accumulation} accumulated micro-batch(es) = {n_shares}. "
            f"Set batch_size to {nearest}, or change the devices or trainer.accumulate_grad_batches."
        )
    return batch_size // n_shares


def micro_batch_index(
    window: int, micro: int, rank: int, *, batch_size: int, world_size: int, accumulation: int
) -> np.ndarray:
    """Running numbers of the windows of one micro-batch.

    Each rank owns a contiguous slice of the step's ``batch_size`` windows and each micro-batch a contiguous
    slice of that.

    Args:
        window: windows consumed by the steps before this one.
        micro: number of the micro-batch within the step, in ``[0, accumulation)``.
        rank: in ``[0, world_size)``.
        batch_size: windows per optimizer step over all ranks.
        world_size: number of ranks.
        accumulation: micro-batches per optimizer step.

    Returns:
        ``(batch_size / (world_size * accumulation),)`` int64.
    """
    size = shard(batch_size, world_size, accumulation)
    first = window + (rank * accumulation + micro) * size
    return np.arange(first, first + size, dtype=np.int64)


def _random_bits(seed: int, epoch: np.ndarray, stream: np.ndarray) -> np.ndarray:
    """64 well-mixed bits for each epoch and stream (broadcast), independent between seeds; uint64."""
    return mix(mix(mix(np.array([seed], dtype=np.uint64)) ^ epoch) ^ stream)


def mix(bits: np.ndarray) -> np.ndarray:
    """SplitMix64's increment and finaliser (Steele, Lea, Flood, 2014) on ``(n,)`` uint64, wrapping around."""
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
