"""With what runs were made: all of their settings, and each launch's machine, versions and command."""

from collections.abc import Mapping, Sequence
from typing import Any

from app.analysis.comparison import Group
from app.analysis.html import Markup, breakable, element, table
from app.analysis.report.material import Material
from app.analysis.report.values import cell, cut

MAX_LAUNCHES = 12


def configurations(shown: Sequence[tuple[Group, Material]]) -> list[Markup]:
    """All settings that have a value, folded away.

    Args:
        shown: groups and the run that stands for each.
    """
    parts = []
    for group, material in shown:
        rows = [
            [element("code", breakable(cut(key))), cell(value)]
            for key, value in material.run.configuration.items()
            if value is not None
        ]
        label = f"all {len(rows)} settings" if len(shown) == 1 else f"{group.name}: {len(rows)} settings"
        parts.append(element("details", element("summary", label), table(["setting", "value"], rows)))
    return parts


def environments(materials: Mapping[str, Material]) -> list[Markup]:
    """Each run's launches.

    Args:
        materials: path of a run to what it has left.
    """
    parts = []
    for material in materials.values():
        rows = [_launch(number, launch) for number, launch in enumerate(material.launches, 1)]
        if not rows:
            continue
        shown = table(["launch", "when", "where", "with", "command"], rows[-MAX_LAUNCHES:])
        label = f"{material.run.path}: {len(rows)} launch" + ("es" if len(rows) > 1 else "")
        attributes = {"open": "open"} if len(materials) == 1 else {}
        parts.append(element("details", element("summary", label), shown, **attributes))
    return parts or [element("p", "run.json does not say.", class_="soft")]


def _launch(number: int, launch: Mapping[str, Any]) -> list[object]:
    packages = launch.get("packages")
    known = packages if isinstance(packages, Mapping) else {}
    names = ("torch", "lightning", "numpy")
    versions = [f"Python {launch['python']}"] if launch.get("python") else []
    versions += [f"{name} {known[name]}" for name in names if known.get(name)]
    source = f"commit {str(launch.get('commit'))[:12]}" if launch.get("commit") else "no repository"
    if launch.get("source_diff_sha256"):
        source += " with changes (source.diff)"
    command = launch.get("command")
    words = " ".join(map(str, command)) if isinstance(command, list) else str(command)
    changes = launch.get("changes")
    notes = [f"resumed from {launch['resumed_from']}"] if launch.get("resumed_from") else []
    notes += [f"changed {change}" for change in changes] if isinstance(changes, list) else []
    where = [str(launch[key]) for key in ("host", "device") if launch.get(key)]
    where += [f"world size {launch['world_size']}"] if launch.get("world_size") else []
    when = str(launch.get("time", "")).replace("T", " ").replace("Z", " UTC")
    return [
        number,
        cut(when),
        cut(", ".join(where)),
        cut(f"{', '.join(versions)}; {source}"),
        element("code", cut("; ".join([words, *notes]))),
    ]
