"""Perplexities, their intervals, what a form of attention recovers, and the verdict."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

N_DRAWS = 2000
COVERAGE = 95.0  # per cent
#: a top key alone that costs less, relatively, leaves nothing to recover
FREE = 1e-3
#: per cent of the loss that counts as recovered
ENOUGH = 90.0


def perplexity(losses: np.ndarray) -> float:
    """``exp`` of the mean loss; blocks are of equal length, so this is the mean over all targets.

    Args:
        losses: ``(n_blocks,)`` nats per token.
    """
    return float(np.exp(losses.mean()))


def bootstrap_means(losses: np.ndarray, seed: int, n_draws: int = N_DRAWS) -> np.ndarray:
    """Means over blocks drawn with replacement; the same blocks for every row, so that rows compare.

    Whole blocks are drawn because tokens of one block depend on each other.

    Args:
        losses: ``(n_rows, n_blocks)``.
        seed: of the draws.
        n_draws: how many.

    Returns:
        ``(n_draws, n_rows)``.
    """
    n_blocks = losses.shape[1]
    drawn = np.random.default_rng(seed).integers(0, n_blocks, (n_draws, n_blocks))
    counts = np.stack([np.bincount(row, minlength=n_blocks) for row in drawn])
    return counts @ losses.T / n_blocks


def interval(draws: np.ndarray) -> list[float]:
    """Lower and upper end of the middle 95 % of bootstrap draws."""
    tail = (100.0 - COVERAGE) / 2
    low, high = np.percentile(draws, [tail, 100.0 - tail])
    return [float(low), float(high)]


def recovered_interval(value: np.ndarray, top1: np.ndarray, baseline: np.ndarray) -> list[float] | None:
    """The middle 95 % of what bootstrap draws recover.

    In a draw in which the top key costs nothing that share is not defined, and could lie anywhere.

    Returns:
        Over the draws where it is defined; None where the others are 5 % and more of all.
    """
    is_free = costs_nothing(baseline, top1)
    if 100.0 * is_free.mean() >= 100.0 - COVERAGE:
        return None
    return interval(recovered(value, top1, baseline)[~is_free])


def may_cost_nothing(baseline: np.ndarray, top1: np.ndarray) -> bool:
    """Whether the interval of what the top key costs holds 0: other text of the kind might show no cost.

    Args:
        baseline: ``(n_draws,)`` perplexities of the network as it is.
        top1: ``(n_draws,)`` those of its top key alone.
    """
    low, high = interval(top1 - baseline)
    return low <= 0 <= high


def costs_nothing(baseline: np.ndarray | float, top1: np.ndarray | float) -> np.ndarray:
    """Whether the top key alone raises the perplexity by less than 0.1 %."""
    return np.asarray(np.asarray(top1) - baseline < FREE * np.asarray(baseline))


def recovered(
    value: np.ndarray | float, top1: np.ndarray | float, baseline: np.ndarray | float
) -> np.ndarray:
    """``100 · (PPL_top1 − PPL) / (PPL_top1 − PPL_base)``, per cent; NaN where the top key costs nothing."""
    loss = np.asarray(top1, dtype=np.float64) - baseline
    return np.where(loss > 0, 100.0 * (top1 - value) / np.where(loss > 0, loss, 1.0), np.nan)


def verdict(modes: Sequence[Mapping[str, Any]], d_head: int, is_undetermined: bool) -> dict[str, Any]:
    """The smallest rank that recovers 90 %, beside the smallest k that does.

    The whole head width brings everything back whatever the residual is like; it is no low rank.

    Args:
        modes: entries with ``mode``, ``rank``, ``top_k``, ``recovered`` and ``recovered_interval``.
        d_head: head width.
        is_undetermined: whether nobody can say that the top key alone costs anything.

    Returns:
        ``kind`` (``full``: a rank below the head width recovers 90 %; ``partial``; ``undetermined``),
        ``rank``, ``top_k`` (of the smallest that do; else None), ``best_rank`` below the head width and its
        ``best_recovered`` (None where no such rank was measured), and ``text``, the whole in a sentence or two.
    """
    lowrank = [entry for entry in modes if entry["mode"] == "lowrank" and entry["rank"] < d_head]
    has_whole = any(entry["mode"] == "lowrank" and entry["rank"] == d_head for entry in modes)
    topk = [entry for entry in modes if entry["mode"] == "topk"]
    if is_undetermined:
        return {
            "kind": "undetermined",
            "rank": None,
            "top_k": None,
            "best_rank": None,
            "best_recovered": None,
            "text": "Undetermined: what the top key alone costs cannot be told from nothing on this text; more blocks "
            "may tell it.",
        }

    def smallest(entries: Sequence[Mapping[str, Any]], key: str) -> Mapping[str, Any] | None:
        enough = [entry for entry in entries if entry["recovered"] >= ENOUGH]
        return min(enough, key=lambda entry: entry[key]) if enough else None

    rank, k = smallest(lowrank, "rank"), smallest(topk, "top_k")
    best = max(lowrank, key=lambda entry: entry["recovered"], default=None)
    if rank is not None:
        text = f"Rank {rank['rank']} of {d_head} recovers {_share(rank)} of what the top key alone loses"
    else:
        what = "only the full width" if has_whole else "no rank"
        text = f"Partial: {what} recovers {ENOUGH:.0f} % of what the top key alone loses"
        if best is not None:
            below = "below it the best" if has_whole else "the best"
            text += f"; {below}, {best['rank']} of {d_head}, recovers {_share(best)}"
    if k is not None:
        text += f"; softmax over the best {k['top_k']} keys recovers {k['recovered']:.0f} %."
    elif topk:
        most = max(topk, key=lambda entry: entry["recovered"])
        text += (
            f"; no number of keys up to {max(entry['top_k'] for entry in topk)} does "
            f"(the best {most['top_k']} recover {most['recovered']:.0f} %)."
        )
    else:
        text += "."
    return {
        "kind": "full" if rank is not None else "partial",
        "rank": None if rank is None else rank["rank"],
        "top_k": None if k is None else k["top_k"],
        "best_rank": None if best is None else best["rank"],
        "best_recovered": None if best is None else best["recovered"],
        "text": text,
    }


def _share(entry: Mapping[str, Any]) -> str:
    ends = entry["recovered_interval"]
    known = "95 % interval n/a" if ends is None else f"95 % interval {ends[0]:.0f} to {ends[1]:.0f} %"
    return f"{entry['recovered']:.0f} % ({known})"
