"""Character tokenizer."""

import json
from pathlib import Path

import numpy as np
import pytest

from app.run.errors import DataError
from datamodules import tokenizers
from datamodules.tokenizers import CharTokenizer

MIXED = "a\nzé€😀"  # 1, 1, 1, 2, 3 and 4 bytes in UTF-8


def test_encode_and_decode() -> None:
    tokenizer = CharTokenizer("cba")
    assert tokenizer.alphabet == "abc"
    assert tokenizer.encode("cab").tolist() == [2, 0, 1]
    assert tokenizer.encode("").tolist() == []
    assert tokenizer.decode([2, 0, 1]) == "cab"
    assert tokenizer.decode([]) == ""


def test_multi_byte_characters_round_trip_with_their_sizes() -> None:
    tokenizer = CharTokenizer(MIXED)
    text = MIXED * 3 + MIXED[::-1]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids.astype(np.int64)) == text
    assert tokenizer.token_bytes.dtype == np.int64
    assert tokenizer.token_bytes.tolist() == [len(c.encode()) for c in tokenizer.alphabet]
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())


def test_bytes_per_token_at_the_limits_of_utf8() -> None:
    limits = "\x7f\x80\u07ff\u0800\uffff\U00010000\U0010ffff"
    assert CharTokenizer(limits).token_bytes.tolist() == [1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize(
    ("n_symbols", "dtype"), [(1, "u1"), (256, "u1"), (257, "u2"), (65536, "u2"), (65537, "u4")]
)
def test_ids_take_the_smallest_type(n_symbols: int, dtype: str) -> None:
    alphabet = "".join(map(chr, range(0x10000, 0x10000 + n_symbols)))
    tokenizer = CharTokenizer(alphabet)
    ids = tokenizer.encode(alphabet)
    assert ids.dtype == tokenizer.dtype == np.dtype(dtype)
    assert (ids == np.arange(n_symbols)).all()


def test_unknown_characters_are_named_with_their_positions() -> None:
    tokenizer = CharTokenizer("abc")
    with pytest.raises(DataError) as caught:
        tokenizer.encode("abéa\udc80é")
    message = str(caught.value)
    assert "'é' (U+00E9) at position 2" in message
    assert "(U+DC80) at position 4" in message
    assert "3 character(s)" in message
    message.encode()  # printable although the text held a lone surrogate
    with pytest.raises(DataError, match=r"position 4, …\."):
        tokenizer.encode("123456")


def test_save_and_load(tmp_path: Path) -> None:
    tokenizer = CharTokenizer(MIXED)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    loaded = tokenizers.load(path)
    assert isinstance(loaded, CharTokenizer)
    assert loaded.alphabet == tokenizer.alphabet
    assert loaded.hash == tokenizer.hash
    assert json.loads(path.read_text())["kind"] == "char"


def test_the_hash_tells_tokenizers_of_one_size_apart() -> None:
    assert CharTokenizer("abc").hash == CharTokenizer("cba").hash
    assert CharTokenizer("abc").hash != CharTokenizer("abd").hash
    assert len(CharTokenizer("abc").hash) == 64


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not a tokenizer file"),
        ("[]", "JSON object"),
        ('{"kind": "other"}', "'other'"),
        ('{"kind": "char"}', "alphabet"),
        ('{"kind": "char", "alphabet": ""}', "empty"),
        ('{"kind": "char", "alphabet": "aa"}', "twice"),
    ],
)
def test_bad_files_are_refused_with_their_name(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(DataError, match=reason) as caught:
        tokenizers.load(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.json: cannot be read"):
        tokenizers.load(tmp_path / "tokenizer.json")
