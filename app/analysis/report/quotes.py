"""What runs have drawn and written themselves: figures and text samples."""

from collections.abc import Iterable, Sequence
from typing import Any

from app.analysis.comparison import Group
from app.analysis.html import Markup, element, png_image
from app.analysis.report import chart
from app.analysis.report.material import Material
from app.analysis.report.values import cut

# What is quoted is bounded, so that a page of many runs still opens at once.
MAX_FIGURE_BYTES, MAX_RUNS_WITH_FIGURES = 12 * 2**20, 6
MAX_SAMPLE, MAX_SAMPLES_PER_KEY = 4000, 4
SAMPLER = "trainer.callbacks.TextSamples"


def figures(shown: Sequence[tuple[Group, Material]]) -> list[Markup]:
    """The pictures, those of one quantity of all groups below each other.

    Args:
        shown: groups and the run that stands for each.
    """
    names = dict.fromkeys(name for _, material in shown for name in material.figures)
    parts: list[Markup] = []
    n_bytes, n_left_out = 0, 0
    for name in names:
        words = name.removeprefix("depth-").replace("_", " ").replace("-", ", ")
        for number, (group, material) in enumerate(shown):
            content = material.figures.get(name, b"")
            n_bytes += len(content)
            if content and (number >= MAX_RUNS_WITH_FIGURES or n_bytes > MAX_FIGURE_BYTES):
                n_left_out += 1
            elif content:
                image = png_image(content, f"{words}, by layer and optimizer step")
                label = [element("figcaption", chart.key(number, group.name))] if len(shown) > 1 else []
                parts.append(element("figure", *label, image))
    if parts:
        how = (
            "Heat-maps: a row for each layer, 0 next to the embedding, or for each parameter; training runs from left "
            "to right; the scale beside says what a colour is worth."
        )
        parts.insert(0, element("p", how, class_="soft"))
    if n_left_out:
        parts.append(element("p", f"{n_left_out} more in the figures/ of the runs.", class_="soft"))
    return parts or [
        element("p", "No figures: they are drawn at validations by callbacks.DepthTimeFigures, for networks "
                "that report something by layer.", class_="soft")
    ]  # fmt: skip


def samples(shown: Sequence[tuple[Group, Material]]) -> list[Markup]:
    """Generated texts, newest first; of several groups the older ones are folded away.

    Args:
        shown: groups and the run that stands for each.
    """
    parts: list[Markup] = []
    for number, (group, material) in enumerate(shown):
        by_key: dict[str, list[dict[str, Any]]] = {}
        for sample in material.samples:
            by_key.setdefault(sample["key"], []).append(sample)
        newest, older = [], []
        for own in by_key.values():
            picked = [own[0], *own[1:][-(MAX_SAMPLES_PER_KEY - 1) :]]
            newest += _quoted(picked[-1:], len(by_key) > 1)
            older += _quoted(reversed(picked[:-1]), len(by_key) > 1)
        if not newest:
            continue
        if len(shown) > 1:
            parts.append(element("h3", chart.key(number, group.name)))
        temperature = material.run.configuration.get(f"{SAMPLER}.temperature")
        if temperature is not None:
            parts.append(element("p", f"Generated at temperature {cut(temperature)}.", class_="soft"))
        parts += newest
        if older and len(shown) > 1:
            parts.append(element("details", element("summary", "earlier in training"), *older))
        else:
            parts += older
    return parts or [element("p", "None: callbacks.TextSamples writes them at validations.", class_="soft")]


def _quoted(lines: Iterable[dict[str, Any]], has_keys: bool) -> list[Markup]:
    parts = []
    for line in lines:
        label = f"after step {line['step']:,}" + (f", {line['key']}" if has_keys else "")
        text = cut(line.get("text", ""), MAX_SAMPLE)
        # The first line break after the tag would be dropped.
        parts += [element("div", label, class_="soft"), element("pre", f"\n{text}", tabindex="0")]
    return parts
