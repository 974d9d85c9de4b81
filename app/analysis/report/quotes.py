"""What runs have drawn and written themselves: figures and text samples."""

from collections.abc import Iterable, Sequence
from typing import Any

from app.analysis.comparison import Group
from app.analysis.figure_numbers import numbers_of
from app.analysis.html import Markup, element, png_image
from app.analysis.report import chart
from app.analysis.report.heat_maps import heat_maps
from app.analysis.report.material import Material
from app.analysis.report.values import cut

# What is quoted is bounded, so that a page of many runs still opens at once.
MAX_FIGURE_BYTES, MAX_RUNS_WITH_FIGURES = 12 * 2**20, 6
MAX_SAMPLE, MAX_SAMPLES_PER_KEY = 4000, 4
SAMPLER = "trainer.callbacks.TextSamples"


def figures(shown: Sequence[tuple[Group, Material]]) -> list[Markup]:
    """The heat-maps of all groups, and as pictures what carries no numbers.

    Args:
        shown: groups and the run that stands for each.
    """
    names = dict.fromkeys(name for _, material in shown for name in material.figures)
    pictures: list[Markup] = []
    drawn: list[tuple[str, str, int, dict[str, Any]]] = []
    n_bytes, n_left_out = 0, 0
    for name in names:
        words = name.removeprefix("depth-").replace("_", " ").replace("-", ", ")
        for number, (group, material) in enumerate(shown):
            content = material.figures.get(name, b"")
            n_bytes += len(content)
            if content and (number >= MAX_RUNS_WITH_FIGURES or n_bytes > MAX_FIGURE_BYTES):
                n_left_out += 1
            elif content and (numbers := numbers_of(content)) is not None:
                drawn.append((name, group.name, number, numbers))
            elif content:
                image = png_image(content, f"{words}, by layer and optimizer step")
                label = [element("figcaption", chart.key(number, group.name))] if len(shown) > 1 else []
                pictures.append(element("figure", *label, element("div", image, class_="scroll")))
    parts = [*heat_maps(drawn, [group.name for group, _ in shown]), *pictures]
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
            prompt = _prompt(material, picked[-1]["key"])
            newest += _quoted(picked[-1:], len(by_key) > 1, prompt)
            older += _quoted(reversed(picked[:-1]), len(by_key) > 1, prompt)
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


def _prompt(material: Material, key: str) -> str | None:
    """What a text continues, by its key; empty where it starts from nothing, None where that is not known."""
    temperature = material.run.configuration.get(f"{SAMPLER}.temperature")
    prompts = material.run.configuration.get(f"{SAMPLER}.prompts")
    if prompts is None:  # the callback's default, as far as it is the callback of ours
        return None if temperature is None else ""
    number = key.rpartition("/")[2]
    if not (isinstance(prompts, list) and number.isdecimal() and int(number) < len(prompts)):
        return None
    return str(prompts[int(number)])


def _quoted(lines: Iterable[dict[str, Any]], has_keys: bool, prompt: str | None) -> list[Markup]:
    parts = []
    for line in lines:
        label: list[object] = [f"after step {line['step']:,}" + (f", {line['key']}" if has_keys else "")]
        if prompt:
            label += [", continuing the prompt ", element("code", cut(prompt))]
        elif prompt is not None:
            label.append(", without a prompt")
        text = cut(line.get("text", ""), MAX_SAMPLE)
        given = [element("mark", prompt)] if prompt else []
        # The first line break after the tag would be dropped.
        parts += [element("div", *label, class_="soft"), element("pre", "\n", *given, text, tabindex="0")]
    return parts
