"""What a choice is worth: one token's bank or route at one layer is exchanged, and everything after it recomputed.

The weight of the path is held, so that the exchange alone is seen. What counts is the loss of this and of all later
targets of the window: the chosen one against the *mean* of the others. Against the best of them nothing could be said,
since the least of several numbers is small by chance alone.

Summed over the targets, the cost of an exchange is in nats per exchanged token; to first order that is what the loss
per token would rise by, were every token's choice of this router exchanged.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.analysis.routing.routers import Router, Windows, per_window, token_losses
from app.models import LanguageModel
from app.models.activations import Intervention
from app.models.crystal.patch import evaluating
from app.models.language_model import IGNORED_TARGET


def places(windows: Windows, n_tokens: int, seed: int) -> list[Tensor]:
    """Positions of each window whose choices are exchanged, the same for every router.

    Args:
        windows: of which each has a target.
        n_tokens: of a window; all positions with a target at or after them where there are no more.
        seed: of the draw.

    Returns:
        ``(K,)`` int64 of each window, ascending.
    """
    generator = np.random.default_rng(seed)
    found = []
    for targets in windows.targets:
        scored = (targets != IGNORED_TARGET).nonzero().flatten()
        n_open = int(scored[-1]) + 1 if len(scored) else 0
        drawn = generator.permutation(n_open)[:n_tokens]
        found.append(torch.from_numpy(np.sort(drawn)))
    return found


def exchange(
    network: LanguageModel,
    router: Router,
    windows: Windows,
    at: list[Tensor],
    batch_size: int,
    tick: Callable[[], None] = lambda: None,
) -> list[float]:
    """What it costs to exchange a router's choice, by window.

    Args:
        network: left as it was.
        router: whose choice.
        windows: text.
        at: positions of each window, see :func:`places`.
        batch_size: exchanges read at a time; the windows that they are made in stand beside them.
        tick: called after each batch, see :func:`n_batches`.

    Returns:
        ``(n,)`` nats per exchanged token: mean over the positions of the loss of this and all later targets
        with another choice, the mean over all others, less that of the network as it is. Positive where the choice
        is better than the others. NaN of a window without positions.
    """
    n_others = router.n_choices - 1
    window = torch.cat([torch.full((len(place) * n_others,), row) for row, place in enumerate(at)])
    place = torch.cat(at).repeat_interleave(n_others)
    shift = torch.arange(1, router.n_choices).repeat(len(place) // n_others)
    costs = []
    with evaluating(network):
        for chunk in torch.arange(len(place)).split(batch_size):
            costs.append(_costs(network, router, windows, window[chunk], place[chunk], shift[chunk]))
            tick()
    n = torch.bincount(window, minlength=len(at))
    sums = torch.bincount(window, torch.cat(costs), minlength=len(at))
    found: list[float] = (sums / n).tolist()
    return found


def n_batches(router: Router, at: list[Tensor], batch_size: int) -> int:
    """How many batches :func:`exchange` reads."""
    return -(-sum(map(len, at)) * (router.n_choices - 1) // batch_size)


def _costs(
    network: LanguageModel, router: Router, windows: Windows, window: Tensor, place: Tensor, shift: Tensor
) -> Tensor:
    """``(R,)`` nats that each of R exchanges adds; windows as they are stand before them, in the same batch."""
    there, base = window.unique(return_inverse=True)
    rows = len(there) + torch.arange(len(place))
    read = torch.cat([there, window])

    def exchanged(chosen: Tensor) -> Tensor:
        new = chosen.clone()
        own = router.of(new)  # a view
        own[rows, place] = (own[rows, place] + shift.to(own)) % router.n_choices
        return new

    intervene: dict[str, Intervention] = {router.chosen: exchanged}
    if router.what == "bank":
        held = torch.cat([torch.arange(len(there)), base])
        intervene[f"{router.prefix}weights"] = lambda weights: weights[held]
    nats = token_losses(network, windows.idx[read], windows.targets[read], intervene)
    later = torch.arange(nats.shape[1]) >= place.unsqueeze(-1)  # (R, T)
    return ((nats[rows] - nats[base]) * later).sum(1)


def retention(
    network: LanguageModel,
    of: list[Router],
    chosen: Mapping[str, Tensor],
    windows: Windows,
    batch_size: int,
    n_kept: int,
    tick: Callable[[], None] = lambda: None,
) -> list[float]:
    """Losses ``(n,)`` of windows where every router keeps its most used choices alone.

    A token whose choice is gone takes the likeliest of those that are left.

    Args:
        network: left as it was.
        of: its routers.
        chosen: of each, ``(n, T)`` what it chose, by name.
        windows: text.
        batch_size: windows read at a time.
        n_kept: choices that are kept.
        tick: called after each batch.
    """
    by_name: dict[str, list[tuple[Router, Tensor]]] = {}
    for router in of:
        load = torch.bincount(chosen[router.name].flatten(), minlength=router.n_choices)
        is_gone = torch.ones(router.n_choices, dtype=torch.bool)
        is_gone[load.argsort(descending=True, stable=True)[:n_kept]] = False
        by_name.setdefault(router.chosen, []).append((router, is_gone))
    losses: list[float] = []
    with evaluating(network):
        for idx, targets in zip(
            windows.idx.split(batch_size), windows.targets.split(batch_size), strict=True
        ):
            intervene: dict[str, Intervention] = {}
            for parts in by_name.values():
                intervene |= _without(parts)
            nats = token_losses(network, idx, targets, intervene)
            losses += per_window(nats, targets).tolist()
            tick()
    return losses


def _without(parts: list[tuple[Router, Tensor]]) -> dict[str, Intervention]:
    """Takes choices away from the routers of one activation."""
    seen: list[Tensor] = []

    def look(probabilities: Tensor) -> Tensor:
        seen.append(probabilities)
        return probabilities

    def replaced(chosen: Tensor) -> Tensor:
        new = chosen.clone()
        for router, is_gone in parts:
            own, gone = router.of(new), is_gone.to(new.device)
            left = router.of(seen[-1]).masked_fill(gone, -1.0).argmax(-1)
            own.copy_(torch.where(gone[own], left, own))
        return new

    first: Any = parts[0][0]
    return {f"{first.prefix}probabilities": look, first.chosen: replaced}
