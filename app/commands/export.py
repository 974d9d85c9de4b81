"""``app export``: a trained network as a folder, or a page, of its own."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from app.commands.page_file import page_file
from app.commands.parsing import CommandParser
from app.run import bounded
from app.run.atomic import write_text
from app.run.directory import resolve_run
from app.run.errors import ConfigurationError, ExitCode
from app.run.launching import weights_of
from app.run.paths import typed_path
from app.run.storage import make_folder
from app.run.terminal import say

if TYPE_CHECKING:
    from app.exports import Packed
    from app.models import LanguageModel
    from datamodules.tokenizers import Tokenizer

#: of a run's summary, what a model card says
FIGURES = (
    "step",
    "tokens_seen",
    "val/loss",
    "val/bpb",
    "best/val_loss",
    "best/step",
    "train/loss",
    "baseline/count_loss",
)


class Subject(NamedTuple):
    """What is exported, and what is said of it.

    Attributes:
        network: in evaluation mode.
        tokenizer: of the network.
        description: what ``config.json`` holds.
        origin: run and checkpoint, in words.
    """

    network: "LanguageModel"
    tokenizer: "Tokenizer"
    description: dict[str, Any]
    origin: str

    @property
    def class_name(self) -> str:
        return type(self.network).__name__

    @property
    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.network.parameters())


def run(name: str, words: list[str]) -> int:
    """Writes the folder, or the page.

    Args:
        name: ``export``.
        words: the rest of the command line.
    """
    options = command_parser().parse_args(words)
    if options.packed and options.to:
        reason = "transformers cannot read it" if options.to == "hf" else "a page is packed as it is"
        raise ConfigurationError(f"--packed: {reason}; leave it or --to {options.to} out")
    if options.to == "html":
        _write_page(options)
    else:
        _write_folder(options)
    return int(ExitCode.DONE)


def _subject(options: argparse.Namespace) -> Subject:
    from app import __version__
    from app.loading import load

    directory, _ = resolve_run(options.run)
    checkpoint = weights_of(options.run, options.checkpoint)
    network, tokenizer, block_size = load(checkpoint, trust_imports=options.trust_imports)
    launches = _read(directory.manifest).get("launches")
    launch: Any = launches[-1] if isinstance(launches, list) and launches else {}
    launch = launch if isinstance(launch, dict) else {}
    summary = _read(directory.summary)
    data = launch.get("data")
    data = data if isinstance(data, dict) else {}
    description = {
        "archlab": __version__,
        "network": network.description(),
        "block_size": block_size,
        "vocab_size": tokenizer.vocab_size,
        "figures": {key: summary[key] for key in FIGURES if isinstance(summary.get(key), int | float)},
        "data": {key: value for key, value in data.items() if value is not None},
        "commit": str(launch.get("commit") or ""),
    }
    return Subject(network, tokenizer, description, f"{directory.path.name}, {checkpoint.name}")


def _write_folder(options: argparse.Namespace) -> None:
    from app import exports
    from app.models.gpt import GPT

    packed = None
    with exports.new_folder(options.folder, "DIR") as folder:
        subject = _subject(options)
        network, tokenizer, description = subject.network, subject.tokenizer, subject.description
        is_gpt2 = options.to == "hf" and type(network) is GPT and network.is_gpt2
        text = exports.card(
            subject.class_name, subject.n_parameters, description["figures"], description["data"],
            description["commit"], subject.origin, exports.GPT2_CODE if is_gpt2 else exports.CODE,
        )  # fmt: skip
        if is_gpt2:
            assert isinstance(network, GPT)
            exports.write_gpt2(folder, network, tokenizer, text)
        elif options.packed:
            try:
                packed = exports.packed(network)
            except ValueError as error:
                raise ConfigurationError(f"--packed: {error}; leave it out") from error
            exports.write_packed(folder, packed, tokenizer, description, text)
        else:
            exports.write(folder, network.state_dict(), tokenizer, description, text)
    target = Path(options.folder)
    _say_written(subject, target, sum(file.stat().st_size for file in target.iterdir()))
    if packed is not None:
        _say_packed(packed)
    if is_gpt2:
        say("opens", "as a GPT-2 model of transformers, without code of archlab")
    elif options.to == "hf":
        say("opens", "with AutoModelForCausalLM.from_pretrained after `import app.hugging_face`")
    else:
        say("opens", f"with app.load({str(target)!r})")


def _write_page(options: argparse.Namespace) -> None:
    target = page_file(options.folder, "network.html", "DIR")
    if target.exists():
        raise ConfigurationError(f"DIR {target}: is there already; name a new file")

    from app.browser import network_page
    from app.exports import packed

    subject = _subject(options)
    try:
        weights = packed(subject.network)
        figures = _figures(subject, weights)
        text = network_page(subject.network, weights, subject.tokenizer, subject.description, figures)
    except ValueError as error:
        raise ConfigurationError(f"--to html: {error}; leave it out") from error
    make_folder(target.parent, "DIR")
    write_text(target, text)
    _say_written(subject, target, target.stat().st_size)
    _say_packed(weights)
    say("opens", "in a browser, by itself")


def _figures(subject: Subject, weights: "Packed") -> dict[str, str]:
    """What a page says of its network."""
    found = {
        "parameters": f"{subject.n_parameters:,}, of which {weights.n_ternary:,} are ternary at "
        f"{weights.bits_per_weight:.3f} bits",
        "trained on": str(subject.description["data"].get("source", "")),
        "from": subject.origin,
        "commit": subject.description["commit"],
    }
    measured = {key: f"{value:,.6g}" for key, value in subject.description["figures"].items()}
    return {key: text for key, text in (found | measured).items() if text}


def _say_written(subject: Subject, target: Path, n_bytes: int) -> None:
    say("network", f"{subject.class_name}, {subject.n_parameters:,} parameters of {subject.origin}")
    say("written", f"{target} ({n_bytes / 1e6:.2f} MB)")


def _say_packed(weights: "Packed") -> None:
    rest = sum(x.nbytes for x in weights.tensors.values()) - weights.n_bytes
    say(
        "packed",
        f"{weights.n_ternary:,} ternary weights at {weights.bits_per_weight:.4f} bits, scales and padding included",
    )
    say("", f"{rest:,} bytes beside them as they were trained: embedding, gains, norms")


def _read(path: Path) -> dict[str, Any]:
    """A file of the run; an export needs none of them."""
    try:
        found = bounded.read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def command_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "export",
        description="Writes a trained network into a folder of its own: model.safetensors, config.json, tokenizer.json "
        "and a model card. app.load reads it, without the run and without the training framework. --to html writes one "
        "page that runs it in a browser.",
    )
    parser.add_argument(
        "run", metavar="RUN", type=typed_path, help="a run directory, or one of its checkpoint files"
    )
    parser.add_argument(
        "folder", metavar="DIR", type=typed_path, help="a new folder; with --to html also a new file .html"
    )
    parser.add_argument(
        "--packed",
        action="store_true",
        help="of a ternary network: five weights to a byte, for reading and not for training",
    )
    parser.add_argument(
        "--to",
        choices=("hf", "html"),
        help="hf, for transformers: a plain GPT as GPT-2 weights, which need none of our code; any other network as "
        "without this option, to be opened by AutoModelForCausalLM after `import app.hugging_face`. html: one page "
        "that writes text in a browser, of a ternary Tilelli",
    )
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), default="best", help="which one of the run's (default best)"
    )
    parser.add_argument(
        "--trust_imports",
        action="append",
        default=[],
        metavar="PREFIX",
        help="import a network of your own from here",
    )
    return parser
