"""What counting alone predicts: an interpolated n-gram, the yardstick of every loss.

``p_k(w | h) = (c(h w) + T(h) p_{k-1}(w | h')) / (c(h) + T(h))`` (Witten & Bell 1991): c counts what followed the last
k tokens h, T says how many different tokens did, h' is h without its oldest token, and p_{-1} is uniform over V tokens.
"""

from dataclasses import dataclass

import numpy as np

from datamodules.windows import mix

MAX_ORDER = 6
#: tokens up to which every order is counted: 10 s and 1 GB on one core; of more, single tokens alone
MAX_TOKENS = 16 << 20
#: of the training split, at its end: on these the order is chosen, after which they are counted too
HELD_OUT_SHARE, MAX_HELD_OUT = 0.05, 1 << 18
_PIECE = 1 << 22


@dataclass
class _Level:
    """Everything that followed contexts of one length.

    Attributes:
        keys: ``(m,)`` uint64, ascending: the context's number in the upper bits, what followed in the lower ones.
        counts: ``(m,)`` int64.
        places: ``(m,)`` int64 position of one occurrence.
        contexts: ``(h,)`` uint64, ascending.
        starts: ``(h + 1,)`` int64: the keys of each context.
        totals: ``(h,)`` int64: c(h).
    """

    keys: np.ndarray
    counts: np.ndarray
    places: np.ndarray
    contexts: np.ndarray
    starts: np.ndarray
    totals: np.ndarray


class CountModel:
    """Counts of one token sequence, for all orders up to the highest.

    A context's number is a hash that leaves 64 − log2(V) bits: two of ten million contexts share one with a probability
    of 1e-3 at V = 256 and 0.2 at V = 65,536, which moves no digit of a loss.

    Args:
        tokens: ``(n,)`` unsigned ids, n > order.
        vocab_size: V.
        order: tokens of the longest context, >= 0.
    """

    def __init__(self, tokens: np.ndarray, vocab_size: int, order: int):
        self.vocab_size = vocab_size
        self.order = order
        self._bits = np.uint64(max(1, (vocab_size - 1).bit_length()))
        self._levels = self._counted(tokens)

    # -- counting ---------------------------------------------------------------------------------------

    def _counted(self, tokens: np.ndarray) -> list[_Level]:
        """From the longest context down: each shorter one is counted on the different longer ones alone."""
        order = self.order
        pieces = []
        for start in range(order, len(tokens), _PIECE):
            places = np.arange(start, min(start + _PIECE, len(tokens)))
            pieces.append(self._different(tokens, order, places, np.ones(len(places), dtype=np.int64)))
        places, counts = (np.concatenate(parts) for parts in zip(*(p[1:] for p in pieces), strict=True))
        levels = []
        for length in range(order, -1, -1):
            keys, places, counts = self._different(tokens, length, places, counts)
            levels.append(self._level(keys, counts, places))
        return levels[::-1]

    def _different(
        self, tokens: np.ndarray, length: int, places: np.ndarray, counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keys, one place and summed counts of the different pairs of context and next token."""
        keys = self._keys(context_numbers(tokens, places, length), tokens[places])
        by_key = np.argsort(keys, kind="stable")
        keys = keys[by_key]
        first = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
        return keys[first], places[by_key[first]], np.add.reduceat(counts[by_key], first)

    def _keys(self, contexts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return (contexts >> self._bits << self._bits) | tokens.astype(np.uint64)

    def _level(self, keys: np.ndarray, counts: np.ndarray, places: np.ndarray) -> _Level:
        contexts = keys >> self._bits
        first = np.flatnonzero(np.r_[True, contexts[1:] != contexts[:-1]])
        totals = np.add.reduceat(counts, first)
        return _Level(keys, counts, places, contexts[first], np.r_[first, len(keys)], totals)

    # -- reading ----------------------------------------------------------------------------------------

    def losses(self, tokens: np.ndarray) -> np.ndarray:
        """Mean nats per token of ``tokens[1:]`` by each order, ``(order + 1,)``; contexts lie within ``tokens``."""
        sums = np.zeros(self.order + 1)
        for start in range(1, len(tokens), _PIECE):
            places = np.arange(start, min(start + _PIECE, len(tokens)))
            probabilities = np.full(len(places), 1.0 / self.vocab_size)
            for length, level in enumerate(self._levels):
                known = np.flatnonzero(places >= length)
                at = places[known]
                contexts = context_numbers(tokens, at, length)
                found, is_there = _find(level.contexts, contexts >> self._bits)
                entry, has_followed = _find(level.keys, self._keys(contexts, tokens[at]))
                counts = np.where(has_followed, level.counts[entry], 0)
                n_different = level.starts[found + 1] - level.starts[found]
                mixed = (counts + n_different * probabilities[known]) / (level.totals[found] + n_different)
                probabilities[known] = np.where(is_there, mixed, probabilities[known])
                sums[length] -= np.log(probabilities).sum()
        return sums / max(len(tokens) - 1, 1)

    def next_probabilities(self, context: np.ndarray, order: int) -> np.ndarray:
        """``(V,)`` probabilities of what follows ``context``, by this order or as many tokens as there are."""
        probabilities = np.full(self.vocab_size, 1.0 / self.vocab_size)
        mask = (np.uint64(1) << self._bits) - np.uint64(1)
        for length, level in enumerate(self._levels[: order + 1]):
            if length > len(context):
                break
            number = context_numbers(context, np.array([len(context)]), length) >> self._bits
            (found,), (is_there,) = _find(level.contexts, number)
            if not is_there:
                break  # nor has any longer one been seen
            entries = slice(level.starts[found], level.starts[found + 1])
            n_different = entries.stop - entries.start
            probabilities *= n_different
            probabilities[(level.keys[entries] & mask).astype(np.int64)] += level.counts[entries]
            probabilities /= level.totals[found] + n_different
        return probabilities

    def sample(
        self, prompt: np.ndarray, n_tokens: int, order: int, temperature: float, seed: int
    ) -> np.ndarray:
        """The prompt and so many tokens drawn after it."""
        draw = np.random.default_rng(seed)
        text = list(prompt)
        for _ in range(n_tokens):
            context = np.asarray(text[-order:] if order else [], dtype=prompt.dtype)
            weights = self.next_probabilities(context, order) ** (1 / temperature)
            sums = np.cumsum(weights)
            text.append(int(np.searchsorted(sums, draw.random() * sums[-1], side="right")))
        return np.asarray(text, dtype=prompt.dtype)


def context_numbers(tokens: np.ndarray, places: np.ndarray, length: int) -> np.ndarray:
    """``(n,)`` uint64 hashes of the ``length`` tokens before each place, the newest first."""
    numbers = np.zeros(len(places), dtype=np.uint64)
    for back in range(1, length + 1):
        numbers = mix(numbers ^ tokens[places - back].astype(np.uint64))
    return numbers


def _find(ascending: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each value stands, and whether it does; a place that exists in any case."""
    at = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    return at, ascending[at] == wanted


def order_for(n_tokens: int) -> int:
    """The highest order that is counted of so many tokens."""
    return 0 if n_tokens > MAX_TOKENS else min(MAX_ORDER, max(n_tokens - 2, 0))


def chosen(train: np.ndarray, vocab_size: int) -> tuple[CountModel, int]:
    """A model of the whole training split, and the order that predicts its held-out end best."""
    n_held_out = min(int(HELD_OUT_SHARE * len(train)), MAX_HELD_OUT)
    highest = order_for(len(train) - n_held_out)
    if n_held_out < 2 or highest == 0:
        return CountModel(train, vocab_size, 0), 0
    losses = CountModel(train[:-n_held_out], vocab_size, highest).losses(train[-n_held_out:])
    best = int(np.argmin(losses))
    return CountModel(train, vocab_size, best), best
