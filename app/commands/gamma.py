"""``app gamma``: gains over depth, the forms that they follow, and the attention temperature they imply."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands.parsing import CommandParser
from app.commands.picture import write_picture
from app.run.atomic import write_json
from app.run.bounded import read_json
from app.run.checkpoint import verify
from app.run.content import ContentError
from app.run.directory import resolve_run
from app.run.errors import ConfigurationError, ExitCode, IntegrityError
from app.run.launching import weights_of
from app.run.paths import typed_path
from app.run.storage import make_folder
from app.run.terminal import say

if TYPE_CHECKING:
    from app.analysis.gamma_families import Scales


def run(name: str, words: list[str]) -> int:
    """Reads, analyses, prints and writes.

    Args:
        name: ``gamma``.
        words: the rest of the command line, the checkpoint first.
    """
    options = command_parser().parse_args(words)
    source, output = Path(options.checkpoint), Path(options.output)
    if not source.exists():
        raise ConfigurationError(f"{source}: there is no such file or directory")

    from app.analysis.gamma import analyse
    from app.analysis.gamma_figure import draw
    from app.commands.gamma_tables import print_gains

    scales, title = _scales(source)
    gammas = analyse(scales)
    print_gains(gammas, title)
    make_folder(output, "--output")
    write_json(output / "gamma.json", {"source": title} | gammas.as_dict())
    picture = output / "gamma.png"
    _, problem = write_picture(picture, lambda file: draw(gammas, file, f"Gains over depth: {title}"))
    say("written", str(output / "gamma.json"))
    say("note" if problem else "", problem or str(picture))
    return int(ExitCode.DONE)


def _scales(source: Path) -> tuple["Scales", str]:
    """The scales of whatever was named, and its name for a person."""
    from app.analysis.gamma_families import Scales, stored_scales
    from app.analysis.stored_tensors import find

    try:
        if source.suffix == ".json":
            content = read_json(source)
            title = content.get("source", source.name) if isinstance(content, dict) else source.name
            return Scales.from_dict(content), str(title)[:200]
        model_type, title = "", source.resolve().name
        if source.is_dir() and not any(source.glob("*.safetensors")) and not any(source.glob("*.bin")):
            run, _ = resolve_run(source)
            source = weights_of(str(source))
            title = f"{run.path.resolve().name}, {source.name}"
        elif (source / "config.json").is_file():
            configuration: Any = read_json(source / "config.json")
            model_type = str(configuration.get("model_type", "")) if isinstance(configuration, dict) else ""
        if source.suffix == ".ckpt":
            verify(source, require_sidecar=False)
        return stored_scales(find(source), model_type), title
    except ContentError as error:
        raise IntegrityError(f"{error}\nuse another checkpoint") from error
    except OSError as error:
        raise ConfigurationError(f"{error.filename or source}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        reason = str(error) if str(source) in str(error) else f"{source}: {error}"
        raise ConfigurationError(reason) from error


def command_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "gamma",
        description="Reads the scale of every kind of norm and matrix in every layer, fits five forms over depth, and "
        "derives the attention temperature. The file is read tensor by tensor, so that a model of any size fits in "
        "little memory.",
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        type=typed_path,
        help="a run directory (its best checkpoint), a .ckpt, .safetensors, .pt, .pth or .bin file, a directory of "
        ".safetensors files, or a gamma.json that this command has written",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=typed_path,
        default=".",
        help="folder for gamma.json and gamma.png (default .)",
    )
    return parser
