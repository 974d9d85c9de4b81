"""Texts of any size to ids, in segments."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from app.run.errors import DataError
from datamodules.encoding import encode_segment, encoded, segments
from datamodules.tokenizers import ByteTokenizer, CharTokenizer, WordTokenizer
from datamodules.tokenizers.bpe import train_bpe
from datamodules.tokenizers.word import count_words
from tests.support.application import assert_gone

TEXT = "".join(random.Random(0).choices("ab  \n\té😀1.", k=5000))


@pytest.mark.parametrize("size", [10, 100, 1000])
@pytest.mark.parametrize("n_pieces", [1, 3, 500])
def test_segments_depend_on_the_text_alone(size: int, n_pieces: int) -> None:
    step = len(TEXT) // n_pieces
    pieces = [TEXT[i : i + step] for i in range(0, len(TEXT), step)]
    found = list(segments(pieces, size))
    assert found == list(segments([TEXT], size))
    assert "".join(found) == TEXT
    assert max(map(len, found)) <= size


def test_a_text_without_white_space_is_cut_where_it_stands() -> None:
    assert [len(part) for part in segments(["x" * 1000], 300)] == [300, 300, 300, 100]


@pytest.mark.parametrize("size", [50, 400])
def test_segments_have_the_tokens_and_words_of_the_whole(size: int) -> None:
    words = WordTokenizer(["<unk>", "<eos>", "a", "b", "ab"])
    for tokenizer in (words, ByteTokenizer(), train_bpe([TEXT], 280)):
        parts = list(encoded(segments([TEXT], size), tokenizer, 1, "here"))
        assert (np.concatenate([part.ids for part in parts]) == tokenizer.encode(TEXT)).all()
        assert sum(part.n_words for part in parts) == count_words(TEXT)
        assert sum(part.n_bytes for part in parts) == len(TEXT.encode())
        assert sum(part.n_characters for part in parts) == len(TEXT)


def test_several_processes_give_the_same_in_the_same_order() -> None:
    tokenizer = train_bpe([TEXT], 280)
    alone, helped = (list(encoded(segments([TEXT], 100), tokenizer, n, "here")) for n in (1, 2))
    assert [part.ids.tolist() for part in helped] == [part.ids.tolist() for part in alone]
    assert helped[3].ids.dtype == alone[3].ids.dtype
    assert helped[3].ids.dtype == tokenizer.dtype  # as small as they are kept


@pytest.mark.parametrize("n_processes", [1, 2])
def test_a_message_names_its_text_once(n_processes: int) -> None:
    def texts(end: str) -> Iterator[str]:
        yield from ["ab", end] * 9
        raise DataError("a.txt: cannot be read")

    with pytest.raises(DataError, match=r"^here: the text holds 3 .* does not know"):
        list(encoded(texts("xyz"), CharTokenizer("ab"), n_processes, "here"))
    with pytest.raises(DataError, match=r"^a\.txt: cannot be read"):
        list(encoded(texts("ba"), CharTokenizer("ab"), n_processes, "here"))


def test_white_space_is_noted() -> None:
    assert encode_segment(ByteTokenizer(), " \n").is_blank
    assert not encode_segment(ByteTokenizer(), " a").is_blank


def test_workers_end_with_a_killed_process() -> None:
    code = (
        "import time\n"
        "from multiprocessing import active_children\n"
        "from datamodules.encoding import encoded\n"
        "from datamodules.tokenizers import ByteTokenizer\n"
        "if __name__ == '__main__':\n"
        "    parts = encoded(('text ' for _ in range(10)), ByteTokenizer(), 2, 'here')\n"
        "    next(parts)\n"
        "    print(*[child.pid for child in active_children()], flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    workers = [int(word) for word in process.stdout.readline().split()]
    assert len(workers) == 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert_gone(workers, 10)
