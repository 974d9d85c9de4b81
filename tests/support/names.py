"""Names of a test's cases."""

from typing import Any


def name_of(value: Any) -> str:
    """As ``str``, but the same in every process: the words of a set in their order."""
    return str(sorted(value)) if isinstance(value, set) else str(value)
