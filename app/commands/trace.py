"""``app trace``: one text, token by token, through a run's network."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands.page_file import page_file
from app.commands.parsing import CommandParser, add_network_options, check_device
from app.run.atomic import write_bytes, write_text
from app.run.bounded import MAX_TABLE_BYTES, require_size
from app.run.directory import resolve_run
from app.run.errors import ConfigurationError, DataError, ExitCode
from app.run.launching import weights_of
from app.run.paths import typed_path
from app.run.storage import make_folder
from app.run.terminal import say

if TYPE_CHECKING:
    from app.analysis.trace import Trace, TracedRun


#: beside each other on a page
MOST_RUNS = 2


def run(name: str, words: list[str]) -> int:
    """Reads the text and writes the page and its numbers.

    Args:
        name: ``trace``.
        words: the rest of the command line, the runs first.
    """
    options = command_parser().parse_args(words)
    if options.tokens < 1:
        raise ConfigurationError(f"--tokens {options.tokens}: must be 1 or more")
    if len(options.runs) > MOST_RUNS:
        raise ConfigurationError(
            f"app trace: shows {MOST_RUNS} runs beside each other, not {len(options.runs)}"
        )
    checkpoints = [(resolve_run(run)[0], weights_of(run, options.checkpoint)) for run in options.runs]
    text, option = _text(options)
    target = page_file(options.output, "trace.html")
    check_device(options.device)

    from app.analysis.trace import trace_page

    read, subtitles = [], []
    for directory, checkpoint in checkpoints:
        found, said = _traced(options, checkpoint, text, option)
        read.append(found._replace(title=f"{found.title}: {directory}") if len(checkpoints) > 1 else found)
        subtitles.append(f"{directory}, {checkpoint.name}: {said}")
    title = f"Trace: {read[0].title}" if len(read) == 1 else "Trace of two runs"
    make_folder(target.parent, "--output")
    write_text(target, trace_page(read, title, "; ".join(subtitles)))
    say("trace", f"{target} ({said}); open it in a browser")
    for number, found in enumerate(read):
        numbers = target.with_name(f"{target.stem}{f'-{number + 1}' if number else ''}.npz")
        write_bytes(numbers, _archive(found.trace))
        say("" if number else "numbers", str(numbers))
    return int(ExitCode.DONE)


def _traced(options: argparse.Namespace, checkpoint: Path, text: str, option: str) -> tuple["TracedRun", str]:
    """One network's reading of the text, and how much of it that is."""
    from app.analysis.trace import TracedRun, token_texts, trace
    from app.loading import load
    from datamodules.text import as_read

    network, tokenizer, block_size = load(
        checkpoint, device=options.device, trust_imports=options.trust_imports
    )
    try:
        ids = tokenizer.encode(as_read(text))
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
    said += f" of {options.file}" if options.file else ""
    if len(shown) > window:
        said += f", read in windows of {window:,} tokens, marked by a bar"
    return TracedRun(found, token_texts(shown.tolist(), tokenizer.decode), type(network).__name__), said


def _text(options: argparse.Namespace) -> tuple[str, str]:
    """The text, and the option that gave it."""
    if options.text is not None:
        return options.text, "--text"
    option = f"--file {options.file}"
    try:
        require_size(options.file, MAX_TABLE_BYTES)
        return Path(options.file).read_text(encoding="utf-8-sig"), option
    except OSError as error:
        raise ConfigurationError(f"{option}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{option}: is no UTF-8 text (byte {error.start})") from error
    except ValueError as error:
        raise ConfigurationError(f"{option}: {error}; name a shorter text") from error


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


def command_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "trace",
        description="Writes one HTML page with a text whose tokens are coloured by what the network did with them, "
        "layer by layer (route, pathway, bank, deviation, entropy, loss: whatever it reports), and an .npz file "
        "with the numbers beside it.",
        epilog="The .npz file holds ids (n,), the tokens; block_size, the tokens of a window, each read without the "
        "one before; and of every measure an array under its name, with _ for a space: (layers, n), or (n,) of the "
        "network as a whole, NaN where it is not defined. A second run has a file of its own, "
        "with -2 in its name. Categories are numbers, named by <measure>.labels.",
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=typed_path,
        help="a run directory, or one of its checkpoint files; two of them are shown beside each other",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", help="the text")
    source.add_argument("--file", type=typed_path, help="a UTF-8 file with the text")
    parser.add_argument(
        "--output",
        type=typed_path,
        default="trace.html",
        help="an .html file, or a folder for trace.html (default trace.html here)",
    )
    parser.add_argument("--tokens", type=int, default=8192, help="tokens to read at most (default 8192)")
    add_network_options(parser)
    return parser
