"""Where TensorBoard shows a number: objectives first, what watchers say after them, and nothing that never changes."""

import math
from collections.abc import Iterable, Mapping

STAGES = ("train", "val", "test")
#: groups whose numbers are shown from the first one on; those of a clock change by themselves
AT_ONCE = (*STAGES, "speed")
#: the one objective that most networks do not have: theirs is 0
OFTEN_NONE = "train/aux_loss"
#: its tag: TensorBoard sorts cards by name, and by its own it would be the first of all
AFTER_LOSS = "train/loss, auxiliary"
#: TensorBoard sorts groups by name; these come after the objectives'
WATCHED = "watched"


def tag_of(key: str) -> str:
    """The tag of a key: objectives keep theirs, all else is in groups of few cards, its parts in groups of their own.

    ``train/loss`` stays, ``train/aux_loss`` follows it as ``train/loss, auxiliary``, ``balance/dead_banks`` becomes
    ``watched balance/dead_banks``, ``balance/dead_banks/dense`` ``watched balance, in parts/dead_banks/dense``,
    ``tokens_seen`` ``watched run/tokens_seen``.
    """
    if key == OFTEN_NONE:
        return AFTER_LOSS
    group, _, rest = key.partition("/")
    if group in STAGES and rest:
        return key
    if not rest:
        return f"{WATCHED} run/{group}"
    return f"{WATCHED} {group}, in parts/{rest}" if "/" in rest else f"{WATCHED} {group}/{rest}"


class Changing:
    """Which keys have a curve: objectives and speeds at once, all else from its second value on.

    The files of the run have every number.

    Args:
        rows: numbers by key that were logged before, first to last.
    """

    def __init__(self, rows: Iterable[Mapping[str, float]] = ()):
        self._first: dict[str, float] = {}
        self._changed: set[str] = set()
        for row in rows:
            self.of(row)

    @property
    def seen(self) -> list[str]:
        """All keys in the order in which they were first logged."""
        return list(self._first)

    def has(self, key: str) -> bool:
        """Whether a key has a curve by now."""
        return key in self._changed

    def of(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Those of a step's numbers that belong to a curve."""
        shown = {}
        for key, number in numbers.items():
            value = float(number)
            first = self._first.setdefault(key, value)
            if key not in self._changed:
                is_constant = value == first or (math.isnan(value) and math.isnan(first))
                if is_constant and (key == OFTEN_NONE or key.partition("/")[0] not in AT_ONCE):
                    continue
                self._changed.add(key)
            shown[key] = value
        return shown
