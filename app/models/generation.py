"""Text generation, token by token, for every language model."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from app.models.language_model import LanguageModel

#: below it a temperature in fp32 is 0; here already the likeliest token alone is left, and its equals
SMALLEST_TEMPERATURE = 1e-30
END_OF_SEEDS = 1 << 64  # a generator's state begins with 64 bits


def out_of_range(
    *,
    max_new_tokens: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> dict[str, str]:
    """The rule that an option breaks, by its name; empty where :func:`generate` and :func:`seeded` can use them all."""
    rules = {
        "max_new_tokens": (max_new_tokens >= 0, "must be at least 0"),
        "temperature": (
            0 <= temperature < float("inf"),
            "must be finite and at least 0 (0 takes the likeliest token)",
        ),
        "top_k": (top_k is None or top_k >= 1, "must be at least 1; without it every token may come"),
        "top_p": (top_p is None or 0 < top_p <= 1, "must lie in (0, 1]; without it every token may come"),
        "seed": (0 <= seed < END_OF_SEEDS, "must be at least 0 and below 2^64"),
    }
    return {name: rule for name, (holds, rule) in rules.items() if not holds}


def seeded(seed: int, device: str | torch.device) -> torch.Generator:
    """A source of randomness of its own for :func:`generate`.

    Raises:
        ValueError: the seed is out of range.
    """
    for name, rule in out_of_range(seed=seed).items():
        raise ValueError(f"{name} = {seed}: {rule}")
    return torch.Generator(device=device).manual_seed(seed)


def generation_window(network: LanguageModel, block_size: int) -> int | None:
    """The window that generation needs of a network trained on windows of ``block_size`` tokens.

    A network that steps and reads any length needs none: what it remembers goes on, and ``block_size`` is then
    only the length at which it was trained. Any other reads at most ``block_size`` tokens at a time.

    Returns:
        ``block_size`` for :func:`generate`; None for no window.
    """
    return None if network.can_step and network.max_context is None else block_size


def generate(
    network: LanguageModel,
    idx: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    block_size: int | None = None,
) -> Iterator[Tensor]:
    """Continue each row of ``idx``, in evaluation mode and without gradients.

    A network that can step reads each token once, others the whole context again for each. Where there is a
    window of L tokens, either way reads at most that many: a context that has grown beyond L goes on from its
    last L // 2 tokens, so that a cache of L positions is refilled once in L / 2 tokens.

    Args:
        network: any language model.
        idx: ``(B, T0)`` int64 prompt, T0 ≥ 1.
        max_new_tokens: number of steps, ≥ 0.
        temperature: divides the logits, finite and ≥ 0; 0 takes the most likely token.
        top_k: sample among exactly this many most likely tokens (all of them if there are fewer), ≥ 1.
        top_p: sample among the most likely tokens whose probabilities first reach this sum, in (0, 1];
            applied after ``top_k``.
        generator: source of randomness, on the device of ``idx``; the same state gives the same text.
        block_size: L, see :func:`generation_window`; None for the network's own limit, if it has one.

    Returns:
        An iterator over steps: ``(B,)`` int64, the next token of each row.

    Raises:
        ValueError: an argument is out of range, or ``block_size`` is beyond what the network can read.
        RuntimeError: a logit is not a number; on a GPU after the last step, and only of that.
    """
    limit = network.max_context if block_size is None else block_size
    problems = []
    if idx.dim() != 2 or idx.shape[1] < 1:
        problems.append(f"idx has shape {tuple(idx.shape)}: give (B, T0) with at least one token in each row")
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
    }
    problems += [f"{name} = {options[name]}: {rule}" for name, rule in out_of_range(**options).items()]
    if limit is not None and limit < 1:
        problems.append(f"block_size = {limit}: must be at least 1")
    if limit is not None and network.max_context is not None and limit > network.max_context:
        problems.append(f"block_size = {limit}: this network reads at most {network.max_context} tokens")
    if problems:
        raise ValueError("\n".join(problems))

    def next_token(logits: Tensor) -> Tensor:
        if temperature == 0:
            return logits.argmax(-1)
        # From the largest down: a small temperature then overflows to a probability of 0, never to one of inf / inf.
        below = logits - logits.amax(-1, keepdim=True)
        probabilities, token = _candidates(below / max(temperature, SMALLEST_TEMPERATURE), top_k, top_p)
        choice = drawn(probabilities, generator)
        return token.gather(-1, choice).squeeze(-1)

    return _steps(network, idx, max_new_tokens, limit, next_token)


@torch.no_grad()
def _steps(
    network: LanguageModel,
    context: Tensor,
    max_new_tokens: int,
    limit: int | None,
    next_token: Callable[[Tensor], Tensor],
) -> Iterator[Tensor]:
    was_training = network.training
    network.eval()
    try:
        cache: Any = None
        for _ in range(max_new_tokens):
            if limit is not None and context.shape[1] > limit:
                context = context[:, -max(1, limit // 2) :]
                cache = None
            if network.can_step:
                # A cache is seen by nobody else; without version counters, calls as short as these take a fifth less.
                with torch.inference_mode():
                    if cache is None:
                        logits, cache = network.prefill(context)
                    else:
                        logits = network.step(context[:, -1], cache)
            else:
                logits = network(context).logits[:, -1]
            token = next_token(logits.float())
            yield token
            context = torch.cat([context, token.unsqueeze(1)], dim=1)
        if max_new_tokens and logits.device.type != "cpu" and bool(logits.isnan().any()):
            raise RuntimeError("the network's logits are not numbers: no text can be drawn from them")
    finally:
        network.train(was_training)


def drawn(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    """One index ``(B, 1)`` of each row of probabilities ``(B, n)``, as ``torch.multinomial`` draws it.

    Args:
        probabilities: summing to 1.
        generator: source of randomness, on their device.
    """
    if probabilities.device.type == "cpu":
        return torch.multinomial(probabilities, 1, generator=generator)
    return first_of_race(probabilities, generator)


def first_of_race(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    """What ``torch.multinomial`` computes, to the bit, without its checks.

    It reads back twice whether these are probabilities. On a GPU the host would wait for every token, in place of
    launching the next ones meanwhile.
    """
    waiting = torch.empty_like(probabilities).exponential_(generator=generator)
    return (probabilities / waiting).argmax(-1, keepdim=True)


def _candidates(logits: Tensor, top_k: int | None, top_p: float | None) -> tuple[Tensor, Tensor]:
    """Probabilities, likeliest first, and the token that each belongs to; both ``(B, n)``."""
    # A stable sort: among equal logits the lower token number comes first, on every device.
    logits, token = logits.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        n_kept = min(top_k, token.shape[-1])
        logits, token = logits[:, :n_kept], token[:, :n_kept]
    probabilities = logits.softmax(-1)
    if top_p is not None:
        is_beyond = probabilities.cumsum(-1) - probabilities >= top_p
        is_beyond[:, 0] = False  # also where top_p is so small that it counts as 0
        probabilities = probabilities.masked_fill(is_beyond, 0.0)
    return probabilities, token
