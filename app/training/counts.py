"""What counting alone reaches on a text, put beside what a network reaches there."""

from collections.abc import Callable
from typing import Any

from app.run.errors import words_of
from app.run.terminal import say

#: texts that are drawn from a finished network and from the counts alike, tokens of each, temperature
N_SAMPLES, N_TOKENS, TEMPERATURE = 16, 200, 0.7


def count_baseline(
    data: Any,
    n_samples: int = N_SAMPLES,
    n_tokens: int = N_TOKENS,
    temperature: float = TEMPERATURE,
    keep: bool = True,
) -> Any:
    """The :class:`~datamodules.baseline.CountBaseline` of a text, from where it is kept or counted in up to 10 s."""
    return data.count_baseline(n_samples, data.block_size // 2, n_tokens, temperature, keep=keep)


def measured(what: str, measure: Callable[[], Any], left_out: str) -> Any:
    """A yardstick; None, with a note, where it cannot be measured, which fails nothing that is done."""
    try:
        return measure()
    except Exception as error:
        print(f"note     {what} is {left_out} ({words_of(error)})", flush=True)
        return None


def print_counts(loss: float | None, order: int, reached: float | None) -> None:
    """Says what counting reaches, and plainly where the network has not got there.

    Args:
        loss: of the counts, nats per token; None says nothing.
        order: tokens of context that they look at.
        reached: the network's loss on the same split; None where there is none.
    """
    if loss is None:
        return
    tokens = f"the last {order} tokens" if order > 1 else "the last token" if order else "no context"
    verdict = "" if reached is None or reached < loss else ": the network does not reach it"
    say("counts", f"counting what follows {tokens} has {loss:.4f} nats{verdict}")
