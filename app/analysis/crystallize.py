"""What a trained network loses when its attention is reduced to the top key, and what brings it back.

Every form of attention is put into the chosen layers and judged by the perplexity of the same blocks of text;
:func:`summarise` turns the losses per block into the figures that the table, the picture and the verdict show.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.analysis import crystallize_statistics as statistics
from app.models.crystal import CrystalPatch, Mode, ResidualBasis
from app.models.crystal.patch import evaluating

TOP_KS = (1, 2, 4, 8)
#: `full` computes the same function in another order; more than this apart, it does not
FULL_TOLERANCE = 1e-4
#: ranks at which the spectrum is tabulated
SPECTRUM_RANKS = (1, 2, 4, 8, 16)


class FullModeError(Exception):
    """Attention written as top key plus residual did not give the network's own perplexity."""


@dataclass(frozen=True)
class Stage:
    """One form of attention to measure.

    Attributes:
        name: unique in an experiment.
        mode: None for the network as it is.
        rank: of ``lowrank`` and ``random``.
        top_k: of ``topk``.
    """

    name: str
    mode: Mode | None = None
    rank: int | None = None
    top_k: int | None = None

    @property
    def label(self) -> str:
        texts = {
            "top1": "top key alone",
            "topk": f"softmax over the best {self.top_k} keys" if self.top_k != 1 else "softmax over one key",
            "full": "top key + whole residual",
            "lowrank": f"top key + rank {self.rank}",
            "random": f"top key + random rank {self.rank}",
        }
        return texts[self.mode] if self.mode else "the network as it is"


def stages(ranks: Sequence[int], top_ks: Sequence[int] = TOP_KS) -> list[Stage]:
    """All forms to measure, in order; ``full`` comes early, since without it the others mean nothing."""
    return [
        Stage("baseline"),
        Stage("full", "full"),
        Stage("top1", "top1"),
        *(Stage(f"topk-{k}", "topk", top_k=k) for k in top_ks),
        *(Stage(f"lowrank-{rank}", "lowrank", rank=rank) for rank in ranks),
        *(Stage(f"random-{rank}", "random", rank=rank) for rank in ranks),
    ]


def tiles(tokens: np.ndarray, n_blocks: int, seq_len: int) -> Tensor:
    """Blocks of consecutive tokens that do not overlap, spread evenly over a text.

    Args:
        tokens: ``(n,)``, n ≥ n_blocks · seq_len.
        n_blocks: how many.
        seq_len: length of each.

    Returns:
        ``(n_blocks, seq_len)`` int64.
    """
    number = np.linspace(0, len(tokens) // seq_len - 1, n_blocks).astype(np.int64)
    index = number[:, None] * seq_len + np.arange(seq_len)
    return torch.from_numpy(np.asarray(tokens)[index].astype(np.int64))


def block_losses(
    model: nn.Module,
    blocks: Tensor,
    batch_size: int = 8,
    tick: Callable[[], None] = lambda: None,
    read: Callable[[Tensor], Any] | None = None,
) -> np.ndarray:
    """Mean loss of each block over all its tokens but the first.

    Args:
        model: returns something with ``logits (B, T, V)``.
        blocks: ``(n, T)`` int64.
        batch_size: blocks read at a time.
        tick: called after each batch.
        read: the forward pass; the model's own by default.

    Returns:
        ``(n,)`` float64, nats per token.
    """
    device = next(model.parameters()).device
    losses = []
    with evaluating(model):
        for batch in blocks.split(batch_size):
            batch = batch.to(device)
            logits = (read or model)(batch[:, :-1]).logits
            nats = F.cross_entropy(
                logits.float().flatten(0, 1), batch[:, 1:].flatten(), reduction="none"
            ).view(len(batch), -1)
            losses.append(nats.double().mean(1).cpu())
            tick()
    return torch.cat(losses).numpy()


def measure(
    model: nn.Module,
    stage: Stage,
    layers: Sequence[int],
    blocks: Tensor,
    basis: ResidualBasis,
    seed: int,
    batch_size: int = 8,
    tick: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Losses of the blocks with one form of attention in the chosen layers.

    Args:
        model: left as it was, also after an exception.
        stage: the form.
        layers: indices of attention layers.
        blocks: ``(n, T)`` int64.
        basis: for ``lowrank``.
        seed: of the random bases.
        batch_size: blocks read at a time.
        tick: called after each batch.

    Returns:
        ``(n,)`` float64, nats per token.
    """
    if stage.mode is None:
        return block_losses(model, blocks, batch_size, tick)
    with CrystalPatch(model, layers, stage.mode, stage.rank, stage.top_k, basis, seed):
        return block_losses(model, blocks, batch_size, tick)


def check_full(losses: Mapping[str, Any]) -> None:
    """Whether attention written as top key plus residual gave the perplexity of the network as it is.

    Args:
        losses: per block, of at least ``baseline`` and ``full``.

    Raises:
        FullModeError: the network's own is not finite; or they differ by more than :data:`FULL_TOLERANCE`, so
            that the other figures would be about another function than the network's attention.
    """
    own, full = (statistics.perplexity(np.asarray(losses[name])) for name in ("baseline", "full"))
    if not np.isfinite(own):
        raise FullModeError(
            f"the network as it is has perplexity {own} on this text; its weights or logits are not finite, and there "
            "is nothing to compare with"
        )
    if not abs(full - own) <= FULL_TOLERANCE * own:
        raise FullModeError(
            f"top key + whole residual has perplexity {full:.6g}, the network as it is {own:.6g}: they must agree to "
            f"{FULL_TOLERANCE:g}; the attention of this network is no plain causal softmax"
        )


def summarise(
    losses: Mapping[str, Sequence[float]],
    plan: Sequence[Stage],
    basis: ResidualBasis,
    seed: int,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """All figures of an experiment, as plain values.

    Args:
        losses: per stage, the losses of the same blocks.
        plan: the stages.
        basis: of the residuals.
        seed: of the bootstrap.
        about: model, text and settings, kept as they are.

    Returns:
        ``about``, ``baseline`` (perplexity, interval), ``bootstrap`` (number of draws, and of those in which the
        top key costs less than 0.1 %, where a recovered share is not defined), ``modes`` (one entry per other
        stage: perplexity, ``delta`` to the baseline, ``recovered`` % of what the top key alone loses, or None
        where that is under 0.1 %, each with its 95 % interval, None where too many draws have none),
        ``spectrum`` and ``verdict``.
    """
    matrix = np.asarray([losses[stage.name] for stage in plan], dtype=np.float64)
    row = {stage.name: number for number, stage in enumerate(plan)}
    own, top1 = row["baseline"], row["top1"]
    points = np.exp(matrix.mean(1))
    draws = np.exp(statistics.bootstrap_means(matrix, seed))  # (n_draws, n_stages)
    is_free = bool(statistics.costs_nothing(points[own], points[top1]))
    is_undetermined = is_free or statistics.may_cost_nothing(draws[:, own], draws[:, top1])
    modes = []
    for number, stage in enumerate(plan):
        if number == own:
            continue
        recovered = recovered_interval = None
        if not is_free:
            recovered = float(statistics.recovered(points[number], points[top1], points[own]))
            recovered_interval = statistics.recovered_interval(
                draws[:, number], draws[:, top1], draws[:, own]
            )
        modes.append(
            {
                "name": stage.name,
                "label": stage.label,
                "mode": stage.mode,
                "rank": stage.rank,
                "top_k": stage.top_k,
                "perplexity": float(points[number]),
                "perplexity_interval": statistics.interval(draws[:, number]),
                "delta": float(points[number] - points[own]),
                "delta_interval": statistics.interval(draws[:, number] - draws[:, own]),
                "recovered": recovered,
                "recovered_interval": recovered_interval,
            }
        )
    return {
        **about,
        "baseline": {
            "perplexity": float(points[own]),
            "perplexity_interval": statistics.interval(draws[:, own]),
        },
        "bootstrap": {
            "n_draws": len(draws),
            "n_free": int(statistics.costs_nothing(draws[:, own], draws[:, top1]).sum()),
        },
        "modes": modes,
        "spectrum": spectrum_figures(basis),
        "verdict": statistics.verdict(modes, basis.modes.shape[-1], is_undetermined),
    }


def spectrum_figures(basis: ResidualBasis) -> dict[str, Any]:
    """Shares of the residual's energy, by layer and head, as plain values."""
    d_head = basis.modes.shape[-1]
    r90 = basis.effective_dimension()
    ranks = [rank for rank in SPECTRUM_RANKS if rank <= d_head]
    return {
        "layers": list(basis.layers),
        "d_head": d_head,
        "calibration_tokens": basis.n_tokens,
        "r90": r90.tolist(),
        "mean_r90": float(r90.double().mean()),
        "share_at": {str(rank): basis.spectrum[..., rank - 1].tolist() for rank in ranks},
        "cumulative": basis.spectrum.tolist(),
    }
