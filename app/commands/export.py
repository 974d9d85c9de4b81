"""``app export``: a trained network as a folder of its own."""

import argparse
from pathlib import Path
from typing import Any

from app.commands.parsing import CommandParser
from app.run import bounded
from app.run.directory import resolve_run
from app.run.errors import ConfigurationError, ExitCode
from app.run.launching import weights_of
from app.run.paths import typed_path
from app.run.terminal import say

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


def run(name: str, words: list[str]) -> int:
    """Writes the folder.

    Args:
        name: ``export``.
        words: the rest of the command line.
    """
    options = command_parser().parse_args(words)
    if options.packed and options.to:
        raise ConfigurationError(f"--packed: transformers cannot read it; leave it or --to {options.to} out")
    directory, _ = resolve_run(options.run)
    checkpoint = weights_of(options.run, options.checkpoint)

    from app import __version__, exports
    from app.loading import load
    from app.models.gpt import GPT

    with exports.new_folder(options.folder, "DIR") as folder:
        network, tokenizer, block_size = load(checkpoint, trust_imports=options.trust_imports)
        launches = _read(directory.manifest).get("launches")
        launch: Any = launches[-1] if isinstance(launches, list) and launches else {}
        launch = launch if isinstance(launch, dict) else {}
        summary = _read(directory.summary)
        figures = {key: summary[key] for key in FIGURES if isinstance(summary.get(key), int | float)}
        data = launch.get("data")
        data = (
            {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else {}
        )
        n_parameters = sum(parameter.numel() for parameter in network.parameters())
        commit = str(launch.get("commit") or "")
        class_name = type(network).__name__
        is_gpt2 = options.to == "hf" and type(network) is GPT
        description = {
            "archlab": __version__,
            "network": network.description(),
            "block_size": block_size,
            "vocab_size": tokenizer.vocab_size,
            "figures": figures,
            "data": data,
            "commit": commit,
        }
        origin = f"{directory.path.name}, {checkpoint.name}"
        code = exports.GPT2_CODE if is_gpt2 else exports.CODE
        text = exports.card(class_name, n_parameters, figures, data, commit, origin, code)
        if is_gpt2:
            assert isinstance(network, GPT)
            exports.write_gpt2(folder, network, tokenizer, text)
        elif options.packed:
            try:
                n_packed, n_packed_bytes = exports.write_packed(folder, network, tokenizer, description, text)
            except ValueError as error:
                raise ConfigurationError(f"--packed: {error}; leave it out") from error
        else:
            exports.write(folder, network.state_dict(), tokenizer, description, text)
    target = Path(options.folder)
    n_bytes = sum(file.stat().st_size for file in target.iterdir())
    say("network", f"{class_name}, {n_parameters:,} parameters of {checkpoint}")
    say("written", f"{target} ({n_bytes / 1e6:.2f} MB)")
    if options.packed:
        rest = sum(x.nbytes for x in network.state_dict().values()) - 4 * n_packed
        say(
            "packed",
            f"{n_packed:,} ternary weights at {8 * n_packed_bytes / n_packed:.4f} bits, scales and padding included",
        )
        say("", f"{rest:,} bytes beside them as they were trained: embedding, gains, norms")
    if is_gpt2:
        say("opens", "as a GPT-2 model of transformers, without code of archlab")
    elif options.to == "hf":
        say("opens", "with AutoModelForCausalLM.from_pretrained after `import app.hugging_face`")
    else:
        say("opens", f"with app.load({str(target)!r})")
    return int(ExitCode.DONE)


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
        "and a model card. app.load reads it, without the run and without the training framework.",
    )
    parser.add_argument(
        "run", metavar="RUN", type=typed_path, help="a run directory, or one of its checkpoint files"
    )
    parser.add_argument("folder", metavar="DIR", type=typed_path, help="a new folder")
    parser.add_argument(
        "--packed",
        action="store_true",
        help="of a ternary network: five weights to a byte, for reading and not for training",
    )
    parser.add_argument(
        "--to",
        choices=("hf",),
        help="for transformers: a plain GPT as GPT-2 weights, which need none of our code; any other network as "
        "without this option, to be opened by AutoModelForCausalLM after `import app.hugging_face`",
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
