"""A part of the training text that is held out for tuning and stopping, so that the validation split stays unseen."""

from dataclasses import replace
from typing import Any

from app.run.errors import DataError
from datamodules.corpus import Corpus, split_points
from datamodules.token_files import SplitFacts


def held_out(corpus: Corpus, fraction: float, block_size: int, is_tuning: bool) -> Corpus:
    """A text whose training split ends earlier.

    Args:
        corpus: the whole text.
        fraction: of the training split, in (0, 1), cut from its end.
        block_size: targets per window; what is left must hold one.
        is_tuning: whether that part stands in place of the validation split. Either way the text is the same one, by
            its fingerprint.

    Returns:
        What was counted in the training text is taken in proportion.

    Raises:
        DataError: one of the two parts is too short.
    """
    n_train = len(corpus.train)
    end, _ = split_points(n_train, fraction, 0)
    if end < block_size + 1 or n_train - end < 2:
        raise DataError(
            f"tuning_fraction: {fraction:g} of {n_train:,} training tokens leaves {end:,} to train on and "
            f"{n_train - end:,} to tune on; block_size {block_size} needs {block_size + 1:,} and 2. Change it, or give "
            "more text."
        )
    facts = dict(corpus.facts)
    if counted := facts.get("train"):
        facts["train"] = _share(counted, end)
        if is_tuning:
            facts["val"] = _share(counted, n_train - end)
    return replace(
        corpus,
        train=corpus.train[:end],
        val=corpus.train[end:] if is_tuning else corpus.val,
        fingerprint={**corpus.fingerprint, "tuning_fraction": fraction, "train_tokens": end},
        summary=f"{corpus.summary}; the last {n_train - end:,} training tokens are for tuning",
        facts=facts,
    )


def _share(facts: SplitFacts, n_tokens: int) -> SplitFacts:
    """What was counted in so many tokens of a text, in proportion."""

    def part(count: int | None) -> int | None:
        return None if count is None else -(-count * n_tokens // facts.n_tokens)

    names = ("n_characters", "n_bytes", "n_words", "n_token_bytes", "n_unknown", "n_lost_spaces")
    counts: dict[str, Any] = {name: part(getattr(facts, name)) for name in names}
    return replace(facts, n_tokens=n_tokens, **counts)
