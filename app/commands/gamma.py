"""``app gamma``: gains over depth, the forms that they follow, and the attention temperature they imply."""

import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.run.atomic import staged, storage_error, write_json
from app.run.checkpoint import verify
from app.run.content import foreign_content
from app.run.directory import resolve_run
from app.run.errors import ConfigurationError, ExitCode, IntegrityError
from app.run.plan import weights_of

if TYPE_CHECKING:
    from app.analysis.gamma import Gammas
    from app.analysis.gamma_families import Scales

#: what `torch.save` has written
ARCHIVES = (".ckpt", ".pt", ".pth", ".bin")

FITS_LEGEND = """\
         * best by AICc, which is of ln y; L counts layers from 0
         linear a + bL; power a (L+1)^b; exponential a e^(bL); power_offset a + b (L+1)^c; piecewise a1 e^(b1 (L+1))
         where L+1 < split, a2 e^(b2 (L+1)) from there on
         walks: r2 of ln that the form reaches on 200 random walks in ln y, median / 95th percentile
         chance: share of the walks that it fits at least as well; a trend that could be one has a large p"""

USAGE = """usage: app gamma CHECKPOINT [--output DIR]

Reads the scale of every kind of norm and matrix in every layer, fits five forms over depth, and derives the attention
temperature. The file is read tensor by tensor: a model of any size fits in little memory.

  CHECKPOINT   a run directory (its best checkpoint), a .ckpt, .safetensors, .pt, .pth or .bin file, a directory of
               .safetensors files, or a gamma.json that this command has written
  --output     folder for gamma.json and gamma.png; by default the current one"""


def run(name: str, words: list[str]) -> int:
    """Reads, analyses, prints and writes.

    Args:
        name: ``gamma``.
        words: the rest of the command line, the checkpoint first.
    """
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return int(ExitCode.DONE if words else ExitCode.CONFIGURATION)
    if words[0].startswith("-"):
        raise ConfigurationError("app gamma: the checkpoint comes first: app gamma CHECKPOINT [--output DIR]")
    source, output = Path(words[0]), _output(words[1:])
    if not source.exists():
        raise ConfigurationError(f"{source}: there is no such file or directory")

    from app.analysis.gamma import analyse
    from app.analysis.gamma_figure import draw

    scales, title = _scales(source)
    gammas = analyse(scales)
    _print(gammas, title)
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / "gamma.json", {"source": title} | gammas.as_dict())
        with staged(output / "gamma.png") as temporary:
            draw(gammas, temporary, f"Gains over depth: {title}")
            os.replace(temporary, output / "gamma.png")
    except OSError as error:
        raise storage_error(error, output) from error
    print(f"written  {output / 'gamma.json'}\n         {output / 'gamma.png'}")
    return int(ExitCode.DONE)


def _output(words: list[str]) -> Path:
    given = Path()
    rest = iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag != "--output":
            raise ConfigurationError(f"app gamma: unknown option {word!r}; there is --output DIR")
        value = value if equals else next(rest, "")
        if not value or value.startswith("--"):
            raise ConfigurationError("--output: a value is missing; write --output DIR")
        given = Path(value)
    return given


def _scales(source: Path) -> tuple["Scales", str]:
    """The scales of whatever was named, and its name for a person."""
    from app.analysis.gamma_families import Scales, stored_scales
    from app.analysis.stored_tensors import find

    try:
        if source.suffix == ".json":
            content = json.loads(source.read_text())
            title = content.get("source", source.name) if isinstance(content, dict) else source.name
            return Scales.from_dict(content), str(title)
        model_type, title = "", source.resolve().name
        if source.is_dir() and not any(source.glob("*.safetensors")) and not any(source.glob("*.bin")):
            run, _ = resolve_run(source)
            source = weights_of(str(source))
            title = f"{run.path.resolve().name}, {source.name}"
        elif (source / "config.json").is_file():
            configuration: Any = json.loads((source / "config.json").read_text())
            model_type = str(configuration.get("model_type", "")) if isinstance(configuration, dict) else ""
        if source.suffix == ".ckpt":
            verify(source, require_sidecar=False)
        if source.is_file() and source.suffix in ARCHIVES:
            with source.open("rb") as file:
                problem = foreign_content(file)
            if problem is not None:
                raise IntegrityError(f"{source}: {problem}\nuse another checkpoint")
        return stored_scales(find(source), model_type), title
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{source}: is no text") from error
    except RecursionError as error:
        raise ConfigurationError(f"{source}: is nested too deep") from error
    except ValueError as error:
        reason = str(error) if str(source) in str(error) else f"{source}: {error}"
        raise ConfigurationError(reason) from error


def _print(gammas: "Gammas", title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from app.analysis.gamma import theory

    scales = gammas.scales
    n_layers = max(len(row) for row in scales.rms.values())
    terminal = Console(width=None if sys.stdout.isatty() else 180, highlight=False)
    print(
        f"gains    {title}: {len(scales.rms)} families over {n_layers} layers"
        + (", gains are 1 + w" * scales.one_plus)
    )

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in (
        "family",
        "first",
        "last",
        "last/first",
        "form",
        "parameters",
        "r2",
        "r2 of ln",
        "AICc",
        "walks",
        "chance",
    ):
        table.add_column(heading, justify="left" if heading in ("family", "form", "parameters") else "right")
    for family, fits in gammas.fits.items():
        _, values = scales.series(family)
        first = [
            family,
            f"{values[0]:.4g}",
            f"{values[-1]:.4g}",
            f"{values[-1] / values[0]:.3f}" if values[0] else "-",
        ]
        if all(fit.undefined for fit in fits.values()):
            table.add_row(*first, "undefined", fits["linear"].undefined, *[""] * 5, end_section=True)
            continue
        for number, (form, fit) in enumerate(fits.items()):
            mark = "*" if gammas.best[family] == form else " "
            cells = first if number == 0 else [""] * 4
            if fit.undefined:
                row = [f"{mark} {form}", f"undefined: {fit.undefined}", *[""] * 5]
            else:
                parameters = ", ".join(f"{name} {value:.4g}" for name, value in fit.parameters.items())
                row = [
                    f"{mark} {form}",
                    parameters,
                    f"{fit.r2:.4f}",
                    _number(fit.r2_log, ".4f"),
                    _number(fit.aicc, ".1f"),
                    *_against_walks(gammas.chance.get(family, {}).get(form)),
                ]
            table.add_row(*cells, *row, end_section=number == len(fits) - 1)
    terminal.print(table)
    if any(gammas.best.values()):
        print(FITS_LEGEND)
    print()
    _print_temperature(gammas, terminal)
    constant = theory(n_layers)
    print(
        f"theory   constant in depth for M = {n_layers} layers: DeepNorm alpha (2M)^1/4 = "
        f"{constant['deepnorm_alpha']:.4f}, beta (8M)^-1/4 = {constant['deepnorm_beta']:.4f}; depth-muP branches "
        f"1/sqrt(L) = {constant['depth_mup_branch']:.4f}"
    )


def _against_walks(chance: "dict[str, float] | None") -> tuple[str, str]:
    """The cells of the columns ``walks`` and ``chance``."""
    if chance is None:
        return "-", "-"
    return f"{chance['median']:.2f} / {chance['q95']:.2f}", f"p {chance['p']:.3f}"


def _print_temperature(gammas: "Gammas", terminal: Any) -> None:
    from rich import box
    from rich.table import Table

    family = gammas.attention_norm or next((f for f, k in gammas.scales.kinds.items() if k == "norm"), None)
    if family is None or not gammas.temperatures:
        return
    layers, values = gammas.scales.series(family)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"gain of {family}", title_justify="left")
    for heading in ("layer", "gain", "gain/first", "ln gain", *(f"T {name}" for name in gammas.temperatures)):
        table.add_column(heading, justify="right")
    by_layer = [dict(zip(t.layers, t.values, strict=True)) for t in gammas.temperatures.values()]
    for layer, value in zip(layers, values, strict=True):
        ratio = f"{value / values[0]:.4f}" if values[0] else "-"
        logarithm = f"{math.log(value):.4f}" if value > 0 else "-"
        temperatures = [f"{own[layer]:.4f}" if layer in own else "-" for own in by_layer]
        table.add_row(str(layer), f"{value:.4f}", ratio, logarithm, *temperatures)
    terminal.print(table)
    for name, temperature in gammas.temperatures.items():
        print(f"cooling  {name}, {temperature.rule}")
        for law in temperature.laws.values():
            text = law.undefined or ", ".join(f"{key} {value:.4g}" for key, value in law.parameters.items())
            r2 = "" if law.undefined else f", r2 {_number(law.r2, '.4f')}"
            print(f"         {law.law:<12} {text}{r2}" + (f"; {law.note}" if law.note else ""))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
