"""``app trace``: one text, token by token, through a run's network."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands.page_file import page_file
from app.commands.parsing import CommandParser, add_network_options, check_device
from app.run.atomic import storage_error, write_bytes, write_text
from app.run.directory import resolve_run
from app.run.errors import ConfigurationError, DataError, ExitCode
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
    text, option = _text(options)
    target = page_file(options.output, "trace.html")
    check_device(options.device)

    from app.analysis.trace import token_texts, trace, trace_page
    from app.loading import load

    network, tokenizer, block_size = load(
        checkpoint, device=options.device, trust_imports=options.trust_imports
    )
    try:
        ids = tokenizer.encode(text)
    except DataError as error:
        raise ConfigurationError(f"{option}: {error}") from error
    if not len(ids):
        raise ConfigurationError(f"{option}: has no token")
    shown = ids[: options.tokens]
    window = block_size if network.max_context is None else min(block_size, network.max_context)
    found = trace(network, shown, window)
    said = f"{len(shown):,} token{'s' if len(shown) > 1 else ''}"
    if len(ids) > len(shown):
        said = f"the first {len(shown):,} of {len(ids):,} tokens (--tokens shows more)"
    subtitle = f"{directory}, {checkpoint.name}; {said}" + (f" of {options.file}" if options.file else "")
    if len(shown) > window:
        subtitle += f"; read in windows of {window:,} tokens, marked by a bar"
    texts = token_texts(shown.tolist(), tokenizer.decode)
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
    """The text, and the option that gave it."""
    if options.text is not None:
        return options.text, "--text"
    option = f"--file {options.file}"
    try:
        return Path(options.file).read_text(encoding="utf-8-sig"), option
    except OSError as error:
        raise ConfigurationError(f"{option}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{option}: is no UTF-8 text (byte {error.start})") from error


def _archive(found: "Trace") -> bytes:
    """The numbers, as the parser's help says."""
    import io

    import numpy as np

    arrays: dict[str, Any] = {"ids": found.ids, "block_size": np.asarray(found.block_size)}
    for name, measure in found.measures.items():
        key = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
        while key in arrays:
            key += "_"
        arrays[key] = measure.values
        if measure.labels:
            arrays[f"{key}.labels"] = np.asarray(measure.labels)
    written = io.BytesIO()
    np.savez_compressed(written, **arrays)
    return written.getvalue()


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "trace",
        description="Writes one HTML page with a text whose tokens are coloured by what the network did with them, "
        "layer by layer (route, pathway, bank, deviation, entropy, loss: whatever it reports), and an .npz file "
        "with the numbers beside it.",
        epilog="The .npz file holds ids (n,), the tokens; block_size, the tokens of a window, each read without the "
        "one before; and of every measure an array under its name, with _ for a space: (layers, n), or (n,) of the "
        "network as a whole, NaN where it is not defined. Categories are numbers, named by <measure>.labels.",
    )
    parser.add_argument("run", metavar="RUN", help="a run directory, or one of its checkpoint files")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", help="the text")
    source.add_argument("--file", help="a UTF-8 file with the text")
    parser.add_argument(
        "--output",
        default="trace.html",
        help="an .html file, or a folder for trace.html (default trace.html here)",
    )
    parser.add_argument("--tokens", type=int, default=8192, help="tokens to read at most (default 8192)")
    add_network_options(parser)
    return parser
