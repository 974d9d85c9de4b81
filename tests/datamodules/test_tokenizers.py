"""Tokenizers of every kind."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.run.errors import DataError
from datamodules import tokenizers
from datamodules.text import read_text
from datamodules.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    SymbolTokenizer,
    Tokenizer,
    WordTokenizer,
)
from datamodules.tokenizers import bpe as bpe_module
from datamodules.tokenizers import word as word_module
from datamodules.tokenizers.bpe import slices, train_bpe
from datamodules.tokenizers.word import choose_words, count_vocabulary, count_words

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
    ids = tokenizer.encode_compact(alphabet)
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
        ('{"kind": "word", "words": ["a"]}', "begins with <unk> and <eos>"),
        ('{"kind": "word", "words": ["<unk>", "<eos>", "a", "a"]}', "twice"),
        ('{"kind": "word", "words": "a"}', "list of strings"),
        ('{"kind": "bpe"}', "list of tokens"),
        ('{"kind": "bpe", "tokens": ["a"], "merges": []}', "255 of the 256 single bytes are missing"),
        ('{"kind": "bpe", "tokens": ["a", "a"], "merges": []}', "without gaps|missing"),
    ],
)
def test_bad_files_are_refused_with_their_name(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(DataError, match=reason) as caught:
        tokenizers.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"more": ["a\ud800"]}, "holds half a character"),
        ({"merges": [[-1, -2]]}, "list of pairs of ids"),  # the library ends a process by it
        ({"merges": [[True, 0]]}, "list of pairs of ids"),
        ({"merges": [[0, 1]]}, "merges: do not fit the vocabulary ('!', '\"')"),
        ({"merges": [[10**30, 0]]}, "list of pairs of ids"),
    ],
)
def test_a_bpe_file_that_does_not_fit_itself(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    values = train_bpe(["ababab"], 257).to_dict()
    values["tokens"] += changes.get("more", [])
    values["merges"] = changes.get("merges", values["merges"])
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(values))
    with pytest.raises(DataError) as caught:
        tokenizers.load(path)
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.json: cannot be read"):
        tokenizers.load(tmp_path / "tokenizer.json")


TEXT = (
    "The cat sat on the mat , the dog did n't .\n\n = Title = \n\tnaïve café 😀 12 345's   \u3000x\x1cy\x85z\r0\n"
    * 8
)


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    return train_bpe([TEXT], 300)


@pytest.fixture(params=["char", "byte", "bpe", "word"])
def any_tokenizer(request: pytest.FixtureRequest, bpe: BPETokenizer) -> Tokenizer:
    made: dict[str, Tokenizer] = {
        "char": CharTokenizer("".join(set(TEXT))),
        "byte": ByteTokenizer(),
        "bpe": bpe,
        "word": WordTokenizer(["<unk>", "<eos>", *sorted(set(TEXT.split()))]),
    }
    return made[request.param]


def test_every_kind_comes_back_from_its_file(any_tokenizer: Tokenizer, tmp_path: Path) -> None:
    any_tokenizer.save(tmp_path / "tokenizer.json")
    loaded = tokenizers.load(tmp_path / "tokenizer.json")
    assert type(loaded) is type(any_tokenizer)
    assert loaded.hash == any_tokenizer.hash
    assert len(loaded.hash) == 64
    assert (loaded.encode(TEXT) == any_tokenizer.encode(TEXT)).all()
    assert (loaded.token_bytes == any_tokenizer.token_bytes).all()


def test_text_comes_back_with_its_bytes(any_tokenizer: Tokenizer) -> None:
    ids = any_tokenizer.encode(TEXT)
    assert ids.dtype == any_tokenizer.encode("").dtype == any_tokenizer.start().dtype == np.int64
    compact = any_tokenizer.encode_compact(TEXT)
    assert compact.dtype == any_tokenizer.dtype
    assert (compact == ids).all()
    assert any_tokenizer.token_bytes.shape == (any_tokenizer.vocab_size,)
    if any_tokenizer.is_lossless:
        assert any_tokenizer.decode(ids) == TEXT
        assert any_tokenizer.token_bytes[ids].sum() == len(TEXT.encode())
    else:
        assert any_tokenizer.decode(ids).split() == TEXT.split()
    assert any_tokenizer.encode("").tolist() == []
    assert any_tokenizer.decode(any_tokenizer.start()) == "\n"


def test_tokens_are_what_a_network_takes(any_tokenizer: Tokenizer) -> None:
    embedding = torch.nn.Embedding(any_tokenizer.vocab_size, 2)
    for ids in (
        any_tokenizer.encode("The cat"),
        any_tokenizer.encode_prompt("The cat"),
        any_tokenizer.start(),
    ):
        assert embedding(torch.from_numpy(ids)).shape == (len(ids), 2)


def test_a_prompt_has_the_line_ends_of_the_texts_that_were_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    text = "".join(read_text(tmp_path / "a.txt"))
    words = WordTokenizer(["<unk>", "<eos>", "one", "two", "three"])
    for tokenizer in (CharTokenizer("".join(set(text))), ByteTokenizer(), words):
        ids = tokenizer.encode_prompt("\ufeffone\r\ntwo\rthree\n")
        assert ids.tolist() == tokenizer.encode(text).tolist()
        for nothing in ("", "\ufeff"):
            assert tokenizer.encode_prompt(nothing).tolist() == tokenizer.start().tolist()
    assert words.encode_prompt("  ").tolist() == words.start().tolist()  # white space alone has no word


@pytest.mark.parametrize("size", [1, 7, 50])
def test_parts_have_the_tokens_of_the_whole(any_tokenizer: Tokenizer, size: int) -> None:
    parts = list(slices(TEXT, size))
    assert "".join(parts) == TEXT
    assert len(parts) > 5
    together = np.concatenate([any_tokenizer.encode(part) for part in parts])
    assert (together == any_tokenizer.encode(TEXT)).all()


def test_words_are_cut_where_the_library_would_not_look_across(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "datamodules.tokenizers.bpe._MAX_KNOWN_WORDS", 50
    )  # some are remembered, some are not
    signs = [*"ab1-\t\n\r", " ", " ", "'s", "é", "😀", "\u3000", "\x1c", "\x85", "\u2028"]
    draw = random.Random(0)
    texts = ["".join(draw.choices(signs, k=draw.randint(0, 14))) for _ in range(1500)]
    tokenizer = train_bpe(
        texts, 1000
    )  # with merges of signs and odd white space, which a wrong cut would undo
    for text in texts:
        whole = tokenizer._encoder.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text).tolist() == whole, repr(text)
    assert len(tokenizer._known) == 50


def test_every_kind_has_another_hash(bpe: BPETokenizer) -> None:
    different = [ByteTokenizer(), bpe, train_bpe([TEXT], 299), GPT2Tokenizer.from_dict(bpe.to_dict())]
    assert len({tokenizer.hash for tokenizer in different}) == 4


def test_bytes() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("aé").tolist() == [97, 0xC3, 0xA9]
    assert tokenizer.decode([97, 0xC3]) == "a\ufffd"  # cut inside a character
    assert tokenizer.encode("\udcff").tolist() == [
        0xFF
    ]  # as a command line hands over a byte that is no UTF-8
    with pytest.raises(DataError, match=r"U\+D800 at position 1"):
        tokenizer.encode("a\ud800")


def test_words_are_counted_as_in_the_literature() -> None:
    # What `line.split() + ["<eos>"]` gives for each line.
    text = " \n = Robert <unk> = \n \n Robert is a \n"
    assert count_words(text) == sum(len(line.split()) + 1 for line in text.splitlines()) == 11
    tokenizer = WordTokenizer(["<unk>", "<eos>", "=", "Robert"])
    assert tokenizer.encode(text).tolist() == [1, 2, 3, 0, 2, 1, 1, 3, 0, 0, 1]
    assert tokenizer.decode([3, 0, 1, 2]) == "Robert <unk> \n= "
    assert tokenizer.encode("no line end").tolist() == [0, 0, 0]
    assert tokenizer.token_bytes.tolist() == [6, 1, 2, 7]


def test_words_by_frequency() -> None:
    counts = {"b": 2, "a": 2, "c": 5, "<unk>": 9, "d": 1}
    assert choose_words(counts, None) == ["<unk>", "<eos>", "c", "a", "b", "d"]
    assert choose_words(counts, 4) == ["<unk>", "<eos>", "c", "a"]


def test_words_of_a_text_of_any_size_are_counted_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    frequent = [
        " ".join(["the", "of", "and"] * 5 + [f"{n:x}" for n in range(i, i + 50)]) for i in range(0, 2000, 50)
    ]
    monkeypatch.setattr(word_module, "MAX_COUNTED_WORDS", 100)
    counts = count_vocabulary(frequent, 5)
    assert len(counts) <= 2 * 100
    assert choose_words(counts, 5) == ["<unk>", "<eos>", "and", "of", "the"]
    assert counts["the"] == 200
    with pytest.raises(DataError, match="max_vocab_size: there are more than 100 different words"):
        count_vocabulary(frequent, None)
    assert count_vocabulary(["a b a", "b " + "x" * 1001], None) == {"a": 2, "b": 2}


def test_pairs_of_a_text_of_any_size_are_learnt_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    new = [" ".join(f"{draw.getrandbits(32):08x}" for _ in range(100)) for _ in range(50)]
    texts = [f"the cat {part} sat\n" for part in new]
    monkeypatch.setattr(bpe_module, "MAX_LEARNT_BYTES", 1000)
    fed = "".join(bpe_module._learnable(texts))
    assert fed.count(" sat") == fed.count("the") == 50  # what has occurred before goes on to count
    assert sum(map(len, set(fed.split()))) <= 1000
    monkeypatch.undo()
    assert list(bpe_module._learnable([TEXT])) == [TEXT]  # a usual text is fed as it is
    parts = list(bpe_module._learnable(["a " + "xyz" * 1000]))
    assert max(map(len, parts)) <= 256
    assert sorted("".join(parts)) == sorted("a " + "xyz" * 1000)


def test_byte_pairs_are_those_of_the_library(bpe: BPETokenizer) -> None:
    whole = bpe._encoder.encode(TEXT)
    assert bpe.encode(TEXT).tolist() == whole.ids
    assert 257 <= bpe.vocab_size <= 300
    assert bpe.encode("the").size < 3
    with pytest.raises(DataError, match="half a character"):
        bpe.encode("a\ud800")


def test_a_long_word_is_no_trouble(bpe: BPETokenizer) -> None:
    assert bpe.decode(bpe.encode("x" * 100_000)) == "x" * 100_000


def test_gpt2_from_its_files(bpe: BPETokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"vocab\.json and .*merges\.txt not found"):
        GPT2Tokenizer.from_files(tmp_path)
    vocabulary = bpe._vocabulary | {"<|endoftext|>": bpe.vocab_size}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in bpe._merges)]
    (tmp_path / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    gpt2 = GPT2Tokenizer.from_files(tmp_path)
    assert gpt2.kind == "gpt2"
    assert (gpt2.encode(TEXT) == bpe.encode(TEXT)).all()
    assert gpt2.decode([bpe.vocab_size]) == "<|endoftext|>"
    (tmp_path / "merges.txt").write_text("one two three\n")
    with pytest.raises(DataError, match="are not GPT-2's"):
        GPT2Tokenizer.from_files(tmp_path)


def test_symbols_are_numbers() -> None:
    tokenizer = SymbolTokenizer(300)
    assert tokenizer.encode(" 3 0\n299").tolist() == [3, 0, 299]
    assert tokenizer.decode([3, 0, 299]) == "3 0 299 "
    assert tokenizer.dtype == np.uint16
    assert tokenizers.from_dict(tokenizer.to_dict()).hash == tokenizer.hash != SymbolTokenizer(301).hash
    assert tokenizer.encode_prompt("").tolist() == [0]
    for text in ("300", "-1", "x", "1.5", "9" * 30):
        with pytest.raises(DataError, match="numbers from 0 to 299"):
            tokenizer.encode(text)
    for size in (0, "3", None, 1 << 30):
        with pytest.raises(DataError, match="vocab_size"):
            tokenizers.from_dict({"kind": "symbols", "vocab_size": size})
