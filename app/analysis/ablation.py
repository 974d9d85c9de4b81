"""What a trained network loses when a part of it is taken away, fixed or exchanged.

A part is an activation by its name, so that a network of any architecture is cut in the same way: whatever is called
``paths.…``, ``router.bank``, ``router.choice``, ``attn.weights``, ``attn.z``, ``attn.out`` or ``mlp.out`` of a block.

Shape suffixes: B batch, T sequence, H heads.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.analysis import crystallize_statistics as statistics
from app.analysis.ablation_kinds import How, Kind
from app.analysis.crystallize import block_losses
from app.models import LanguageModel
from app.models.activations import Intervention
from app.models.crystal.patch import evaluating
from app.models.tilelli.weights import full_precision

#: from the tokens ``(B, T)`` of a batch to what replaces activations in it
Replace = Callable[[Tensor], Mapping[str, Intervention]]
_DONE = {"zero": "removed", "mean": "at its mean", "shuffle": "shuffled among tokens"}
#: Knuth's multiplicative hash of 32 bits
_HASH, _HASH_BITS = 2654435761, 32


@dataclass(frozen=True)
class Ablation:
    """One way to cut a network.

    Attributes:
        name: unique in a measurement.
        kind: what is cut.
        layer: of which block; None for the whole network.
        label: in words.
        replace: what stands in place of activations.
        around: a context in which the network computes otherwise.
    """

    name: str
    kind: Kind
    layer: int | None
    label: str
    replace: Replace = lambda idx: {}
    around: Callable[[LanguageModel], AbstractContextManager[Any]] = nullcontext


def plan(network: LanguageModel, means: Mapping[str, Tensor], seed: int) -> list[Ablation]:
    """Every ablation that a network offers, block by block.

    Args:
        network: read with zeros, to hear what it is made of.
        means: of what :func:`averaged` names.
        seed: of what is drawn.
    """
    shapes = network.activations()
    routes = _route_names(network, shapes)
    found: list[Ablation] = []
    for layer in sorted({int(name.split(".")[1]) for name in shapes if re.match(r"blocks\.\d+\.", name)}):
        prefix = f"blocks.{layer}."
        own = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
        found += _routing(prefix, layer, own, routes, seed)
        for part, kind in (("attn.out", "attention"), ("mlp.out", "mlp")):
            if part in own:
                found += _removals(prefix + part, kind, layer, kind, means)  # type: ignore[arg-type]
        if "router.choice" not in own:
            for part in own:
                if part.startswith("paths."):
                    words = f"{part.removeprefix('paths.')} pathway"
                    found += _removals(prefix + part, "pathway", layer, words, means)
        found += _heads(prefix, layer, own)
        if "in" in own and "out" in own:
            found.append(Ablation(f"{prefix}skipped", "block", layer, "block skipped", _Skipped(prefix)))
    if network.ternary_weights():
        label = "quantisation switched off"
        found.append(Ablation("full precision", "precision", None, label, around=full_precision))
    return found


def of_activation(
    network: LanguageModel, name: str, how: How, means: Mapping[str, Tensor], seed: int
) -> Ablation:
    """One activation by name, exchanged.

    Args:
        network: whose.
        name: as :meth:`~app.models.LanguageModel.activations` lists it.
        how: ``zero``, ``mean`` over a text, or ``shuffle`` among the tokens of a batch.
        means: of the activation, with ``mean``.
        seed: of the shuffle.
    """
    match = re.match(r"blocks\.(\d+)\.", name)
    layer = int(match[1]) if match else None
    if how == "zero":
        change: Intervention = torch.zeros_like
    elif how == "mean":
        change = _mean_of(means[name])
    else:
        change = _shuffled(seed, _token_axes(network.activations()[name]))
    return Ablation(f"{name} {how}", "activation", layer, f"{name} {_DONE[how]}", _at(name, change))


def averaged(network: LanguageModel) -> list[str]:
    """The activations whose means :func:`plan` needs."""
    shapes = network.activations()
    parts = r"blocks\.\d+\.(paths\.\w+|attn\.out|mlp\.out)"
    routed = {name.rpartition("router.")[0] for name in shapes if name.endswith("router.choice")}
    return [
        name
        for name in shapes
        if re.fullmatch(parts, name) and not (".paths." in name and name.partition("paths.")[0] in routed)
    ]


def means_of(
    network: LanguageModel, names: Sequence[str], blocks: Tensor, batch_size: int
) -> dict[str, Tensor]:
    """Mean of activations over the tokens of a text, broadcastable to them.

    Args:
        network: left as it was.
        names: of activations of floating point.
        blocks: ``(n, T)`` int64.
        batch_size: blocks read at a time.

    Raises:
        ValueError: one is of indices, which have no mean.
    """
    shapes = network.activations()
    device = next(network.parameters()).device
    sums: dict[str, Tensor] = {}
    n_seen: dict[str, int] = dict.fromkeys(names, 0)
    if not names:
        return {}
    with evaluating(network):
        for batch in blocks.split(batch_size):
            for name, x in network(batch.to(device), capture=names).captured.items():
                if not x.is_floating_point():
                    raise ValueError(f"{name}: holds indices, which have no mean; zero and shuffle are there")
                axes = _token_axes(shapes[name])
                sums[name] = sums.get(name, 0) + x.double().sum(axes, keepdim=True)
                n_seen[name] += x.numel() // sums[name].numel()
    return {name: total / n_seen[name] for name, total in sums.items()}


def measure(
    network: LanguageModel,
    ablation: Ablation | None,
    blocks: Tensor,
    batch_size: int = 8,
    tick: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Losses of windows with a part taken away.

    Args:
        network: left as it was, also after an exception.
        ablation: None for the network as it is.
        blocks: ``(n, T)`` int64.
        batch_size: windows read at a time.
        tick: called after each batch.

    Returns:
        ``(n,)`` float64, nats per token.
    """
    if ablation is None:
        return block_losses(network, blocks, batch_size, tick)
    with ablation.around(network):
        return block_losses(
            network, blocks, batch_size, tick, lambda idx: network(idx, intervene=ablation.replace(idx))
        )


def summarise(
    own: Sequence[float],
    losses: Mapping[str, Sequence[float]],
    ablations: Sequence[Ablation],
    seed: int,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """All figures of a measurement, as plain values.

    Args:
        own: losses of the windows by the network as it is.
        losses: those by each ablation, by its name.
        ablations: what was measured.
        seed: of the bootstrap.
        about: model, text and settings, kept as they are.

    Returns:
        ``about``, ``baseline`` (loss), ``ablations`` (``name``, ``kind``, ``layer``, ``label``, ``loss``, ``delta`` and
        its 95 % ``interval`` of a bootstrap over windows, each paired with itself), dearest first, and ``verdict``.
    """
    base = np.asarray(own, dtype=np.float64)
    rows = np.asarray([losses[each.name] for each in ablations], dtype=np.float64).reshape(
        len(ablations), len(base)
    )
    draws = statistics.bootstrap_means(rows - base, seed)
    entries: list[dict[str, Any]] = [
        {
            "name": each.name,
            "kind": each.kind,
            "layer": each.layer,
            "label": each.label,
            "loss": float(rows[number].mean()),
            "delta": float((rows[number] - base).mean()),
            "interval": statistics.interval(draws[:, number]),
        }
        for number, each in enumerate(ablations)
    ]
    entries.sort(key=lambda entry: -entry["delta"] if np.isfinite(entry["delta"]) else -np.inf)
    return {
        **about,
        "baseline": {"loss": float(base.mean())},
        "ablations": entries,
        "verdict": verdict(entries),
    }


def verdict(entries: Sequence[Mapping[str, Any]]) -> str:
    """What costs most, and how much cannot be told from nothing, in a sentence or two."""
    if not entries:
        return "This network offers no part to take away."
    dearest = entries[0]
    free = sum(entry["interval"][0] <= 0 <= entry["interval"][1] for entry in entries)
    text = f"{place(dearest)}: {dearest['label']} costs most, {dearest['delta']:+.4f} nats per token."
    return f"{text} {free} of {len(entries)} ablations cannot be told from 0."


def place(entry: Mapping[str, Any]) -> str:
    """Where an ablation cuts."""
    return "Network" if entry["layer"] is None else f"Layer {entry['layer']}"


# -- the parts ---------------------------------------------------------------------------------------------------------


def _at(name: str, change: Intervention) -> Replace:
    return lambda idx: {name: change}


def _removals(
    name: str, kind: Kind, layer: int, words: str, means: Mapping[str, Tensor]
) -> Iterator[Ablation]:
    yield Ablation(f"{name} zero", kind, layer, f"{words} removed", _at(name, torch.zeros_like))
    if name in means:
        yield Ablation(f"{name} mean", kind, layer, f"{words} at its mean", _at(name, _mean_of(means[name])))


def _routing(
    prefix: str, layer: int, own: Mapping[str, Any], routes: Sequence[str], seed: int
) -> Iterator[Ablation]:
    name = f"{prefix}router.bank"
    if "router.bank" in own and (n_banks := own["router.probabilities"][-1]) > 1:
        changes: dict[str, tuple[str, Intervention]] = {
            f"fixed {number}": (f"fixed at {number}", _filled(number)) for number in range(n_banks)
        }
        changes["shuffle"] = _DONE["shuffle"], _shuffled(seed, (0, 1))
        changes["swapped"] = "swapped for the next one", _next_of(n_banks)
        for what, (words, change) in changes.items():
            yield Ablation(f"{name} {what}", "bank", layer, f"banks {words}", _at(name, change))
    name = f"{prefix}router.choice"
    if "router.choice" in own:
        for number, said in enumerate(routes[1:], 1):
            words = f"route {said} sent {routes[0]}"
            yield Ablation(f"{name} without {said}", "route", layer, words, _at(name, _without_route(number)))
        words = "routes random, fractions kept"
        yield Ablation(f"{name} shuffle", "route", layer, words, _at(name, _shuffled(seed, (0, 1))))
        words = "routes hashed by token, fractions kept"
        yield Ablation(f"{name} hashed", "route", layer, words, lambda idx: {name: _hashed(idx)})


def _heads(prefix: str, layer: int, own: Mapping[str, Any]) -> Iterator[Ablation]:
    heads = range(own["attn.z"][1] if "attn.z" in own else 0)
    name = f"{prefix}attn.weights"
    if "attn.weights" in own:
        words = "crystallised to its top key"
        yield Ablation(f"{name} top", "attention", layer, f"attention {words}", _at(name, _to_top_key(None)))
        for head in heads:
            change = _to_top_key(head)
            yield Ablation(f"{name} top {head}", "head", layer, f"head {head} {words}", _at(name, change))
    name = f"{prefix}attn.z"
    for head in heads:
        change = _without_head(head)
        yield Ablation(f"{name} zero {head}", "head", layer, f"head {head} removed", _at(name, change))


def _filled(number: int) -> Intervention:
    return lambda x: torch.full_like(x, number)


def _next_of(n: int) -> Intervention:
    return lambda x: (x + 1) % n


def _without_route(number: int) -> Intervention:
    return lambda route: route.masked_fill(route == number, 0)


class _Skipped:
    """A block that passes on what it reads."""

    def __init__(self, prefix: str):
        self.prefix = prefix

    def __call__(self, idx: Tensor) -> Mapping[str, Intervention]:
        read: list[Tensor] = []

        def keep(x: Tensor) -> Tensor:
            read.append(x)
            return x

        return {f"{self.prefix}in": keep, f"{self.prefix}out": lambda y: read[-1]}


def _to_top_key(head: int | None) -> Intervention:
    """All of a query's weight goes to its largest; of one head, or of all."""

    def change(weights: Tensor) -> Tensor:
        top = torch.zeros_like(weights).scatter(-1, weights.argmax(-1, keepdim=True), 1.0)
        top = top * weights.sum(-1, keepdim=True)
        if head is None:
            return top
        changed = weights.clone()
        changed[:, head] = top[:, head]
        return changed

    return change


def _without_head(head: int) -> Intervention:
    def change(z: Tensor) -> Tensor:
        changed = z.clone()
        changed[:, head] = 0
        return changed

    return change


def _mean_of(mean: Tensor) -> Intervention:
    return lambda x: mean.to(x).expand_as(x)


def _shuffled(seed: int, axes: tuple[int, ...]) -> Intervention:
    """The same permutation of the tokens of a batch in every ablation, so that they compare."""

    def change(x: Tensor) -> Tensor:
        tokens = x.movedim(axes, tuple(range(len(axes))))
        flat = tokens.flatten(0, len(axes) - 1)
        drawn = torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed)).to(x.device)
        return flat[drawn].view(tokens.shape).movedim(tuple(range(len(axes))), axes)

    return change


def _hashed(idx: Tensor) -> Intervention:
    """Equal tokens take equal routes, but for the last of a route's share."""

    def change(route: Tensor) -> Tensor:
        order = ((idx * _HASH) % (1 << _HASH_BITS)).flatten().argsort(stable=True)
        hashed = torch.empty_like(route.flatten())
        hashed[order] = route.flatten().sort().values
        return hashed.view(route.shape)

    return change


def _token_axes(shape: Sequence[int | str]) -> tuple[int, ...]:
    """The axes of batch and position; a second axis of positions, that of keys, is none of the token's own."""
    return tuple(shape.index(axis) for axis in ("B", "T") if axis in shape)


def _route_names(network: LanguageModel, shapes: Mapping[str, Sequence[int | str]]) -> list[str]:
    """What the routes are called, in the order of their numbers; empty without routes."""
    chosen = [name for name in shapes if name.endswith("router.choice")]
    if not chosen:
        return []
    idx = torch.zeros(1, 2, dtype=torch.int64, device=next(network.parameters()).device)
    with evaluating(network):
        reported = network.token_measures(network(idx))
    names = next(
        (list(each.labels) for key, each in reported.items() if key == "route" and each.labels), None
    )
    n_routes = shapes[chosen[0].removesuffix("choice") + "probabilities"][-1]
    return names or [str(number) for number in range(int(n_routes))]
