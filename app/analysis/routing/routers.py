"""The routers of a network, by the names of its activations: whatever chooses one of several for every token.

Shape suffixes: B batch, T sequence, P routers of one activation, N choices, D width.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from app.models import LanguageModel
from app.models.activations import Intervention
from app.models.crystal.patch import evaluating
from app.models.language_model import IGNORED_TARGET


class Windows(NamedTuple):
    """Held-out text.

    Attributes:
        idx: ``(n, T)`` int64 tokens.
        targets: ``(n, T)`` int64 tokens that follow; −100 where nothing is asked.
        labels: what else is known of each position, such as a task's regime: name to ``(n, T)`` int64, negative where
            nothing is.
    """

    idx: Tensor
    targets: Tensor
    labels: Mapping[str, Tensor]


@dataclass(frozen=True)
class Router:
    """One choice that a network makes for every token.

    Attributes:
        layer: of which block.
        what: is chosen: ``bank`` or ``route``.
        path: of the banks; empty of a route.
        prefix: of the activations, ``blocks.2.router.``.
        part: where this router's choice stands in the last axis of the activation; None where it stands alone.
        n_choices: among how many.
    """

    layer: int
    what: str
    path: str
    prefix: str
    part: int | None
    n_choices: int

    @property
    def name(self) -> str:
        """Unique in a network: ``layer 2, sparse``."""
        return f"layer {self.layer}" + (f", {self.path}" if self.path else "")

    @property
    def chosen(self) -> str:
        """Name of the activation with the choice."""
        return f"{self.prefix}{'bank' if self.what == 'bank' else 'choice'}"

    def of(self, x: Tensor) -> Tensor:
        """This router's part ``(B, T, …)`` of an activation ``(B, T, P, …)`` of all of its block."""
        return x if self.part is None else x[:, :, self.part]


def routers(network: LanguageModel) -> list[Router]:
    """All of a network's, layer by layer; those with a single choice decide nothing and are left out."""
    shapes = network.activations()
    found: list[Router] = []
    for name in shapes:
        match = re.fullmatch(r"(blocks\.(\d+)\.router\.)(bank|choice)", name)
        if match is None:
            continue
        prefix, layer, n = match[1], int(match[2]), int(shapes[f"{match[1]}probabilities"][-1])
        if n < 2:
            continue
        if match[3] == "choice":
            found.append(Router(layer, "route", "", prefix, None, n))
            continue
        owner = f"blocks.{layer}.paths."
        paths = [other.removeprefix(owner) for other in shapes if other.startswith(owner)]
        found += [Router(layer, "bank", path, prefix, part, n) for part, path in enumerate(paths)]
    return found


def token_losses(
    network: LanguageModel,
    idx: Tensor,
    targets: Tensor,
    intervene: Mapping[str, Intervention] | None = None,
) -> Tensor:
    """The loss ``(B, T)`` float64 of every target, 0 where nothing is asked, on the CPU.

    Args:
        network: in evaluation, see :func:`~app.models.crystal.patch.evaluating`.
        idx: ``(B, T)`` int64.
        targets: ``(B, T)`` int64.
        intervene: what replaces activations.
    """
    device = next(network.parameters()).device
    logits = network(idx.to(device), intervene=intervene).logits
    nats = F.cross_entropy(
        logits.float().flatten(0, 1), targets.to(device).flatten(), reduction="none", ignore_index=IGNORED_TARGET
    )  # fmt: skip
    return nats.view(targets.shape).double().cpu()


class Choices(NamedTuple):
    """What a network did with windows.

    Attributes:
        chosen: by name of the router, ``(n, T)`` int64.
        predicted: ``(n, T)`` the likeliest next token.
        losses: ``(n,)`` float64, nats per scored position of each window.
    """

    chosen: dict[str, Tensor]
    predicted: Tensor
    losses: Tensor


def choices(
    network: LanguageModel,
    of: list[Router],
    windows: Windows,
    batch_size: int,
    tick: Callable[[], None] = lambda: None,
) -> Choices:
    """Reads windows and keeps what every router chose.

    Args:
        network: left as it was.
        of: its routers.
        windows: to read.
        batch_size: windows read at a time.
        tick: called after each batch.
    """
    device = next(network.parameters()).device
    names = list(dict.fromkeys(router.chosen for router in of))
    kept: dict[str, list[Tensor]] = {router.name: [] for router in of}
    predicted, losses = [], []
    with evaluating(network):
        for idx, targets in zip(
            windows.idx.split(batch_size), windows.targets.split(batch_size), strict=True
        ):
            output = network(idx.to(device), capture=names)
            for router in of:
                kept[router.name].append(router.of(output.captured[router.chosen]).cpu())
            logits = output.logits.float().cpu()
            predicted.append(logits.argmax(-1))
            nats = F.cross_entropy(
                logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED_TARGET
            )
            losses.append(per_window(nats.view(targets.shape).double(), targets))
            tick()
    return Choices(
        {name: torch.cat(parts) for name, parts in kept.items()}, torch.cat(predicted), torch.cat(losses)
    )


def per_window(nats: Tensor, targets: Tensor) -> Tensor:
    """Mean ``(n,)`` of losses ``(n, T)`` over the scored positions of each window."""
    return nats.sum(1) / (targets != IGNORED_TARGET).sum(1)


def row_cosine(network: LanguageModel, router: Router) -> float | None:
    """Mean cosine of the rows that score a router's choices, over all pairs; None of one that has no such rows."""
    try:
        owner = network.get_submodule(router.prefix.removesuffix("."))
    except AttributeError:
        return None
    weight = getattr(owner, "effective_weight", lambda: getattr(owner, "weight", None))()
    if router.part is None or not isinstance(weight, Tensor) or weight.dim() != 2:
        return None
    rows = weight.detach().float()[router.part * router.n_choices :][: router.n_choices]  # (N, D)
    cosines = F.normalize(rows, dim=-1) @ F.normalize(rows, dim=-1).T
    n = router.n_choices
    return float((cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1)))
