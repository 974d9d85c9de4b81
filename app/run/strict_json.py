"""JSON that every reader takes: it has no number for infinity and for what is no number, and so none is written."""

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(values: Any, **layout: Any) -> str:
    """Plain values as JSON, with null for every number that is not finite.

    Args:
        values: nested mappings, lists and tuples of plain values; arrays and tensors become lists.
        layout: ``indent`` and the like, as of :func:`json.dumps`.
    """
    return json.dumps(finite(values), allow_nan=False, **layout)


def finite(values: Any) -> Any:
    """The same values with None for every number that is not finite."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, Mapping):
        return {key: finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
