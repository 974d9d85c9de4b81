"""``app report``: one page about one run, or about several beside each other."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from app import __version__
from app.commands.compare import find_runs, read_json, read_run, reason, what_compares
from app.commands.page_file import page_file
from app.commands.parsing import CommandParser
from app.run import bounded
from app.run.atomic import write_text
from app.run.directory import RunDirectory
from app.run.errors import ConfigurationError, ExitCode
from app.run.paths import typed_path
from app.run.status import read_status
from app.run.storage import make_folder

if TYPE_CHECKING:
    from app.analysis.report import Material

#: drawn into the report as vectors
REDRAWN = "learning_curve.png"


def run(name: str, words: list[str]) -> int:
    """Reads the runs and writes the page.

    Args:
        name: ``report``.
        words: the rest of the command line: runs, and ``--output``.
    """
    options = command_parser().parse_args(words)
    directories, notes = find_runs(options.runs)
    target = _target(options.output, directories)

    from app.analysis.comparison import compare
    from app.analysis.report import report

    materials = {}
    for directory in directories:
        material = _read(directory, notes)
        if material is not None:
            materials[material.run.path] = material
    if not materials:
        raise ConfigurationError([*notes, "app report: none of these runs can be read"])
    comparison = compare([material.run for material in materials.values()])
    notes += what_compares(comparison)
    make_folder(target.parent, "--output")
    write_text(target, report(comparison, materials, notes, __version__))
    for note in notes:
        print(f"note     {note}")
    print(f"report   {target} ({target.stat().st_size / 1e6:.2f} MB); open it in a browser")
    return int(ExitCode.DONE)


def _read(directory: RunDirectory, notes: list[str]) -> "Material | None":
    from app.analysis.report import Material, read_lines

    found = read_run(directory, notes)
    if found is None:
        return None
    launches = read_json(directory.manifest, notes).get("launches")
    material = Material(found, status=read_status(directory.status) or {})
    material.launches = [x for x in launches if isinstance(x, dict)] if isinstance(launches, list) else []
    for file in ("samples", "health"):
        path = directory.path / f"{file}.jsonl"
        try:
            bounded.require_size(path, bounded.MAX_TABLE_BYTES)
            lines, n_damaged = read_lines(path)
        except FileNotFoundError:
            continue  # not every run has them
        except (OSError, ValueError) as error:
            notes.append(f"{path}: cannot be read ({reason(error)})")
            continue
        setattr(material, file, lines)
        if n_damaged:
            notes.append(f"{path}: {n_damaged} damaged line(s) left out")
    material.ablation = read_json(directory.path / "ablate" / "ablate.json", notes)
    material.routing = read_json(directory.path / "routing" / "routing.json", notes)
    if material.routing:
        pictures = _pictures(directory.path / "routing", notes)
        material.routing_figures = {path.name: content for path, content in pictures}
    material.figures = _figures(directory, notes)
    return material


def _figures(directory: RunDirectory, notes: list[str]) -> dict[str, bytes]:
    """The pictures of a run, those of its measures first, of them the shares that say what a token went through."""

    def rank(path: Path) -> tuple[bool, bool, str]:
        return not path.name.startswith("depth-"), not path.stem.endswith("share"), path.name

    pictures = sorted(_pictures(directory.figures, notes), key=lambda found: rank(found[0]))
    return {path.stem: content for path, content in pictures}


def _pictures(folder: Path, notes: list[str]) -> list[tuple[Path, bytes]]:
    """The PNG files of a folder with their content."""
    found = []
    for path in sorted(folder.glob("*.png")):
        if path.name == REDRAWN:
            continue
        try:
            content = bounded.read_bytes(path)
        except (OSError, ValueError) as error:
            notes.append(f"{path}: cannot be read ({reason(error)})")
            continue
        if content.startswith(b"\x89PNG\r\n\x1a\n"):
            found.append((path, content))
        else:
            notes.append(f"{path}: is no PNG file, left out")
    return found


def _target(output: str | None, directories: list[RunDirectory]) -> Path:
    """A file, or ``report.html`` in the folder that was named; by default in the run, or here for several."""
    if output is None:
        return directories[0].path / "report.html" if len(directories) == 1 else Path("report.html")
    return page_file(output, "report.html")


def command_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "report",
        description="Writes one HTML page about runs, which needs no network: results, curves, figures, text samples, "
        "health, configuration and environment. Runs that are equal up to the seed are one group.",
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=typed_path, help="run directories, or folders of runs"
    )
    parser.add_argument(
        "--output",
        type=typed_path,
        help="an .html file, or a folder for report.html (default report.html in the run; of several runs, here)",
    )
    return parser
