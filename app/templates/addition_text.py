"""A data set of its own text: here sums, which are made; a text from elsewhere is read in their place."""

import random
from typing import Any

from app.options import PositiveInt
from datamodules.base import TokenDataModule
from datamodules.corpus import Corpus, corpus_of_text


class AdditionText(TokenDataModule):
    """Lines such as ``305+94=399``, of numbers below 1,000, as characters; the last tenth is held out.

    Args:
        n_lines: how many; the text is a function of their number.
        windows: options of :class:`~datamodules.base.TokenDataModule`.
    """

    def __init__(self, n_lines: PositiveInt = 50_000, **windows: Any):
        super().__init__(**windows)
        self.n_lines = n_lines

    def read_corpus(self) -> Corpus:
        draw = random.Random(0)
        pairs = [(draw.randrange(1000), draw.randrange(1000)) for _ in range(self.n_lines)]
        text = "".join(f"{a}+{b}={a + b}\n" for a, b in pairs)
        return corpus_of_text(text, "addition_text", block_size=self.block_size, val_fraction=0.1)
