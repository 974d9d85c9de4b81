"""What a network did with each token of a text."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.models.language_model import LanguageModel

#: windows that are read at once
WINDOWS_AT_ONCE = 8
#: what is known of every network's predictions
PREDICTIONS = {
    "loss": "what the token cost: −ln of the probability that the network gave it, knowing those before it",
    "entropy": "how unsure the network was before it saw the token: 0 where it was certain",
}


@dataclass(frozen=True)
class TracedMeasure:
    """One quantity of the tokens of a text.

    Attributes:
        values: ``(layers, n)`` or ``(n,)``: int64 indices of ``labels``, or float32; NaN where it is not defined.
        labels: names of the categories; empty for a quantity.
        unit: of a quantity; empty for plain numbers.
        meaning: what a value says, in words; may be empty.
    """

    values: np.ndarray
    labels: tuple[str, ...] = ()
    unit: str = ""
    meaning: str = ""


@dataclass(frozen=True)
class Trace:
    """A text as a network read it.

    Attributes:
        ids: ``(n,)`` int64 tokens.
        measures: by name; what the network reports, then ``loss`` and ``entropy`` of its predictions.
        block_size: tokens of a window; a window knows nothing of the one before.
    """

    ids: np.ndarray
    measures: dict[str, TracedMeasure]
    block_size: int


@torch.no_grad()
def trace(network: LanguageModel, ids: np.ndarray, block_size: int) -> Trace:
    """Reads a text in windows of ``block_size`` tokens, each once.

    ``loss`` (nats) is what a token cost given those before it in its window, or, of a window's first one, given the
    whole window before; ``entropy`` (nats) is that of the same prediction. The text's first token has neither.

    Args:
        network: in evaluation mode.
        ids: ``(n,)`` tokens, n >= 1.
        block_size: tokens of a window, >= 1.
    """
    device = next(network.parameters()).device
    idx = torch.as_tensor(np.asarray(ids, dtype=np.int64))
    n_whole = len(idx) // block_size
    whole = idx[: n_whole * block_size].view(n_whole, block_size)
    windows = list(whole.split(WINDOWS_AT_ONCE)) if n_whole else []
    if len(idx) % block_size:
        windows.append(idx[None, n_whole * block_size :])
    parts: dict[str, list[np.ndarray]] = {}
    described: dict[str, dict[str, Any]] = {}
    entropies, losses = [], []
    position = 0
    for batch in windows:
        output = network(batch.to(device))
        for name, measure in network.token_measures(output).items():
            values = measure.values.flatten(-2).cpu()
            parts.setdefault(name, []).append(values.numpy() if measure.labels else values.float().numpy())
            described[name] = {"labels": measure.labels, "unit": measure.unit, "meaning": measure.meaning}
        following = idx[position + 1 : position + batch.numel() + 1]  # one less at the text's end
        position += batch.numel()
        entropy, loss = _prediction(output.logits.flatten(0, 1).float(), following.to(device))
        entropies.append(entropy)
        losses.append(loss)
    measures = {
        name: TracedMeasure(np.concatenate(values, axis=-1), **described[name])
        for name, values in parts.items()
    }
    for name, found in (("loss", losses), ("entropy", entropies)):
        after = np.concatenate(found)[: len(idx) - 1]  # of the token after each position
        first_without = np.concatenate([[np.nan], after]).astype(np.float32)
        measures[name] = TracedMeasure(first_without, unit="nats", meaning=PREDICTIONS[name])
    return Trace(idx.numpy(), measures, block_size)


def _prediction(logits: Tensor, following: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Entropy of each prediction ``(m,)``, and the loss of the tokens that follow the first of them."""
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    loss = -log_p[: len(following)].gather(-1, following[:, None])[:, 0]
    return entropy.cpu().numpy(), loss.cpu().numpy()
