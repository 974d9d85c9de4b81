"""A text of any size to token ids, in parts, by several processes, in bounded memory."""

import contextlib
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import connection
from typing import NamedTuple

import numpy as np

from app.run.errors import DataError
from app.run.signals import ignore_in_worker, starting_processes
from datamodules.tokenizers import Tokenizer, from_dict
from datamodules.tokenizers.base import Losses
from datamodules.tokenizers.word import count_words

SEGMENT_CHARACTERS = 1 << 20
#: segments under way per process; more hide a slow disk, fewer take less memory
_SEGMENTS_AHEAD = 2


class Encoded(NamedTuple):
    """One segment of a text.

    Attributes:
        ids: ``(n,)`` in the tokenizer's dtype.
        n_characters: of the segment.
        n_bytes: of its UTF-8 form.
        n_words: what white space separates, and one more per line end.
        is_blank: whether it is nothing but white space.
        losses: what of it the ids do not hold.
    """

    ids: np.ndarray
    n_characters: int
    n_bytes: int
    n_words: int
    is_blank: bool
    losses: Losses


def segments(pieces: Iterable[str], size: int = SEGMENT_CHARACTERS) -> Iterator[str]:
    """The same text in segments of at most ``size`` characters, whose ids are together those of the whole.

    A segment ends before a space or line end that follows no white space; a stretch of ``size`` characters
    without such a place is cut where it stands. Where the cuts lie depends on the text alone.
    """
    buffer = ""
    for piece in pieces:
        buffer += piece
        start = 0
        while len(buffer) - start >= size:
            end = _last_cut(buffer, start, start + size)
            yield buffer[start:end]
            start = end
        buffer = buffer[start:]
    if buffer:
        yield buffer


def _last_cut(text: str, start: int, end: int) -> int:
    place = end
    while (place := max(text.rfind(" ", start, place), text.rfind("\n", start, place))) > start:
        if not text[place - 1].isspace():
            return place
    return end


def encode_segment(tokenizer: Tokenizer, text: str) -> Encoded:
    """Ids and counts of one segment."""
    ids = tokenizer.encode_compact(text)
    n_bytes = len(text) if text.isascii() else len(text.encode())
    return Encoded(ids, len(text), n_bytes, count_words(text), text.isspace(), tokenizer.losses(text, ids))


def encoded(texts: Iterable[str], tokenizer: Tokenizer, n_processes: int, where: str) -> Iterator[Encoded]:
    """Encodes segments, in their order, with so many processes; one means this one.

    Args:
        texts: the segments.
        tokenizer: makes the ids.
        n_processes: that encode.
        where: the text, for messages of the tokenizer; those of ``texts`` name their file themselves.

    Raises:
        DataError: of the tokenizer.
    """
    if n_processes <= 1:
        for text in texts:
            with _located(where):
                part = encode_segment(tokenizer, text)
            yield part
        return
    pool = ProcessPoolExecutor(
        n_processes,
        # A fresh process: this one may hold threads, a GPU and half a framework.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(tokenizer.to_dict(),),
    )
    waiting: deque[Future[Encoded]] = deque()
    try:
        for text in texts:
            with starting_processes():
                waiting.append(pool.submit(_encode_in_worker, text))
            if len(waiting) > _SEGMENTS_AHEAD * n_processes:
                with _located(where):
                    part = waiting.popleft().result()
                yield part
        while waiting:
            with _located(where):
                part = waiting.popleft().result()
            yield part
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _located(where: str) -> Iterator[None]:
    """Puts the text before the tokenizer's messages."""
    try:
        yield
    except DataError as error:
        raise DataError([f"{where}: {problem}" for problem in error.problems]) from None


_tokenizer: Tokenizer | None = None


def _start_worker(values: dict[str, object]) -> None:
    global _tokenizer
    ignore_in_worker()  # a signal to the group is the parent's business, which ends its workers itself
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _tokenizer = from_dict(values)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _encode_in_worker(text: str) -> Encoded:
    assert _tokenizer is not None
    return encode_segment(_tokenizer, text)


def _end_with_parent() -> None:
    """Workers of a killed process would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
