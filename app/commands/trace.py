"""``app trace``: one text, token by token, through a run's network."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands.parsing import CommandParser, add_network_options, check_device
from app.run.atomic import storage_error, write_bytes, write_text
from app.run.directory import resolve_run
from app.run.errors import ConfigurationError, ExitCode
from app.run.plan import weights_of

if TYPE_CHECKING:
    from app.analysis.trace import Trace


def run(name: str, words: list[str]) -> int:
    """Reads the text and writes the page and its numbers.

    Args:
        name: ``trace``.
        words: the rest of the command line, the run first.
    """
    options = _parser().parse_args(words)
    if options.tokens < 1:
        raise ConfigurationError(f"--tokens {options.tokens}: must be 1 or more")
    directory, _ = resolve_run(options.run)
    checkpoint = weights_of(options.run, options.checkpoint)
    text, source = _text(options)
    check_device(options.device)

    from app.analysis.trace import trace, trace_page
    from app.loading import load

    network, tokenizer, block_size = load(
        checkpoint, device=options.device, trust_imports=options.trust_imports
    )
    ids = tokenizer.encode(text)
    if not len(ids):
        raise ConfigurationError(f"{source}: has no token")
    shown = ids[: options.tokens]
    window = block_size if network.max_context is None else min(block_size, network.max_context)
    found = trace(network, shown, window)
    said = f"{len(shown):,} tokens"
    if len(ids) > len(shown):
        said = f"the first {len(shown):,} of {len(ids):,} tokens (--tokens shows more)"
    subtitle = f"{directory}, {checkpoint.name}; {said} of {source}"
    if len(shown) > window:
        subtitle += f"; read in windows of {window:,} tokens, marked by a bar"
    target = _target(options.output)
    texts = [tokenizer.decode([int(number)]) for number in shown]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, target) from error
    write_text(target, trace_page(found, texts, f"Trace: {type(network).__name__}", subtitle))
    numbers = target.with_suffix(".npz")
    write_bytes(numbers, _archive(found))
    print(f"trace    {target} ({said}); open it in a browser")
    print(f"numbers  {numbers}")
    return int(ExitCode.DONE)


def _text(options: argparse.Namespace) -> tuple[str, str]:
    """The text, and what to call it."""
    if options.text is not None:
        return options.text, "--text"
    path = Path(options.file)
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except OSError as error:
        raise ConfigurationError(f"--file {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"--file {path}: is no UTF-8 text (byte {error.start})") from error


def _archive(found: "Trace") -> bytes:
    """``ids``, and each measure's values under its name; of categories also ``<name>.labels``."""
    import io

    import numpy as np

    arrays: dict[str, Any] = {"ids": found.ids, "block_size": np.asarray(found.block_size)}
    for name, measure in found.measures.items():
        key = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
        arrays[key] = measure.values
        if measure.labels:
            arrays[f"{key}.labels"] = np.asarray(measure.labels)
    written = io.BytesIO()
    np.savez_compressed(written, **arrays)
    return written.getvalue()


def _target(output: str) -> Path:
    path = Path(output)
    return path / "trace.html" if path.is_dir() or not path.suffix else path


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "trace",
        description="Writes one HTML page with a text whose tokens are coloured by what the network did with them, "
        "layer by layer (route, pathway, bank, deviation, entropy, loss: whatever it reports), and an .npz file "
        "with the numbers beside it.",
    )
    parser.add_argument("run", metavar="RUN", help="a run directory, or one of its checkpoint files")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", help="the text")
    source.add_argument("--file", help="a UTF-8 file with the text")
    parser.add_argument(
        "--output", default="trace.html", help="file or folder of the page (default trace.html)"
    )
    parser.add_argument("--tokens", type=int, default=8192, help="tokens to read at most (default 8192)")
    add_network_options(parser)
    return parser
