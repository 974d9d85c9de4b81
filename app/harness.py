"""Our networks as language models of lm-eval (the extra ``eval``): what a task asks, computed on our tokenizers.

Each text is read by itself, at its own length: nothing here depends on what else is asked.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from app.loading import Loaded
from app.models.generation import generate, generation_window

MAX_NEW_TOKENS = 256  # where a task names no number


class NetworkLM(LM):
    """A network that lm-eval can ask.

    Args:
        loaded: network, tokenizer and block size, of :func:`app.load`.
    """

    def __init__(self, loaded: Loaded):
        super().__init__()
        self.network, self.tokenizer, self.block_size = loaded
        self.start: list[int] = self.tokenizer.start().tolist()

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """For each context and continuation, ``log p`` in nats, and whether the continuation is the greedy one.

        An empty context stands for the start of a text; of a context that is too long the last tokens are read.
        """
        return [self._of_pair(*request.args) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """``log p`` in nats of each whole text, window by window, every token once."""
        found = []
        for request in requests:
            ids = self.tokenizer.encode(request.args[0]).tolist()
            windows = get_rolling_token_windows(ids, self.start[-1], self.block_size, 1)
            found.append(sum(self._score(*make_disjoint_window(window))[0] for window in windows))
        return found

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """What follows each context, up to the first of the task's stops; greedy unless the task samples."""
        return [self._continued(*request.args) for request in requests]

    def _of_pair(self, context: str, continuation: str) -> tuple[float, bool]:
        ids = self.tokenizer.encode(context + continuation).tolist()
        n_context = len(self.tokenizer.encode(context))
        before = ids[:n_context] or self.start
        return self._score(before, ids[n_context:])

    @torch.no_grad()
    def _score(self, before: Sequence[int], ids: Sequence[int]) -> tuple[float, bool]:
        device = next(self.network.parameters()).device
        # The last token predicts nothing; what is beyond the window is not read.
        whole = torch.tensor([*before, *ids][-self.block_size - 1 :], device=device)
        n = min(len(ids), len(whole) - 1)
        if n == 0:
            return 0.0, True
        logits = self.network(whole[None, :-1]).logits[0, -n:]
        targets = whole[-n:]
        log_p = logits.double().log_softmax(-1).gather(-1, targets[:, None]).sum()
        return float(log_p), bool((logits.argmax(-1) == targets).all())

    def _continued(self, context: str, options: dict[str, Any]) -> str:
        stops = options.get("until") or []
        stops = [stops] if isinstance(stops, str) else list(stops)
        temperature = float(options.get("temperature") or 0.0) if options.get("do_sample") else 0.0
        ids = self.tokenizer.encode_prompt(context)
        device = next(self.network.parameters()).device
        stream = generate(
            self.network,
            torch.from_numpy(ids)[None].to(device),
            int(options.get("max_gen_toks", MAX_NEW_TOKENS)),
            temperature=temperature,
            block_size=generation_window(self.network, self.block_size),
        )
        new: list[int] = []
        text = ""
        for token in stream:
            new.append(int(token))
            text = self.tokenizer.decode(new)
            if any(stop and stop in text for stop in stops):
                break
        for stop in stops:
            text = text.split(stop)[0] if stop else text
        return text
