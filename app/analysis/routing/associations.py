"""What choices go with: other routers' choices, tokens, and those of earlier checkpoints."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def load(chosen: np.ndarray, n: int) -> list[float]:
    """Share of the tokens that take each of ``n`` choices."""
    return (np.bincount(chosen.ravel(), minlength=n) / chosen.size).tolist()


def entropy(chosen: np.ndarray) -> float:
    """Entropy of choices, in nats."""
    share = np.bincount(chosen.ravel()) / chosen.size
    share = share[share > 0]
    return float(-(share * np.log(share)).sum())


def joint(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``(A, B)`` share of the tokens with each pair of numbers."""
    n_a, n_b = int(a.max()) + 1, int(b.max()) + 1
    counts = np.bincount(a.ravel() * n_b + b.ravel(), minlength=n_a * n_b)
    return counts.reshape(n_a, n_b) / a.size


def mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Of two numbers of each token, in nats, at least 0."""
    both = joint(a, b)
    apart = both.sum(1, keepdims=True) * both.sum(0, keepdims=True)
    there = both > 0
    return max(0.0, float((both[there] * np.log(both[there] / apart[there])).sum()))


def explained(chosen: np.ndarray, by: np.ndarray, seed: int) -> dict[str, float] | None:
    """How much of the choice's entropy something else tells: from 0, nothing, to 1, all of it.

    Args:
        chosen: ``(m,)`` choices.
        by: ``(m,)`` what they may go with, not negative.
        seed: of the shuffle.

    Returns:
        The ``share``, and what it is ``by_chance``, where choices are shuffled; None where there is but one choice.
    """
    total = entropy(chosen)
    if total <= 0:
        return None
    shuffled = np.random.default_rng(seed).permutation(chosen)
    return {
        "share": min(1.0, mutual_information(chosen, by) / total),
        "by_chance": min(1.0, mutual_information(shuffled, by) / total),
    }


def coactivation(chosen: Mapping[str, np.ndarray]) -> list[list[float | None]]:
    """Of all pairs of routers, mutual information over the geometric mean of both entropies.

    0: they decide independently, 1: one tells the other. None where one of the two always decides alike.
    """
    entropies = [entropy(each) for each in chosen.values()]
    values = list(chosen.values())
    return [
        [
            None if h_a <= 0 or h_b <= 0 else min(1.0, mutual_information(a, b) / math.sqrt(h_a * h_b))
            for b, h_b in zip(values, entropies, strict=True)
        ]
        for a, h_a in zip(values, entropies, strict=True)
    ]


def lifts(chosen: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> list[dict[str, Any]]:
    """Of every pair of routers, how much oftener each pair of choices comes together than if they were independent.

    Args:
        chosen: by router.
        sizes: choices of each.

    Returns:
        ``a``, ``b`` and ``lift``, rows for the choices of a, columns for those of b; None where one is never taken.
    """
    names, found = list(chosen), []
    for number, a in enumerate(names):
        for b in names[number + 1 :]:
            both = np.zeros((sizes[a], sizes[b]))
            part = joint(chosen[a], chosen[b])
            both[: part.shape[0], : part.shape[1]] = part
            apart = both.sum(1, keepdims=True) * both.sum(0, keepdims=True)
            rows = np.where(apart > 0, both / np.where(apart > 0, apart, 1.0), np.nan)
            lift = [[None if math.isnan(x) else round(x, 4) for x in row] for row in rows.tolist()]
            found.append({"a": a, "b": b, "lift": lift})
    return found


def agreement(chosen: np.ndarray, final: np.ndarray) -> dict[str, float]:
    """Saturation: the ``share`` of tokens that choose as at the end, and what it would be ``by_chance``."""
    n = int(max(chosen.max(), final.max())) + 1
    shares = np.bincount(chosen.ravel(), minlength=n) * np.bincount(final.ravel(), minlength=n)
    return {"share": float((chosen == final).mean()), "by_chance": float(shares.sum()) / chosen.size**2}
