"""What a measurement or a check has found, as lines of at most 80 columns and as plain values."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.bench import models, operators, tax

WIDTH = 80
INDENT = " " * 8
MOST_SHOWN = 3  # tensors of one comparison that are wrong


@dataclass(frozen=True)
class Finding:
    """Outcome of one comparison.

    Attributes:
        name: of what was compared.
        where: sizes and number format, in words.
        errors: by name of the tensor the relative error and its limit; a limit of 0 asks for equal bits.
        n_near_ties: decisions that rounding may turn, which were left out.
        path: of a step, or form of an operator.
        subject: how the table of what has passed names the network or the operator.
        problem: why nothing could be compared, in words; empty where it could.
        skipped: why it was not to be compared here, in words; empty where it was.
    """

    name: str
    where: str
    errors: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    n_near_ties: int = 0
    path: str = ""
    subject: str = ""
    problem: str = ""
    skipped: str = ""

    @property
    def wrong(self) -> dict[str, tuple[float, float]]:
        """The errors above their limits; one that is no number is."""
        return {name: pair for name, pair in self.errors.items() if not pair[0] <= pair[1]}

    @property
    def passed(self) -> bool:
        """Whether all is as it should be."""
        return not self.problem and not self.wrong

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"passed": self.passed}


def check_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """A row below :data:`CHECK_TITLES` for each name that was compared; below them what is wrong."""
    names: dict[str, list[Finding]] = {}
    for finding in findings:
        if not finding.skipped:
            names.setdefault(finding.name, []).append(finding)
    for name, found in names.items():
        failed = any(not each.passed for each in found)
        pairs = [pair for each in found for pair in each.errors.values()]
        ties = sum(each.n_near_ties for each in found)
        counts = f"{len(found):,}", f"{len(pairs):,}", _worst(pairs), f"{ties:,}"
        yield _check_row("failed" if failed else "ok", name, *counts)
    for each in findings:
        if not each.passed:
            yield from _wrong(each)


def _check_row(mark: str, name: str, calls: str, tensors: str, worst: str, ties: str) -> str:
    return f"{mark:<7} {name:<41}{calls:>6}{tensors:>9}{worst:>9}{ties:>7}"


#: ``worst`` is the largest error over its limit; ``ties`` are decisions that were left out
CHECK_TITLES = _check_row("", "compared", "calls", "tensors", "worst", "ties")


def _worst(pairs: Sequence[tuple[float, float]]) -> str:
    if not pairs:
        return "-"
    if all(limit == 0 for _, limit in pairs):
        return "differ" if any(error for error, _ in pairs) else "equal"
    return f"{max(error / limit for error, limit in pairs):.0%}"


def skipped_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """A line for each reason why something was not compared."""
    counts: dict[tuple[str, str], int] = {}
    for finding in findings:
        if finding.skipped:
            key = (finding.path, finding.skipped)
            counts[key] = counts.get(key, 0) + 1
    for (path, reason), n in counts.items():
        yield f"skipped {path}, {n} configurations: {reason}"


def _wrong(finding: Finding) -> Iterator[str]:
    yield f"failed  {finding.name}, {finding.where}"
    if finding.problem:
        yield from textwrap.wrap(finding.problem, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT)
    for tensor, (error, limit) in list(finding.wrong.items())[:MOST_SHOWN]:
        yield f"{INDENT}{tensor}: {error:.1e} > {limit:.0e}" if limit else f"{INDENT}{tensor}: {error:.1e}"
    if len(finding.wrong) > MOST_SHOWN:
        yield f"{INDENT}and {len(finding.wrong) - MOST_SHOWN} tensors more"


def operator_lines(rows: "Sequence[operators.Row]") -> Iterator[str]:
    """A table of one operator at one size; its size stands above it."""
    sizes = "  ".join(
        f"{letter} {value}" for letter, value in rows[0].size._asdict().items() if letter in "BTDN"
    )
    yield f"\n{rows[0].case}  {sizes}"
    cells = [
        (
            row.form,
            row.what,
            _milliseconds(row.timing.median),
            f"{row.timing.spread:.0%}",
            f"{row.n_bytes / 2**20:,.3g}",
            f"{row.flops / 1e9:,.3g}",
            f"{row.copy_share:.0%}",
            "-" if row.product_share is None else f"{row.product_share:.0%}",
            f"{row.speedup:.3g}",
        )
        for row in rows
    ]
    columns = ("form", "pass", "ms", "spread", "MiB", "GFLOP", "copy", "product", "x naive")
    yield from table(columns, cells, n_left=2)


def model_lines(title: str, rows: "Sequence[models.Row]") -> Iterator[str]:
    """A table of one network at one size."""
    yield f"\n{title}"
    cells = [
        (
            row.path,
            _milliseconds(row.timing.median),
            f"{row.timing.spread:.0%}",
            f"{row.tokens / row.timing.median:,.0f}",
            f"{row.n_bytes / 2**20:,.3g}",
            f"{row.flops / 1e9:,.3g}",
            f"{row.copy_share:.0%}",
            f"{row.product_share:.0%}",
            "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**30:.2f}",
            "-" if row.speedup is None else f"{row.speedup:.3g}",
        )
        for row in rows
    ]
    columns = ("path", "ms", "spread", "tok/s", "MiB", "GFLOP", "copy", "product", "GiB", "x naive")
    yield from table(columns, cells, n_left=1)


def tax_lines(rows: "Sequence[tax.Row]") -> list[str]:
    """A table of the loops; the bare loop ran between the windows of each."""
    cells = [
        (
            row.loop,
            row.path,
            _milliseconds(row.timing.median),
            _milliseconds(row.bare.median),
            f"{1e3 * row.tax:+.3g}",
            f"{1e3 * min(row.taxes):+.3g} to {1e3 * max(row.taxes):+.3g}",
            f"{row.tax / row.bare.median:+.1%}",
        )
        for row in rows
    ]
    columns = ("loop", "path", "ms", "bare ms", "tax ms", "windows", "of bare")
    return table(columns, cells, n_left=2)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.4g}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], n_left: int) -> list[str]:
    """Columns as wide as they need to be.

    Args:
        columns: their titles.
        rows: a cell for each.
        n_left: columns, from the first on, that stand at the left.
    """
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    lines = []
    for row in (columns, *rows):
        cells = [
            f"{cell:<{width}}" if place < n_left else f"{cell:>{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
