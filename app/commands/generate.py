"""``app generate``: continues a prompt with a run's network, streaming."""

import argparse
import sys
import time

from app.commands.parsing import CommandParser, add_network_options, check_device
from app.run.directory import resolve_run
from app.run.errors import ConfigurationError, ExitCode
from app.run.plan import weights_of


def run(name: str, words: list[str]) -> int:
    """Generates and prints.

    Args:
        name: ``generate``.
        words: the rest of the command line, the run first.
    """
    options = _parser().parse_args(words)
    _check(options)
    directory, _ = resolve_run(options.run)
    checkpoint = weights_of(options.run, options.checkpoint)

    import torch

    from app.loading import load
    from app.models.generation import generate, generation_window
    from datamodules.stream import TextStream, for_terminal

    check_device(options.device)
    network, tokenizer, block_size = load(
        checkpoint, device=options.device, trust_imports=options.trust_imports
    )
    start = tokenizer.encode(options.prompt) if options.prompt else tokenizer.start()
    # Words come back with a space after each, which must stand before what follows; unknown ones are seen as such.
    prompt = options.prompt if tokenizer.is_lossless else tokenizer.decode(start) * bool(options.prompt)
    idx = torch.tensor([start.tolist()], dtype=torch.int64, device=options.device)
    n_tokens, seconds = 0, 0.0
    shown = for_terminal if sys.stdout.isatty() else str
    for sample in range(options.samples):
        if options.samples > 1:
            print(f"--- sample {sample + 1}")
        print(prompt, end="", flush=True)
        generator = torch.Generator(device=options.device).manual_seed(options.seed + sample)
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
    print(
        f"{directory}, {checkpoint.name}: {n_tokens} tokens, {n_tokens / max(seconds, 1e-9):.1f} tokens/s on "
        f"{options.device}",
        file=sys.stderr,
    )
    return int(ExitCode.DONE)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("generate", description="Continues a prompt with a run's network.")
    parser.add_argument("run", metavar="RUN", help="a run directory, or one of its checkpoint files")
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
    problems = []
    for flag, holds, rule in (
        ("tokens", options.tokens >= 1, "must be 1 or more"),
        ("samples", options.samples >= 1, "must be 1 or more"),
        ("temperature", options.temperature > 0, "must be above 0; for the likeliest token use --greedy"),
        ("top_k", options.top_k is None or options.top_k >= 1, "must be 1 or more"),
        ("top_p", options.top_p is None or 0 < options.top_p <= 1, "must lie in (0, 1]"),
        ("seed", options.seed >= 0, "must be 0 or more"),
    ):
        if not holds:
            problems.append(f"--{flag} {getattr(options, flag)}: {rule}")
    if problems:
        raise ConfigurationError(problems)
