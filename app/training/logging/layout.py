"""Which curves belong on one chart, read off the keys that are logged."""

import re
from collections.abc import Iterable

from app.training.logging.tags import STAGES, tag_of

_LAYER = re.compile(r"l\d\d+")
_BOUNDS = ("min", "max")
#: what is said once of a whole quantity: one chart of a group has it of all quantities
_ACROSS = ("worst_layer", "worst_deviation", "exponent", "exponent_r2")
#: names that are too short for the title of a chart
_NAMES = {
    "loss": "loss, nats per token",
    "bpb": "bits per byte",
    "unknown_share": "tokens that are unknown words, share",
    "aux_loss": "auxiliary loss, nats",
    "grad_norm": "gradient norm",
    "lr": "learning rate",
    "mfu": "model FLOP utilisation",
    "memory_gib": "memory, GiB",
    "step_ms": "step, milliseconds",
    "seconds": "training without validation, seconds",
    "data_wait_share": "share of a step that waits for data",
    "open": "findings that hold",
    "worst_deviation": "largest distance to the target",
    "exponent": "exponent over depth",
    "exponent_r2": "r2 of the exponent",
    "worst_layer": "worst layer, by number",
}

Chart = tuple[str, list[str]]
Layout = dict[str, dict[str, Chart]]


def custom_scalars(keys: Iterable[str]) -> Layout:
    """The custom-scalars layout of TensorBoard: a category per group, whatever the architecture.

    An objective of several stages is one chart. In every other group, keys with the same parent are one chart; a key
    with ``/min`` and ``/max`` is also drawn with a band between them, and what else is below such a key is a chart of
    its own. The layers of a key are one chart in a category of their own, after all others. Every key is on some
    chart, but for one that stands alone without a group.

    Args:
        keys: all logged keys, ``<group>/<name>[/…]``.

    Returns:
        Category to title to the kind of chart and its tags: ``Multiline`` with regular expressions, ``Margin`` with
        the tags of a line, its lower and its upper bound.
    """
    known = dict.fromkeys(keys)
    banded = {key for key in known if all(f"{key}/{bound}" in known for bound in _BOUNDS)}
    categories: dict[str, None] = {}
    lines: dict[tuple[str, int, str], list[str]] = {}  # by category, rank in it, title
    bands: dict[str, dict[str, Chart]] = {}
    for key in known:
        group, _, rest = key.partition("/")
        parent, _, name = key.rpartition("/")
        if not rest or (name in _BOUNDS and parent in banded):
            continue
        category, rank, title = group, 0, _title(key if parent == group else parent)
        if group in STAGES:
            category, title = "objective", _title(key)
        elif _LAYER.fullmatch(name):
            category = f"{group}, by layer"
        elif name in _ACROSS:
            rank, title = 2, _NAMES[name]
        elif parent in banded:
            rank, title = 1, f"{title}, by part"
        categories[category] = None
        if key in banded:
            bands.setdefault(category, {})[f"{_title(key)}, over layers"] = (
                "Margin",
                [tag_of(key), *(tag_of(f"{key}/{bound}") for bound in _BOUNDS)],
            )
        if key not in banded or (parent != group and parent not in banded):
            lines.setdefault((category, rank, title), []).append(key)
    layout: Layout = {}
    for category in sorted(categories, key=lambda name: (name != "objective", name.endswith("by layer"))):
        charts: list[dict[str, Chart]] = [{}, {}, {}]
        for (owner, rank, title), tags in lines.items():
            if owner == category:
                named = _title(tags[0]) if rank == 1 and len(tags) == 1 else title
                charts[rank][named] = ("Multiline", [f"^{re.escape(tag_of(tag))}$" for tag in tags])
        layout[category] = charts[0] | bands.get(category, {}) | charts[1] | charts[2]
    return layout


def _title(key: str) -> str:
    """A key without its group, for a person."""
    words = key.split("/")[1:]
    return " ".join(_NAMES.get(word, word.replace("_", " ")) for word in words)
