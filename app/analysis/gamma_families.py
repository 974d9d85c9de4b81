"""Scale families: one number per layer for every kind of norm and matrix, from weights in memory or on disk.

For a norm the scale is the root mean square of its gain, for matrices ``‖W‖_F / √(out · in)``, which is the root mean
square of the entries; a stack of banks, and a pathway with several matrices, is taken as one.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from app.analysis.stored_tensors import StoredTensor

#: parts of a Tilelli block that are one family each; gains of the state pathway without its decay
PATHWAYS = ("local", "wide", "state", "sparse", "dense")
#: names of other libraries for what has a name here
RENAMED = {
    "input_layernorm": "input_ln",
    "post_attention_layernorm": "post_attn_ln",
    "attn.c_proj": "attn.c_proj",
    "mlp.c_proj": "c_proj",
}
#: model types of Hugging Face whose norms multiply by 1 + w
ONE_PLUS_TYPES = ("gemma", "gemma2", "gemma3", "gemma3_text", "recurrent_gemma", "qwen3_next", "nemotron")
#: the norm before attention, and what projects its output to queries and keys, by family
ATTENTION_NORMS = ("ln1", "input_ln", "ln_1")
QK_GAIN = "qk_norm"  # rms(g_q ⊙ g_k)

#: no network has 10,000 blocks; a larger number is something else, and would cost as many empty layers
MAX_LAYER_DIGITS = 4
#: no network has so many kinds of weights, nor so many times its layers: such a file is made to fill memory
MAX_FAMILIES, MAX_SCALES = 1_000, 200_000

#: towers of several modalities, whose blocks are not those of the language model
OTHER_TOWERS = ("vision", "visual", "audio")

Kind = Literal["norm", "matrix"]
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


class Member(NamedTuple):
    """Where a tensor belongs.

    Attributes:
        layer: block number.
        families: one, or as many as the last axis is cut into.
        kind: ``norm`` or ``matrix``.
    """

    layer: int
    families: tuple[str, ...]
    kind: Kind


def place(name: str, n_axes: int) -> Member | None:
    """Layer, families and kind of a parameter by its name; None for what has no family.

    Args:
        name: parameter name; the first number standing alone is the block's.
        n_axes: axes of the tensor.
    """
    found = _LAYER.search(name)
    if found is None or any(part.startswith(OTHER_TOWERS) for part in name.split(".")):
        return None
    if len(found[1]) > MAX_LAYER_DIGITS:
        return None
    layer, tail = int(found[1]), name[found.end() :]
    *owner, leaf = tail.split(".")
    if owner and owner[0] in PATHWAYS and leaf in ("weight", "input_gain", "output_gain"):
        return Member(layer, (owner[0],), "matrix")
    if leaf not in ("weight", "gain", "gamma", "scale") or not owner:
        return None
    last, path = owner[-1], ".".join(owner)
    if last.isdigit() and len(owner) > 1:  # one of a sequence
        last = f"{owner[-2]}.{last}"
    if n_axes == 1:
        return Member(layer, (RENAMED.get(last, last),), "norm") if kind_of(last) == "norm" else None
    if last == "c_attn":
        return Member(layer, ("q_proj", "k_proj", "v_proj"), "matrix")
    # A convolution of a few taps per channel, an embedding of positions: no map from features to features.
    if n_axes > 3 or "emb" in last:
        return None
    return Member(layer, (RENAMED.get(path, last),), "matrix")


@dataclass
class Scales:
    """Scales over depth.

    Attributes:
        rms: family to one value per layer; None at a layer that has no such weight.
        mean_abs: the same of the mean magnitude.
        kinds: family to ``norm`` or ``matrix``.
        one_plus: whether gains were stored as w and are reported as 1 + w.
    """

    rms: dict[str, list[float | None]] = field(default_factory=dict)
    mean_abs: dict[str, list[float | None]] = field(default_factory=dict)
    kinds: dict[str, Kind] = field(default_factory=dict)
    one_plus: bool = False

    def series(self, family: str) -> tuple[list[int], list[float]]:
        """Layers that have the family, and their scales."""
        pairs = [(layer, value) for layer, value in enumerate(self.rms[family]) if value is not None]
        return [layer for layer, _ in pairs], [value for _, value in pairs]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, see :meth:`from_dict`."""
        return {"scales": self.rms, "mean_abs": self.mean_abs, "kinds": self.kinds, "one_plus": self.one_plus}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Scales":
        """What :meth:`as_dict` gave, or its ``scales`` alone; kinds then go by the families' names.

        Raises:
            ValueError: it is something else.
        """
        try:
            for part in (content["scales"], content.get("mean_abs", {})):
                _require_plausible(len(part), max(map(len, part.values()), default=0))
            rms = {str(name): _numbers(row) for name, row in content["scales"].items()}
            mean_abs = {str(name): _numbers(row) for name, row in content.get("mean_abs", {}).items()}
            given = content.get("kinds", {})
            kinds = {name: given[name] if name in given else kind_of(name) for name in rms}
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(f"no scales over depth in it ({type(error).__name__}: {error})") from error
        if len({len(row) for row in rms.values()}) != 1 or any(set(row) <= {None} for row in rms.values()):
            raise ValueError(
                "no scales over depth in it (every family needs a value, and all as many layers)"
            )
        if not all(kind in get_args(Kind) for kind in kinds.values()):
            raise ValueError(f"no scales over depth in it (kinds are {' or '.join(get_args(Kind))})")
        return cls(rms, mean_abs, kinds, bool(content.get("one_plus", False)))


def kind_of(family: str) -> Kind:
    """What a family of this name is."""
    is_norm = "norm" in family or family.startswith("ln") or family.endswith("_ln")
    return "norm" if is_norm else "matrix"


def _require_plausible(n_families: int, n_layers: int) -> None:
    if n_families > MAX_FAMILIES or n_families * n_layers > MAX_SCALES:
        raise ValueError(f"{n_families:,} kinds of weights in {n_layers:,} layers: no network has so many")


def _numbers(row: Iterable[Any]) -> list[float | None]:
    numbers = [None if value is None else float(value) for value in row]
    if not all(number is None or math.isfinite(number) for number in numbers):
        raise ValueError("a scale is not finite")
    return numbers


def stored_one_plus(names: Iterable[str], model_type: str = "") -> bool:
    """Whether a checkpoint's gains are stored as w where 1 + w is meant.

    Known by the model type of a ``config.json`` beside it, and by tensor names: Gemma 2 and 3 alone have norms on
    both sides of the feed-forward part and no further embeddings in each layer; others name it outright.
    """
    names = list(names)
    if model_type:
        return model_type in ONE_PLUS_TYPES
    if any("layernorm1p" in name or "zero_centered" in name for name in names):
        return True
    is_gemma = any(name.endswith("pre_feedforward_layernorm.weight") for name in names)
    return is_gemma and not any("altup" in name or "laurel" in name for name in names)


def stored_scales(tensors: Iterable[StoredTensor], model_type: str = "") -> Scales:
    """Scales of a checkpoint on disk, tensor by tensor.

    Args:
        tensors: what the checkpoint holds.
        model_type: of a ``config.json`` beside it.

    Raises:
        ValueError: no tensor belongs to a numbered block, or one holds values that are not finite.
    """
    tensors = list(tensors)
    one_plus = stored_one_plus((t.name for t in tensors), model_type)
    sums: dict[tuple[str, int], list[float]] = {}
    kinds: dict[str, Kind] = {}
    gains: dict[int, dict[str, StoredTensor]] = {}
    for stored in tensors:
        member = place(stored.name, len(stored.shape))
        if member is None:
            continue
        if len(member.families) > 1 and stored.shape[-1] % len(member.families):
            raise ValueError(
                f"{stored.name} of shape {list(stored.shape)} is no {len(member.families)} in one"
            )
        added = [[0.0, 0.0, 0.0] for _ in member.families]
        for rows in stored.rows():
            for total, part in zip(added, rows.chunk(len(added), dim=1), strict=True):
                gain = part + 1 if one_plus and member.kind == "norm" else part
                total[0] += float(gain.square().sum())
                total[1] += float(gain.abs().sum())
                total[2] += gain.numel()
        if not all(math.isfinite(number) for total in added for number in total):
            raise ValueError(f"{stored.name} holds values that are not finite; name a checkpoint from before")
        for family, total in zip(member.families, added, strict=True):
            kinds[family] = member.kind
            whole = sums.setdefault((family, member.layer), [0.0, 0.0, 0.0])
            for index, value in enumerate(total):
                whole[index] += value
        if member.families in (("q_norm",), ("k_norm",)):
            gains.setdefault(member.layer, {})[member.families[0]] = stored
    if not sums:
        raise ValueError("no tensor's name carries a block's number and a known kind of weight")
    for layer, pair in gains.items():
        if len(pair) == 2 and pair["q_norm"].shape == pair["k_norm"].shape:
            query, key = (pair[name].vector() + float(one_plus) for name in ("q_norm", "k_norm"))
            product = query * key
            sums[QK_GAIN, layer] = [
                float(product.square().sum()),
                float(product.abs().sum()),
                product.numel(),
            ]
            kinds[QK_GAIN] = "norm"
    return _over_depth(sums, kinds, one_plus)


def _over_depth(
    sums: Mapping[tuple[str, int], list[float]], kinds: dict[str, Kind], one_plus: bool
) -> Scales:
    n_layers = 1 + max(layer for _, layer in sums)
    _require_plausible(len(kinds), n_layers)
    scales = Scales(kinds=kinds, one_plus=one_plus)
    for family in kinds:
        rows = [sums.get((family, layer)) for layer in range(n_layers)]
        scales.rms[family] = [None if row is None else (row[0] / row[2]) ** 0.5 for row in rows]
        scales.mean_abs[family] = [None if row is None else row[1] / row[2] for row in rows]
    return scales


def device_scales(parameters: Iterable[tuple[str, Tensor]]) -> tuple[list[tuple[str, int]], Tensor]:
    """Scales of weights in memory, on their device and without a transfer.

    Args:
        parameters: names and weights.

    Returns:
        ``(family, layer)`` of each number, families in the order of the network and layers from the first, and the
        root mean squares ``(n,)`` in float64 (float32 where the device has no wider type).
    """
    sums: dict[tuple[str, int], Tensor] = {}
    counts: dict[tuple[str, int], int] = {}
    with torch.no_grad():
        for name, weight in parameters:
            member = place(name, weight.dim())
            if member is None:
                continue
            wide = torch.float32 if weight.device.type == "mps" else torch.float64
            for family, part in zip(member.families, weight.chunk(len(member.families), dim=-1), strict=True):
                key = family, member.layer
                total = part.norm(dtype=wide).square()
                sums[key] = sums[key] + total if key in sums else total
                counts[key] = counts.get(key, 0) + part.numel()
        if not sums:
            return [], torch.empty(0)
        order = {family: number for number, family in enumerate(dict.fromkeys(family for family, _ in sums))}
        keys = sorted(sums, key=lambda key: (order[key[0]], key[1]))
        numbers = torch.stack([sums[key] / counts[key] for key in keys]).sqrt()
    return keys, numbers
