"""CharDataModule."""

import random
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import datamodules.corpus as corpus_module
from app import options
from app.run.errors import ConfigurationError, DataError, StorageError
from datamodules import CharDataModule
from datamodules.corpus import split_points

TEXT = "".join(random.Random(0).choices("abcdefé €\n", k=3000))


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def make(path: Path, **args: Any) -> CharDataModule:
    return CharDataModule(**{"path": str(path), "block_size": 16, "batch_size": 12, **args})


def fake_trainer(**values: Any) -> Any:
    defaults = {
        "world_size": 1,
        "global_rank": 0,
        "accumulate_grad_batches": 1,
        "global_step": 0,
        "strategy": SimpleNamespace(root_device=torch.device("cpu")),
    }
    return SimpleNamespace(**defaults | values)


def refusal(path: Path, **args: Any) -> str:
    with pytest.raises(DataError) as caught:
        make(path, **args).check_source()
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_splits_are_consecutive_parts_of_the_text(text_file: Path) -> None:
    data = make(text_file, val_fraction=0.2, test_fraction=0.1)
    corpus = data.check_source()
    assert (len(corpus.train), len(corpus.val), len(corpus.test)) == (2100, 600, 300)
    assert data.tokenizer.decode(np.concatenate([corpus.train, corpus.val, corpus.test])) == TEXT
    assert data.vocab_size == len(set(TEXT))
    assert type(data.vocab_size) is int
    assert data.tokens_per_step == 12 * 16
    assert data.check_source() is corpus


def test_fractions_count_as_written() -> None:
    assert split_points(1_115_394, 0.1, 0.0) == (1_003_854, 1_115_394)
    assert split_points(1000, 0.1, 0.0) == (900, 1000)
    assert split_points(1000, 0.1, 0.2) == (700, 800)
    assert split_points(10, 0.3, 0.3) == (4, 7)


def test_fingerprint_changes_with_what_it_identifies(text_file: Path) -> None:
    data = make(text_file)
    first = data.fingerprint
    assert first["source"] == "path"
    assert first["tokenizer"] == data.tokenizer.hash
    assert first["n_characters"] == first["train_tokens"] + first["val_tokens"] + first["test_tokens"] == 3000
    assert all(type(value) in (str, int) for value in first.values())
    assert make(text_file).fingerprint == first
    text_file.write_text(TEXT[1:] + TEXT[0], encoding="utf-8")
    changed = make(text_file).fingerprint
    assert {key for key in first if first[key] != changed[key]} == {"sha256"}


def test_description(text_file: Path) -> None:
    assert make(text_file).describe() == (
        f"{text_file}: 3,000 characters, {len(set(TEXT))} symbols; 2,700 train / 300 validation tokens"
    )


def test_few_tokens_of_validation_are_noise(text_file: Path) -> None:
    (note,) = make(text_file, val_fraction=0.144).notes()
    assert note == (
        "the validation split has 432 tokens only: its loss is known to no better than ± 0.072 nats (1.5 nats of spread "
        "from token to token over the root of their number)"
    )
    assert "the test split has 30 tokens only" in make(text_file, test_fraction=0.01).notes("test")[0]
    assert make(text_file).notes("test") == []  # there is none
    text_file.write_text(TEXT * 10)
    assert make(text_file, val_fraction=1 / 3).notes() == []


def test_the_embedded_default() -> None:
    data = CharDataModule()
    assert data.fingerprint["python"]
    assert data.describe().startswith("source stdlib (Python 3.")
    x, y = next(iter(data.train_dataloader()))
    assert x.shape == y.shape == (32, 256)


def test_bytes_of_validation_targets_are_those_of_the_text(text_file: Path) -> None:
    data = make(text_file)
    sizes = torch.from_numpy(data.tokenizer.token_bytes)
    n_bytes = sum(int(sizes[y[y >= 0]].sum()) for _, y in data.val_dataloader())
    assert n_bytes == len(TEXT[2701:].encode())


def test_the_trainer_says_where_the_stream_goes_on(text_file: Path) -> None:
    data = make(text_file)
    whole = [x for x, _ in islice(data.train_dataloader(), 6)]
    for rank in range(2):
        data.trainer = fake_trainer(world_size=2, global_rank=rank, accumulate_grad_batches=3, global_step=4)
        parts = [x for x, _ in islice(data.train_dataloader(), 6)]
        assert torch.equal(torch.cat(parts[:3]), whole[4][rank * 6 : rank * 6 + 6])
        assert torch.equal(torch.cat(parts[3:]), whole[5][rank * 6 : rank * 6 + 6])


def test_a_stream_goes_on_whatever_the_batch_size(text_file: Path) -> None:
    whole = torch.cat([x for x, _ in islice(make(text_file).train_dataloader(), 4)])
    data = make(text_file, batch_size=6)
    data.go_on_from(step=5, windows=21)  # as after steps of other sizes
    assert (data.windows_seen(5), data.windows_seen(7), data.tokens_seen(7)) == (21, 33, 33 * 16)
    data.trainer = fake_trainer(global_step=6, accumulate_grad_batches=2)
    parts = torch.cat([x for x, _ in islice(data.train_dataloader(), 2)])
    assert torch.equal(parts, whole[27:33])
    again = torch.cat([data.training_batch(5, micro)[0] for micro in (0, 1)])  # the step before, once more
    assert torch.equal(again, whole[21:27])


def test_evaluation_loaders(text_file: Path) -> None:
    data = make(text_file, test_fraction=0.1)
    for loader, n_tokens in ((data.val_dataloader(), 300), (data.test_dataloader(), 300)):
        assert sum(int((y >= 0).sum()) for _, y in loader) == n_tokens - 1
    with pytest.raises(ConfigurationError, match="test_fraction"):
        make(text_file).test_dataloader()


def test_repeated_windows(text_file: Path) -> None:
    x = next(iter(make(text_file, repeat_windows=4).train_dataloader()))[0]
    assert torch.equal(x[:4], x[4:8])


def test_windows_style_line_ends_give_the_same_tokens(text_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "crlf.txt"
    other.write_bytes(TEXT.replace("\n", "\r\n").encode())
    assert make(other).fingerprint == make(text_file).fingerprint


def test_large_texts_are_mapped(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = make(text_file)
    in_memory.check_source()
    monkeypatch.setattr(corpus_module, "MAX_BYTES_IN_MEMORY", 100)
    data_dir = tmp_path / "data"
    mapped = make(text_file, data_dir=str(data_dir))
    assert np.array_equal(mapped.check_source().train, in_memory.check_source().train)
    assert list(data_dir.iterdir()) == []  # nothing stays behind
    batches = [next(iter(data.train_dataloader())) for data in (in_memory, mapped)]
    assert torch.equal(batches[0][0], batches[1][0])
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Set data_dir"):
        make(text_file, data_dir=str(tmp_path / "file")).check_source()


def test_empty_and_blank_texts(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("")
    assert "empty" in refusal(path)
    path.write_text(" \n\t\r\n" * 100)
    assert "only white space" in refusal(path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("")
    assert "empty" in refusal(tmp_path / "folder")


def test_short_texts_say_what_they_have_and_need(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("x")
    message = refusal(path)
    assert "training split has 0 tokens, block_size 16 needs 17" in message
    assert "validation split has 1 of the 1 tokens, it needs 2" in message  # both at once
    path.write_text("abcdefgh" * 2)
    message = refusal(path, val_fraction=0.5, test_fraction=0.1)
    assert "training split has 6 tokens" in message
    assert "test split" not in message
    path.write_text("abcdefgh" * 3)
    assert "validation split has 1 of the 24 tokens" in refusal(path, val_fraction=0.01)
    assert "test split has 1 of the 24 tokens" in refusal(path, val_fraction=0.2, test_fraction=0.01)
    path.write_text("abcdefg" * 3)
    data = make(path, val_fraction=0.15)  # 17 train, 4 validation: the shortest that works
    assert len(data.check_source().train) == 17
    assert next(iter(data.train_dataloader()))[0].shape == (12, 16)


def test_unreadable_texts_are_refused_through_the_module(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"text \xff" * 100)
    assert "invalid UTF-8 at byte offset 5" in refusal(path)
    assert "no such file" in refusal(tmp_path / "absent.txt")


def test_a_text_that_changes_while_it_is_read(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summarise = corpus_module.summarise
    for edit in (TEXT + "a", TEXT[:-1], "!" + TEXT[1:]):

        def summarise_and_edit(pieces: Any, edit: str = edit) -> Any:
            summary = summarise(pieces)
            text_file.write_text(edit, encoding="utf-8")
            return summary

        text_file.write_text(TEXT, encoding="utf-8")
        monkeypatch.setattr(corpus_module, "summarise", summarise_and_edit)
        assert "changed while it was read" in refusal(text_file)


def test_defaults_have_no_problems() -> None:
    assert options.problems(CharDataModule, {}) == []


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ({"block_size": 1}, ["block_size = 1: ", "at least 2"]),
        ({"batch_size": 0}, ["batch_size = 0: ", "at least 1"]),
        ({"num_workers": -1}, ["num_workers = -1: ", "at least 0"]),
        ({"seed": -1}, ["seed = -1: "]),
        ({"seed": 2**63}, ["seed = ", "2^63"]),
        ({"repeat_windows": -2}, ["repeat_windows = -2: "]),
        ({"val_fraction": 0.0}, ["val_fraction = 0.0: ", "(0, 1)"]),
        ({"val_fraction": float("nan")}, ["val_fraction = nan: "]),
        ({"val_fraction": 1.0}, ["val_fraction = 1.0: "]),
        ({"test_fraction": -0.1}, ["test_fraction = -0.1: "]),
        ({"val_fraction": 0.6, "test_fraction": 0.4}, ["val_fraction = 0.6: ", "test_fraction = 0.4", "sum"]),
        ({"source": "tinyshakespear"}, ["source = tinyshakespear: ", "did you mean tinyshakespeare?"]),
        ({"source": "qqq"}, ["source = qqq: ", "must be one of stdlib"]),
        ({"source": "stdlib", "path": "x.txt"}, ["source = stdlib: ", "path 'x.txt'", "keep one"]),
        ({"path": "a" * 300}, ["path = ", "a name of 300 bytes"]),
    ],
)
def test_each_problem_names_field_value_and_rule(args: dict[str, Any], parts: list[str]) -> None:
    message = str(*options.problems(CharDataModule, args))
    assert message.startswith(parts[0])
    assert all(part in message for part in parts)


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        CharDataModule(block_size=0, batch_size=0, val_fraction=2.0, num_workers=-1)
    fields = [problem.split(" ")[0] for problem in caught.value.problems]
    assert fields == ["block_size", "batch_size", "num_workers", "val_fraction"]


def test_construction_reads_nothing(tmp_path: Path) -> None:
    make(tmp_path / "absent.txt")
