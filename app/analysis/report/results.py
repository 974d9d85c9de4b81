"""The figures of the runs, and what the runs differ in."""

import math
import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

from app.analysis.comparison import Comparison, Group, Spread, told_apart
from app.analysis.html import Markup, breakable, element, table
from app.analysis.report import chart
from app.analysis.report.values import cell


class Figure(NamedTuple):
    """How a figure is called below each other and as the title of a column, and how it is written."""

    name: str
    title: str
    digits: str = ",.4f"


FIGURES = {
    "val/loss": Figure("validation loss, nats per token", "val loss"),
    "val/bpb": Figure("validation, bits per byte", "val bpb"),
    "val/unknown_share": Figure("validation tokens that are unknown words", "unknown words", ".2%"),
    "val/word_perplexity": Figure("validation, perplexity per word", "val word perplexity", ",.2f"),
    "best/val_loss": Figure("best validation loss, nats per token", "best val"),
    "best/step": Figure("best validation at step", "at step", ",.0f"),
    "train/loss": Figure("training loss of the last logged step, nats per token", "train loss"),
    "baseline/count_loss": Figure(
        "for comparison: counting what follows in the same text, nats per token", "counts"
    ),
    "baseline/count_bpb": Figure("the same in bits per byte", "counts bpb"),
    "samples/known_word_share": Figure(
        "generated words of four letters and more that the text contains", "known words", ".0%"
    ),
    "baseline/count_known_word_share": Figure(
        "for comparison: the same of words drawn from the counts", "known words of counts", ".0%"
    ),
    "tokens_seen": Figure("tokens seen", "tokens", ",.0f"),
    "speed/seconds": Figure("training time without validation, s", "seconds", ",.1f"),
    "tokens_per_second": Figure("tokens per second", "tokens/s", ",.0f"),
    "parameters": Figure("parameters", "parameters", ",.0f"),
}
#: what the titles of columns leave out
EXPLAINED = {
    "val/loss": "losses are in nats per token",
    "val/bpb": "bpb in bits per byte",
    "val/unknown_share": "unknown words: validation tokens that stand for a word which the vocabulary has not; with "
    "them, bits per byte and word perplexity are left out",
    "train/loss": "train loss: of the last logged step",
    "baseline/count_loss": "counts: a model that only counts what follows in the same text, for comparison",
    "samples/known_word_share": "known words: generated words of four letters and more that the text contains",
    "speed/seconds": "seconds: of training, without validation",
}
#: figures that are in a run's summary alone
FROM_SUMMARY = ("val/word_perplexity", "samples/known_word_share", "baseline/count_known_word_share")
#: settings that decide a result, first to last
ORDER = ("model.class_path", "model.", "data.class_path", "data.init_args.", "trainer.")


def results(comparison: Comparison, is_single: bool) -> list[Markup]:
    """A table of all figures: one run's below each other, groups as rows.

    Args:
        comparison: of one run or of several.
        is_single: of one run.
    """
    groups = comparison.groups
    found = [_spreads(group) for group in groups]
    keys = [key for key in FIGURES if any(key in spreads for spreads in found)]
    if not keys:
        return [element("p", "Nothing logged yet.", class_="soft")]
    if is_single:
        return [
            table(["", ""], [[FIGURES[key].name, _written(key, found[0][key])] for key in keys], numbers=[1])
        ]
    # What compares comes first.
    keys.sort(key=lambda key: key != comparison.loss_key)
    means = [spreads[comparison.loss_key].mean for spreads in found if comparison.loss_key in spreads]
    best = min(means) if len(means) > 1 and len(comparison.texts) < 2 else None
    rows = []
    for number, (group, spreads) in enumerate(zip(groups, found, strict=True)):
        row: list[object] = [element("span", chart.key(number, group.name), class_="name")]
        for key in keys:
            text = _written(key, spreads[key]) if key in spreads else "–"
            is_best = key == comparison.loss_key and key in spreads and spreads[key].mean == best
            row.append(element("strong", text) if is_best else text)
        rows.append(row)
    parts = [table(["", *(FIGURES[key].title for key in keys)], rows, numbers=range(1, len(keys) + 1))]
    said = [f"Bold: the lowest {FIGURES[comparison.loss_key].title}."] if best is not None else []
    if any(len(group.runs) > 1 for group in groups):
        said.append("Mean ± sample standard deviation over seeds.")
    said.append("; ".join(sentence for key, sentence in EXPLAINED.items() if key in keys).capitalize() + ".")
    parts.append(element("p", " ".join(said), class_="soft"))
    return parts


def differences(comparison: Comparison) -> list[Markup]:
    """What was asked for in another way, what decides most first; the rest folded away."""
    found = comparison.differences
    if not found:
        return [element("p", "No setting; the groups have come to different steps.", class_="soft")]
    configured = {key for group in comparison.groups for key in group.runs[0].configuration}
    told, _ = told_apart(found)
    deciding, partial, watching, surroundings = [], [], [], []
    for key in found:
        if key not in configured:
            surroundings.append(key)
        elif ".callbacks." in key:
            watching.append(key)
        elif key not in told:
            partial.append(key)
        else:
            deciding.append(key)
    deciding.sort(
        key=lambda key: next((i for i, start in enumerate(ORDER) if key.startswith(start)), len(ORDER))
    )
    parts = [_table(comparison, deciding)] if deciding else []
    if not deciding:
        parts.append(element("p", "No setting of model, data or training.", class_="soft"))
    for name, keys in (
        ("settings that only some of these classes have", partial),
        ("settings of callbacks, which watch and change no weight", watching),
        ("facts of machine, versions and data", surroundings),
    ):
        if keys:
            shown = _table(comparison, keys)
            parts.append(element("details", element("summary", f"{len(keys)} {name}"), shown))
    return parts


def _table(comparison: Comparison, keys: Iterable[str]) -> Markup:
    rows = [[element("code", breakable(key)), *map(cell, comparison.differences[key])] for key in keys]
    names = (f"{group.letter} {group.label}" for group in comparison.groups)
    return table(["setting", *names], rows)


def _spreads(group: Group) -> dict[str, Spread]:
    spreads = dict(group.figures())
    for key in FROM_SUMMARY:
        values: list[Any] = [run.summary.get(key) for run in group.runs]
        if all(isinstance(value, int | float) and math.isfinite(value) for value in values):
            sd = statistics.stdev(values) if len(values) > 1 else 0.0
            spreads[key] = Spread(statistics.fmean(values), sd, len(values))
    return spreads


def _written(key: str, spread: Spread) -> str:
    digits = FIGURES[key].digits
    is_loss = key.startswith(("val/", "best/val", "train/")) and key != "val/unknown_share"
    sd = f" ± {spread.sd:{digits}}" if spread.n > 1 and (spread.sd or is_loss) else ""
    return f"{spread.mean:{digits}}{sd}"
