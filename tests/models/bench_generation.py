"""Generation from a cache against generation that reads the whole text again for each token.

``python -m tests.models.bench_generation [TOKENS]``: processor milliseconds per token of both and their ratio, over the
whole text and over its last 32 tokens, greedy and one row, on one thread unless OMP_NUM_THREADS says otherwise.
The cached form is timed before and after the other one; the median of three texts counts.
"""

import os
import statistics
import sys
import time

import torch

from app.models import LanguageModel
from app.models.generation import generate
from app.models.gpt import GPT
from app.models.tilelli import TilelliLM

VOCABULARY = 96
LAST = 32


def networks(n_tokens: int) -> dict[str, LanguageModel]:
    """Both at 4 layers of width 128; the GPT has positions for the whole text."""
    return {
        "Tilelli 4 x 128, N = 4": TilelliLM(VOCABULARY, 128, 4, n_banks=4),
        "GPT 4 x 128": GPT(VOCABULARY, n_tokens + 1, 4, 4, 128),
    }


def milliseconds(network: LanguageModel, n_tokens: int, *, cached: bool) -> tuple[float, float]:
    """Per token, of a text after a prompt of one: over all of it, and over its last tokens."""
    network.can_step = cached
    prompt = torch.zeros(1, 1, dtype=torch.int64)
    times = [time.process_time()]
    for _ in generate(network, prompt, n_tokens, temperature=0):
        times.append(time.process_time())
    return 1e3 * (times[-1] - times[0]) / n_tokens, 1e3 * (times[-1] - times[-1 - LAST]) / LAST


def main() -> None:
    """Prints two lines per network."""
    n_tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 512
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    print(f"{n_tokens} tokens, {torch.get_num_threads()} thread(s), torch {torch.__version__}")
    for name, network in networks(n_tokens).items():
        milliseconds(network, LAST, cached=True)
        milliseconds(network, LAST, cached=False)
        cached = [milliseconds(network, n_tokens, cached=True) for _ in range(2)]
        uncached = milliseconds(network, n_tokens, cached=False)
        cached.append(milliseconds(network, n_tokens, cached=True))
        for i, what in enumerate((f"{n_tokens} tokens", f"last {LAST} of them")):
            with_cache = statistics.median(each[i] for each in cached)
            print(
                f"{name:23} {what:16} cached {with_cache:6.2f} ms ({1e3 / with_cache:6.0f} tokens/s)   "
                f"uncached {uncached[i]:6.2f} ms ({1e3 / uncached[i]:5.0f} tokens/s)   "
                f"{uncached[i] / with_cache:5.1f} x"
            )


if __name__ == "__main__":
    main()
