"""What the tokens of an evaluated split stand for, and what that leaves of the figures measured on them."""

from typing import NamedTuple

import numpy as np

from datamodules.split_names import NAMES
from datamodules.token_files import SplitFacts
from datamodules.tokenizers import Tokenizer
from datamodules.tokenizers.word import count_words

#: standard deviation of the loss from token to token, which its mean has over the root of their number if they are
#: independent, and more because they are not: 1.3 to 1.7 for characters of three texts under a bigram, more for words
SPREAD_NATS = 1.5
#: of a split below it the mean is uncertain by 0.015 nats and more, as much as many a comparison is about
FEW_TOKENS = 10_000
#: characters of a mean word with its white space above which white space does not separate words: it is 5 to 9 in
#: languages that are written with spaces, and about 10 in programs
LONGEST_MEAN_WORD = 25


class EvaluatedText(NamedTuple):
    """What the tokens of an evaluation stand for.

    A tokenizer that maps words to ``<unk>`` makes its text easier: the share of such tokens is told, and neither bits
    per byte nor a perplexity per word are those of the text. An ``<unk>`` that the text itself holds, as the word-level
    WikiText does, is a word like others. Where white space is lost, words are as they were and bytes are not.

    Attributes:
        bytes_per_token_byte: bytes of the split's text over the bytes that its tokens stand for; 1 where the
            tokenizer loses nothing; None where it loses words or white space of this text.
        words_per_token: words (white space separates them, a line end is one) that end among the targets of
            the split, over its targets; None where words were not counted, are lost, or are none.
        unknown_share: tokens of the split that stand for a word which the vocabulary has not, over its tokens; None
            of a tokenizer that loses nothing.
    """

    bytes_per_token_byte: float | None
    words_per_token: float | None
    unknown_share: float | None


def evaluated_text(tokens: np.ndarray, tokenizer: Tokenizer, facts: SplitFacts | None) -> EvaluatedText:
    """How losses per token of a split become losses per byte and per word of its text.

    Args:
        tokens: ``(n,)`` of the split.
        tokenizer: made them.
        facts: what was counted in the text; None where nothing was.
    """
    if facts is None:
        return EvaluatedText(1.0, None, None)
    # The first token is no target: a word that ends with it does not count.
    head = tokens[:64]
    before = count_words(tokenizer.decode(head)) - count_words(tokenizer.decode(head[1:]))
    n_words = (facts.n_words - before) / (len(tokens) - 1)
    are_words = not facts.n_unknown and facts.n_characters <= LONGEST_MEAN_WORD * facts.n_words
    return EvaluatedText(
        None if facts.is_lossy else facts.n_bytes / facts.n_token_bytes,
        n_words if are_words else None,
        None if tokenizer.is_lossless else (facts.n_unknown or 0) / facts.n_tokens,
    )


def notes_on(split: str, n_tokens: int, facts: SplitFacts | None) -> list[str]:
    """What a person should know of a split on which figures are measured.

    Args:
        split: ``val`` or ``test``.
        n_tokens: of it; 0 where there is none.
        facts: what was counted in its text; None where nothing was.
    """
    name, found = f"the {NAMES[split]} split", []
    if 0 < n_tokens < FEW_TOKENS:
        found.append(
            f"{name} has {n_tokens:,} tokens only: its loss is known to no better than "
            f"± {SPREAD_NATS / n_tokens**0.5:.2g} nats ({SPREAD_NATS} nats of spread from token to token over the "
            "root of their number)"
        )
    if facts is None or not n_tokens:
        return found
    if facts.n_unknown:
        found.append(
            f"{facts.n_unknown / facts.n_tokens:.2%} of the tokens of {name} are words that the vocabulary has not: "
            "bits per byte and word perplexity are left out, losses compare within this vocabulary only"
        )
    elif facts.n_lost_spaces:
        found.append(
            f"the tokens of {name} do not hold its white space ({facts.n_lost_spaces:,} characters are lost): bits per "
            "byte are left out"
        )
    if facts.n_characters > LONGEST_MEAN_WORD * facts.n_words:
        length = facts.n_characters / max(facts.n_words, 1)
        found.append(
            f"white space separates stretches of {length:,.0f} characters in {name}, which are no words: "
            "word perplexity is left out"
        )
    return found
