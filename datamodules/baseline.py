"""What counting alone reaches on a text: worked out once, kept, and put beside what networks reach."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from app.run.atomic import write_json
from app.run.errors import StorageError
from datamodules import count_model
from datamodules.corpus import Corpus
from datamodules.yardsticks import KnownWords

#: of what is computed here; another one makes older files unknown
_VERSION = 1


class Samples(NamedTuple):
    """How texts are drawn, from networks and counts alike, to be looked at.

    Attributes:
        n_texts: how many, after prompts from evenly spaced places of the validation split.
        prompt_tokens: length of each prompt.
        n_tokens: drawn after each.
        temperature: to draw at, > 0.
    """

    n_texts: int
    prompt_tokens: int
    n_tokens: int
    temperature: float


@dataclass(frozen=True)
class CountBaseline:
    """A count model's figures, see :mod:`datamodules.count_model`.

    Attributes:
        order: tokens of context, chosen on held-out training text.
        losses: split (``val``, ``test``) to nats per token.
        n_words: words of four letters and more in its samples.
        n_known_words: those of them that occur in the text.
    """

    order: int
    losses: dict[str, float]
    n_words: int
    n_known_words: int

    @property
    def known_word_share(self) -> float | None:
        """Known words over words; None when there is no word."""
        return KnownWords(self.n_words, self.n_known_words).share


def work_out(
    corpus: Corpus,
    prompts: Sequence[np.ndarray],
    samples: Samples,
    known_words: Callable[[Iterable[str]], KnownWords],
) -> CountBaseline:
    """Counts the training split, scores the others, and draws texts that go on from the prompts."""
    model, order = count_model.chosen(corpus.train, corpus.tokenizer.vocab_size)
    splits = {"val": corpus.val, "test": corpus.test}
    losses = {split: float(model.losses(tokens)[-1]) for split, tokens in splits.items() if len(tokens) > 1}
    texts = [
        corpus.tokenizer.decode(model.sample(prompt, samples.n_tokens, order, samples.temperature, seed))
        for seed, prompt in enumerate(prompts)
    ]
    words = known_words(texts)
    return CountBaseline(order, losses, words.n_words, words.n_known)


def baseline_file(folder: Path | None, text: Mapping[str, Any], samples: Samples) -> Path | None:
    """Where the baseline of a text is kept; None where nothing is."""
    if folder is None:
        return None
    identity = json.dumps([_VERSION, dict(text), samples], sort_keys=True, default=str, allow_nan=False)
    return folder / "baselines" / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"


def read_baseline(file: Path | None) -> CountBaseline | None:
    """A baseline that was kept; None where there is none that can be read."""
    try:
        return None if file is None else CountBaseline(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def keep_baseline(file: Path | None, baseline: CountBaseline) -> None:
    """Keeps it, where that is possible: it can be worked out again."""
    if file is not None:
        with contextlib.suppress(OSError, StorageError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, asdict(baseline))
