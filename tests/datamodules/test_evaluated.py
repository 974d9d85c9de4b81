"""What the tokens of a split hold of its text, and which figures that leaves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules import CharDataModule, TextDataModule, WikiTextDataModule, preparation
from datamodules.tokenizers import ByteTokenizer, WordTokenizer
from datamodules.tokenizers.base import Losses

TRAIN = "the cat sat\n" * 40
VALID = "the dog sat\nthe cat ran\n" * 5  # 40 tokens: 30 words, of which 10 are new, and 10 line ends


def make(tmp_path: Path, train: str, valid: str, kind: Any, size: int | None = None) -> TextDataModule:
    folder = tmp_path / "texts"
    folder.mkdir(exist_ok=True)
    (folder / "train.txt").write_text(train)
    (folder / "valid.txt").write_text(valid)
    return TextDataModule(
        str(folder), tokenizer=kind, max_vocab_size=size, block_size=4, cache_dir=str(tmp_path / "cache")
    )


def losses(tokenizer: Any, text: str) -> Losses:
    return tokenizer.losses(text, tokenizer.encode_compact(text))


def test_words_that_the_vocabulary_has_not_are_counted() -> None:
    words = WordTokenizer(["<unk>", "<eos>", "the", "cat"])
    assert losses(words, "the cat\n") == (0, 0)
    assert losses(words, "the dog sat\n") == (2, 0)
    assert losses(words, "the <unk> sat\n") == (1, 0)  # the text's own <unk> is a word of it
    assert losses(words, "the <eos> cat\n") == (1, 0)  # not to be told from a line end
    assert losses(words, "<unk> the<unk> <unk>s <eos>\n<unk>") == (3, 0)
    assert losses(words, " the cat \n the \n\n") == (0, 0)
    assert losses(words, "the  cat\n\tthe\n   cat\u3000the\n") == (0, 5)
    assert losses(words, "the \t cat 😀 \x85 the\x1c\n") == (1, 3)
    every = [chr(code) for code in range(0x110000) if chr(code).isspace() and chr(code) not in " \n"]
    assert losses(words, "the" + "".join(every) + "😀") == (1, len(every))
    assert losses(ByteTokenizer(), "the  dog <unk>\n") == (0, 0)


def test_unknown_words_leave_neither_bytes_nor_words(tmp_path: Path) -> None:
    data = make(tmp_path, TRAIN, VALID, "word")
    assert data.evaluated_text("val") == (None, None, 0.25)
    assert data.bytes_per_token == 3.0  # the training split has every word of its own
    assert any(
        note.startswith("25.00% of the tokens of the validation split are words that")
        for note in data.notes()
    )
    smallest = make(tmp_path, TRAIN, VALID, "word", 3)
    assert smallest.evaluated_text("val").unknown_share == pytest.approx(25 / 40)
    assert smallest.bytes_per_token is None


def test_what_loses_nothing_has_everything(tmp_path: Path) -> None:
    for kind in ("char", "byte", "bpe"):
        scale, words, share = make(tmp_path, TRAIN, VALID, kind).evaluated_text("val")
        assert (scale, share) == (1.0, None)
        assert words is not None
    (tmp_path / "a.txt").write_text(VALID)
    assert CharDataModule(path=str(tmp_path / "a.txt"), block_size=4).evaluated_text("val") == (
        1.0,
        None,
        None,
    )
    data = make(tmp_path, TRAIN, "the cat\n" * 20, "word")
    assert data.evaluated_text("val") == (
        8 / 9,
        1.0,
        0.0,
    )  # tokens count a space after each word, the last one too
    assert not [note for note in data.notes() if "left out" in note]


def test_an_unk_of_the_text_itself_is_a_word(tmp_path: Path) -> None:
    lines = " = The <unk> lighthouse = \n" * 30
    for name in ("train", "valid"):
        (tmp_path / f"wiki.{name}.tokens").write_text(lines + f"The {name}\n" * (name == "train"))
    cache = str(tmp_path / ".c")
    for size in (None, 4):  # The and = are kept, lighthouse is not
        data = WikiTextDataModule(
            "wikitext-2-v1",
            "word",
            data_dir=str(tmp_path),
            max_vocab_size=size,
            block_size=4,
            cache_dir=cache,
        )
        unknown = [word for word in lines.split() if word not in data.tokenizer.to_dict()["words"]]
        scale, words, share = data.evaluated_text("val")
        assert set(unknown) == (set() if size is None else {"lighthouse"})
        assert share == len(unknown) / (6 * 30)
        assert (words is not None) == (scale is not None) == (size is None)


def test_lost_white_space_leaves_words_and_no_bytes(tmp_path: Path) -> None:
    data = make(tmp_path, TRAIN, "the  cat\n\tsat\n" * 9, "word")
    scale, words, share = data.evaluated_text("val")
    assert (scale, share) == (None, 0.0)
    assert words is not None
    assert any(
        "do not hold its white space (18 characters are lost): bits per byte" in note for note in data.notes()
    )


def test_stretches_without_white_space_are_no_words(tmp_path: Path) -> None:
    data = make(tmp_path, TRAIN, "x" * 400 + "\n", "byte")
    assert data.evaluated_text("val") == (1.0, None, None)
    assert any(
        "stretches of 200 characters in the validation split, which are no words" in n for n in data.notes()
    )


def test_what_was_prepared_before_words_were_counted_is_prepared_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("word", "byte"):
        tokens = make(tmp_path, TRAIN, VALID, kind).check_source().val
        (meta,) = (tmp_path / "cache").glob(f"text-{kind}-*/meta.json")
        values = json.loads(meta.read_text())
        for facts in values["splits"].values():
            del facts["n_unknown"], facts["n_lost_spaces"]
        meta.write_text(json.dumps(values))
        with monkeypatch.context() as patch:
            if kind == "byte":  # which loses nothing: what is there goes on to serve
                patch.setattr(preparation.Preparation, "_prepare", None)
            again = make(tmp_path, TRAIN, VALID, kind)
            assert np.array_equal(again.check_source().val, tokens)
        assert again.evaluated_text("val").unknown_share == (0.25 if kind == "word" else None)
