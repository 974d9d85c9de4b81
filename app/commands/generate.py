"""``app generate``: continues a prompt with a run's network, streaming."""

import argparse
import sys
import time

from app.commands.parsing import CommandParser, add_network_options, check_device
from app.run.directory import resolve_run
from app.run.errors import ConfigurationError, ExitCode
from app.run.launching import weights_of
from app.run.paths import typed_path


def run(name: str, words: list[str]) -> int:
    """Generates and prints.

    Args:
        name: ``generate``.
        words: the rest of the command line, the run first.
    """
    options = command_parser().parse_args(words)
    _check(options)
    directory, _ = resolve_run(options.run)
    checkpoint = weights_of(options.run, options.checkpoint)

    import torch

    from app.loading import load_described
    from app.models.generation import generate, generation_window, seeded
    from datamodules.stream import TextStream, for_terminal

    check_device(options.device)
    (network, tokenizer, block_size), weights = load_described(
        checkpoint, device=options.device, trust_imports=options.trust_imports
    )
    start = tokenizer.encode_prompt(options.prompt)
    # Words come back with a space after each, which must stand before what follows; unknown ones are seen as such.
    prompt = tokenizer.decode(start) if options.prompt else ""
    idx = torch.from_numpy(start)[None].to(options.device)
    n_tokens, seconds = 0, 0.0
    shown = for_terminal if sys.stdout.isatty() else str
    for sample in range(options.samples):
        if options.samples > 1:
            print(f"--- sample {sample + 1}")
        print(prompt, end="", flush=True)
        generator = seeded(options.seed + sample, options.device)
        began = time.monotonic()
        stream = generate(
            network,
            idx,
            options.tokens,
            temperature=0.0 if options.greedy else options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            generator=generator,
            block_size=generation_window(network, block_size),
        )
        text = TextStream(tokenizer, before=start.tolist())
        for token in stream:
            print(shown(text.add(int(token))), end="", flush=True)
            n_tokens += 1
        print(shown(text.end()), end="")
        seconds += time.monotonic() - began
        print(flush=True)
    which = f"{directory}, {checkpoint.name}" + (f", weights {weights}" if weights else "")
    speed = f"{n_tokens / max(seconds, 1e-9):.1f} tokens/s on {options.device}"
    print(f"{which}: {n_tokens} tokens, {speed}", file=sys.stderr)
    return int(ExitCode.DONE)


def command_parser() -> argparse.ArgumentParser:
    parser = CommandParser("generate", description="Continues a prompt with a run's network.")
    parser.add_argument(
        "run", metavar="RUN", type=typed_path, help="a run directory, or one of its checkpoint files"
    )
    parser.add_argument("--prompt", default="", help="text to continue; by default a new line")
    parser.add_argument("--tokens", type=int, default=400, help="tokens to generate (default 400)")
    parser.add_argument("--samples", type=int, default=1, help="how many texts, with seeds seed, seed + 1, …")
    parser.add_argument("--temperature", type=float, default=0.8, help="> 0; low is careful (default 0.8)")
    parser.add_argument("--greedy", action="store_true", help="always the likeliest token")
    parser.add_argument("--top_k", type=int, help="sample among the k likeliest tokens")
    parser.add_argument(
        "--top_p", type=float, help="sample among the likeliest tokens of this total probability"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first text (default 0)")
    add_network_options(parser)
    return parser


def _check(options: argparse.Namespace) -> None:
    """Refuses every option that is out of its range, all at once.

    Raises:
        ConfigurationError: naming them.
    """
    from app.models.generation import END_OF_SEEDS, out_of_range

    given = vars(options)
    found = out_of_range(**{name: given[name] for name in ("temperature", "top_k", "top_p", "seed")})
    found |= {name: "must be 1 or more" for name in ("tokens", "samples") if given[name] < 1}
    if options.temperature <= 0:
        found["temperature"] = "must be above 0; for the likeliest token use --greedy"
    if "seed" not in found and options.seed + options.samples > END_OF_SEEDS:
        found["seed"] = f"with --samples {options.samples} the last text's seed is not below 2^64"
    if found:
        raise ConfigurationError([f"--{name} {given[name]}: {rule}" for name, rule in found.items()])
