"""What is read of a folder, for which split, and what a person is told of the rest."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from app.run.errors import DataError
from datamodules import CharDataModule, TextDataModule, WikiTextDataModule
from datamodules.base import TokenDataModule
from datamodules.copies import copies
from tests.datamodules.test_splits import write_jsonl, write_parquet

Make = Callable[[Path], TokenDataModule]


def characters(folder: Path, **options: bool) -> TokenDataModule:
    return CharDataModule(path=str(folder), block_size=4, **options)


def prepared(folder: Path, **options: bool) -> TokenDataModule:
    cache = str(folder.parent / "cache")
    return TextDataModule(str(folder), tokenizer="byte", block_size=4, cache_dir=cache, **options)


def wikitext(folder: Path) -> TokenDataModule:
    cache = str(folder.parent / "cache")
    return WikiTextDataModule(data_dir=str(folder), tokenizer="byte", block_size=4, cache_dir=cache)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "texts"
    made.mkdir()
    return made


def write(folder: Path, *names: str) -> None:
    """Each file holds its own name, over and over."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} " * 20)


def splits(data: TokenDataModule) -> dict[str, set[str]]:
    """By split, the files whose names its text holds."""
    corpus = data.check_source()
    texts = {split: corpus.tokenizer.decode(getattr(corpus, split)) for split in ("train", "val", "test")}
    return {split: set(text.split()) for split, text in texts.items()}


def refusal(data: TokenDataModule) -> str:
    with pytest.raises(DataError) as caught:
        data.check_source()
    (only,) = caught.value.problems
    return only


every_kind = pytest.mark.parametrize("make", [characters, prepared])


@every_kind
@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train.txt", "valid.txt", "test.txt"),
        ("train1.txt", "valid1.txt", "test1.txt"),
        ("TrainSet.txt", "DevSet.txt", "TestSet.txt"),
        ("training.txt", "eval.txt", "testing.txt"),
        ("ptb.train", "ptb.valid", "ptb.test1"),
        ("TrainSet", "dev", "test_2"),
        ("Train/a.txt", "Valid/a.txt", "Test/a.txt"),
    ],
)
def test_no_text_that_is_held_out_is_trained_on(
    folder: Path, make: Make, train: str, val: str, test: str
) -> None:
    write(folder, train, val, test)
    data = make(folder)
    assert splits(data) == {"train": {train}, "val": {val}, "test": {test}}
    lines = data.describe().splitlines()[1:]
    assert lines == [
        f"         training    {train}",
        f"         validation  {val}",
        f"         test        {test}",
    ]


@every_kind
def test_without_a_validation_file_the_training_text_gives_it(folder: Path, make: Make) -> None:
    write(folder, "train (1).txt", "tests.txt")
    (folder / "train (1).txt").write_text("train\n" * 100)
    data = make(folder)
    assert splits(data) == {"train": {"train"}, "val": {"train"}, "test": {"tests.txt"}}
    corpus = data.check_source()
    assert (len(corpus.train), len(corpus.val)) == (540, 60)
    assert "                     validation is cut from its end\n" in data.describe()


@every_kind
@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("trian.txt", "tets.txt"), "(tets.txt: 'tets' is nearly 'test'; trian.txt: 'trian' is nearly 'train')"),
        (("train.txt", "validaton.txt"), "(validaton.txt: 'validaton' is nearly 'validation')"),
        (("train.txt", "train_test.txt"), "(train_test.txt: 'train' is training and 'test' is test)"),
        (("test/train.txt",), "(test/train.txt: 'train' is training and 'test' is test)"),
        (("mytrain.txt", "mytest.txt"), "mytest.txt: 'mytest' beside 'mytrain'"),
        (("train.txt", "dev.txt", "eval.txt"), "(eval.txt: validation, as dev.txt, or test)"),
        (tuple(f"trian{i}.txt" for i in range(9)), "trian4.txt: 'trian' is nearly 'train'; … 4 more)"),
        (("a.txt", "valid.txt"), "has files for validation (valid.txt) but none for train"),
        (("train.txt", "valid.txt.gz"), "valid.txt.gz names the validation split and cannot be read (compressed"),
        (("notes.txt", "train.json"), "train.json names the training split and cannot be read (JSON"),
    ],
)  # fmt: skip
def test_names_that_leave_it_open_are_refused(
    folder: Path, make: Callable[..., TokenDataModule], names: tuple[str, ...], reason: str
) -> None:
    write(folder, *names)
    message = refusal(make(folder))
    assert message.startswith(f"{folder}: ")
    assert reason in message
    assert "or set split_by_name: false" in message
    joined = {name for name in names if name.endswith(".txt")}
    assert set().union(*splits(make(folder, split_by_name=False)).values()) >= joined


@every_kind
def test_what_is_left_out_is_told_with_the_reason(folder: Path, make: Make) -> None:
    pictures = [f"p{i}.jpg" for i in range(8)]
    write(
        folder, "train.txt", "valid.txt", "README.md", "contest.txt", "more.txt.gz", "notes.json", "table.csv"
    )
    write(folder, *pictures, "Makefile", "a.out", ".hidden.txt", ".git/a.txt", "test.txt.gz")
    (folder / "again").symlink_to(folder)
    (folder / "bad\x1b[2J\n.doc").write_text("")
    data = make(folder)
    assert splits(data) == {"train": {"train.txt"}, "val": {"valid.txt"}, "test": set()}
    skipped = [
        line.removeprefix("         skipped     ")
        for line in data.describe().splitlines()
        if "skipped" in line
    ]
    assert sorted(skipped) == sorted(
        [
            ".git/, .hidden.txt (hidden)",
            "8: p0.jpg, p1.jpg, p2.jpg, p3.jpg, p4.jpg, … 3 more (a picture)",
            "Makefile (no ending)",
            "README.md, contest.txt (no split in the name, where others have one)",
            "a.out, bad\ufffd[2J\ufffd.doc (another ending than those that are read)",
            "again/ (a link to a folder)",
            "more.txt.gz, test.txt.gz (compressed: unpack it)",
            "notes.json (JSON: only a .jsonl file with one object per line is read)",
            "table.csv (a table: only texts and rows are read)",
        ]
    )  # fmt: skip


def test_a_folder_without_split_names_is_one_text(folder: Path) -> None:
    write(folder, "b.txt", "a.md", "sub/c.TXT", ".hidden.txt", "e.rst", "contest.txt", "text.txt")
    (folder / "d.jsonl").write_text('{"text": "row"}\n')
    data = characters(folder)
    corpus = data.check_source()
    text = corpus.tokenizer.decode([*corpus.train, *corpus.val]).split("\n")
    assert [line.split()[0] for line in text] == ["a.md", "b.txt", "contest.txt", "e.rst", "sub/c.TXT", "text.txt"]  # fmt: skip
    assert "         text        6: a.md, b.txt, contest.txt, e.rst, sub/c.TXT, … 1 more\n" in data.describe()
    assert "skipped     d.jsonl (rows: TextDataModule reads them)" in data.describe()


def test_rows_tell_their_split_as_texts_do(folder: Path) -> None:
    for number in range(2):
        write_parquet(folder / f"train-0000{number}-of-00002.parquet", [f"shard {number}"] * 9)
    write_jsonl(folder / "Validation (2).jsonl", [{"text": "held out"}] * 9)
    data = prepared(folder)
    assert splits(data) == {"train": {"shard", "0", "1"}, "val": {"held", "out"}, "test": set()}
    assert splits(wikitext(folder))["val"] == {"held", "out"}


@every_kind
@pytest.mark.parametrize("copied", ["copy", "link", "windows"])
def test_held_out_text_that_is_the_training_text_is_refused(folder: Path, make: Make, copied: str) -> None:
    text = "one line\nand another\n" * 20
    (folder / "train.txt").write_text(text)
    if copied == "copy":
        (folder / "valid.txt").write_text(text)
    elif copied == "link":
        (folder / "valid.txt").symlink_to("train.txt")
    else:
        (folder / "valid.txt").write_bytes(text.replace("\n", "\r\n").encode())
    reason = (
        "hold the same text"
        if copied == "windows"
        else "valid.txt (validation) holds the same bytes as train.txt"
    )
    assert reason in refusal(make(folder))


@every_kind
def test_a_copy_within_a_split_is_read_once(folder: Path, make: Make) -> None:
    write(folder, "train.txt", "valid.txt")
    (folder / "train (1).txt").write_bytes((folder / "train.txt").read_bytes())
    data = make(folder)
    assert len(data.check_source().train) == len((folder / "train.txt").read_text())
    assert "skipped     train.txt as train (1).txt (the same bytes)" in data.describe()


@every_kind
def test_splits_without_a_text_are_named(folder: Path, make: Make) -> None:
    write(folder, "train.txt", "valid.txt", "test.txt")
    for name, split in (("test", "test"), ("valid", "validation"), ("train", "training")):
        write(folder, "train.txt", "valid.txt", "test.txt")
        (folder / f"{name}.txt").write_text("")
        assert re.search(f"{split} split has 0 (of the [0-9]+ )?tokens", refusal(make(folder)))
        (folder / f"{name}.txt").write_text(" \n" * 9)
        assert f"the text of the {split} split is only white space (18 characters)" in refusal(make(folder))
    (folder / "train.txt").write_text("training")
    (folder / "valid.txt").write_text("v")
    (folder / "test.txt").unlink()
    assert "the validation split has 1 of the 9 tokens, it needs 2. Give it more text." in refusal(
        make(folder)
    )


@every_kind
def test_nothing_to_read(folder: Path, make: Make) -> None:
    write(folder, "image.png", "a.txt.gz", ".b.txt")
    message = refusal(make(folder))
    assert f"{folder}: no text files in this folder; files ending in .txt, .text, " in message
    assert "a.txt.gz (compressed: unpack it)" in message


def test_files_are_read_whole_only_where_they_may_be_copies(tmp_path: Path) -> None:
    same = b"x" * 300_000
    contents = {
        "a": same,
        "b": b"y" + same[1:],
        "c": same[:-1] + b"y",
        "d": same,
        "e": b"",
        "f": b"",
        "g": b"x",
    }
    contents["h"] = same[:150_000] + b"y" + same[150_001:]  # alike at both ends
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    os.link(tmp_path / "a", tmp_path / "z")
    found = copies(sorted(tmp_path.iterdir()))
    assert {path.name: original.name for path, original in found.items()} == {"d": "a", "z": "a"}
