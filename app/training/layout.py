"""Which curves belong on one chart, read off the keys that are logged."""

import re
from collections.abc import Iterable

STAGES = ("train", "val", "test")
_LAYER = re.compile(r"l\d\d+")
_SUMMARIES = ("min", "max", "worst_layer", "worst_deviation")

Layout = dict[str, dict[str, tuple[str, list[str]]]]


def custom_scalars(keys: Iterable[str]) -> Layout:
    """The custom-scalars layout of TensorBoard: a category per group, whatever the architecture.

    An objective of several stages is one chart. In every other group, keys with the same parent are one chart, as
    are the layers of a key; a key with ``/min`` and ``/max`` is drawn with a band between them.

    Args:
        keys: all logged keys, ``<group>/<name>[/…]``.

    Returns:
        Category to title to the kind of chart and its tags: ``Multiline`` with regular expressions, ``Margin`` with
        the tags of a line, its lower and its upper bound.
    """
    known = dict.fromkeys(keys)
    layout: Layout = {"objective": {}}
    lines: dict[tuple[str, str], list[str]] = {}
    for key in known:
        group, _, rest = key.partition("/")
        parent, _, name = key.rpartition("/")
        if not rest:
            continue
        if group in STAGES:
            lines.setdefault(("objective", _title(key)), []).append(key)
        elif _LAYER.fullmatch(name):
            lines.setdefault((group, f"{_title(parent)}, by layer"), []).append(key)
        elif name not in _SUMMARIES:
            title = _title(key if parent == group else parent)
            lines.setdefault((group, title), []).append(key)
            if f"{key}/min" in known and f"{key}/max" in known:
                band = [key, f"{key}/min", f"{key}/max"]
                layout.setdefault(group, {})[f"{_title(key)}, over layers"] = ("Margin", band)
    for (category, title), tags in lines.items():
        is_drawn_with_band = f"{title}, over layers" in layout.get(category, {})
        if not is_drawn_with_band:
            expressions = [f"^{re.escape(tag)}$" for tag in tags]
            layout.setdefault(category, {})[title] = ("Multiline", expressions)
    return {category: charts for category, charts in layout.items() if charts}


def _title(key: str) -> str:
    """A key without its group, for a person."""
    return " ".join(key.split("/")[1:]).replace("_", " ")
