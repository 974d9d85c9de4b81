"""What a data set was read from and what was left out, for people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from datamodules.split_names import NAMES

MAX_NAMED = 5  # names in one line


@dataclass(frozen=True)
class Listing:
    """What became of the files of a folder, or of the splits of a data set.

    Attributes:
        read: by split, the names of what is read, at least one each; ``train`` alone is the whole text.
        skipped: by reason, the names of what is not.
        is_named: whether it was the names that told the splits.
    """

    read: Mapping[str, Sequence[str]]
    skipped: Mapping[str, Sequence[str]] = field(default_factory=dict)
    is_named: bool = True

    def lines(self) -> list[str]:
        """One line per split and per reason, however many files there are."""
        found = []
        for split, names in self.read.items():
            found.append(f"{NAMES[split] if self.is_named else 'text':<11} {some(names)}")
            if split == "train" and "val" not in self.read:
                cut = "validation is" if self.is_named else "the other splits are"
                found.append(f"{'':<11} {cut} cut from its end")
        return found + self.skipped_lines()

    def skipped_lines(self) -> list[str]:
        """One line per reason."""
        return [f"{'skipped':<11} {some(names)} ({reason})" for reason, names in self.skipped.items()]


def some(names: Sequence[str]) -> str:
    """The first names, and how many there are if that is more."""
    shown = ", ".join(map(printable, names[:MAX_NAMED]))
    return shown if len(names) <= MAX_NAMED else f"{len(names):,}: {shown}, … {len(names) - MAX_NAMED:,} more"


def printable(name: str) -> str:
    """A name that no line end, terminal sequence or undecodable byte of it spoils a line with."""
    return "".join(c if c.isprintable() else "\ufffd" for c in name)
