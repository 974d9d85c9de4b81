"""The report: what was trained, how it went, what it looked like inside, and with what it was made."""

from collections.abc import Mapping, Sequence

from app.analysis.comparison import Comparison, Group
from app.analysis.html import Markup, breakable, element, page, table
from app.analysis.report import chart, heat_maps
from app.analysis.report.ablations import ablations
from app.analysis.report.curves import curves
from app.analysis.report.findings import findings
from app.analysis.report.made_with import configurations, environments
from app.analysis.report.material import Material
from app.analysis.report.quotes import figures, samples
from app.analysis.report.results import differences, results
from app.analysis.report.routing import STYLE as ROUTING_STYLE
from app.analysis.report.routing import routing
from app.analysis.report.values import cut, model_of, name_of, setup_of, short_names


def report(
    comparison: Comparison, materials: Mapping[str, Material], notes: Sequence[str], version: str
) -> str:
    """The page.

    Args:
        comparison: of all runs; of one run, one group.
        materials: path of a run to what it has left.
        notes: what a reader should know of the reading itself.
        version: of the program.
    """
    groups = comparison.groups
    is_single = len(materials) == 1
    title = _title(groups, materials)
    # The first run of each group stands for it where one has to.
    shown = [(group, materials[group.runs[0].path]) for group in groups]
    body = [element("h1", title), *_overview(groups, materials)]
    if notes:
        body += _section("Notes", [element("ul", *(element("li", note) for note in notes))])
    body += _section("Results", results(comparison, is_single))
    body += _section("Curves", curves(comparison, is_single))
    if len(groups) > 1:
        body += _section("What differs", differences(comparison))
    body += _section("Health", findings(materials, short_names(groups)))
    inside = figures(shown)
    body += _section("Inside the network", inside)
    body += _section("Without a part", ablations(shown))
    body += _section("Banks and routes", routing(shown))
    body += _section("Text samples", samples(shown))
    body += _section("Configuration", configurations(shown))
    body += _section("Environment", environments(materials))
    body.append(element("p", f"archlab {version}, app report", class_="soft"))
    script = heat_maps.SCRIPT if any(f'id="{heat_maps.PLACE}"' in part for part in inside) else ""
    return page(f"Report: {title}", body, style=chart.STYLE + heat_maps.STYLE + ROUTING_STYLE, script=script)


def _title(groups: Sequence[Group], materials: Mapping[str, Material]) -> str:
    if len(groups) > 1:
        count = "" if len(materials) == len(groups) else f" in {len(groups)} groups"
        return f"Comparison of {len(materials)} runs{count}"
    run = groups[0].runs[0]
    name = ": ".join(filter(None, (model_of(run), name_of(run))))
    return f"{name}, {len(materials)} runs" if len(materials) > 1 else name


def _section(title: str, parts: Sequence[Markup]) -> list[Markup]:
    return [element("section", element("h2", title), *parts)] if parts else []


def _overview(groups: Sequence[Group], materials: Mapping[str, Material]) -> list[Markup]:
    if len(materials) == 1:
        (material,) = materials.values()
        state = element("p", f"{material.run.path}: {_state(material)}", class_="soft")
        setup = setup_of(material.run)
        return [element("p", setup), state] if setup else [state]
    rows = [
        [chart.key(number, group.letter), model_of(run), cut(run.text), breakable(run.path), run.seed,
         _state(materials[run.path])]
        for number, group in enumerate(groups)
        for run in [*group.runs, *group.repeats]
    ]  # fmt: skip
    return [table(["", "model", "text", "run", "seed", "state"], rows)]


def _state(material: Material) -> str:
    reason = f" ({cut(material.status['reason'])})" if material.status.get("reason") else ""
    return f"{material.run.state} at step {material.run.last_step:,}{reason}"
