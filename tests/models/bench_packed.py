"""Greedy generation of a packed export against the run that it was made from.

``python -m tests.models.bench_packed RUN EXPORT [ROUNDS]``: windows of 200 tokens that alternate in one process on one
thread, in tokens per second of processor time.
"""

import statistics
import sys

import torch

import app
from app.models import LanguageModel
from app.models.generation import generate
from tests.models.paired import ratio, seconds

N_TOKENS = 200


def main() -> None:
    """Prints the speed of both, their ratio, and whether they write the same."""
    torch.set_num_threads(1)
    texts: dict[str, list[int]] = {}
    tasks = {}
    for what, path in (("run", sys.argv[1]), ("packed", sys.argv[2])):
        network, tokenizer, _ = app.load(path)
        idx = torch.from_numpy(tokenizer.encode_prompt("def main():\n"))[None]

        def task(what: str = what, network: LanguageModel = network, idx: torch.Tensor = idx) -> None:
            texts[what] = [int(token) for token in generate(network, idx, N_TOKENS, temperature=0)]

        tasks[what] = task
    times = seconds(tasks, int(sys.argv[3]) if len(sys.argv) > 3 else 24)
    for what, own in times.items():
        print(
            f"{what:7} {N_TOKENS / statistics.median(own):6.0f} tokens/s, fastest {N_TOKENS / min(own):.0f}"
        )
    same = "the same" if texts["run"] == texts["packed"] else "NOT the same"
    print(f"speed of packed over run {ratio(times['run'], times['packed'])}; tokens are {same}")


if __name__ == "__main__":
    main()
