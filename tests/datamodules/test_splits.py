"""Files, rows and splits of a data set."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.run.errors import ConfigurationError, DataError
from datamodules import CharDataModule, rows
from datamodules.hub import HubDataset, OfflineError
from datamodules.rows import read_jsonl, read_parquet, row_text
from datamodules.splits import local_source


def write_parquet(path: Path, texts: list[Any], column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": list(range(len(texts))), column: texts}), path)
    return path


def write_jsonl(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_a_folder_without_splits_is_one_text(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("b")
    write_jsonl(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two\r\nlines\n"}])
    write_parquet(tmp_path / "c.parquet", ["three", ""])
    assert "".join(local_source(tmp_path, "text").texts["train"].pieces()) == (
        "one\ntwo\nlines\n\nb\nthree\n\n"
    )
    with pytest.raises(DataError, match="no text files"):
        local_source(tmp_path / "..", "text") if not list(tmp_path.glob("*")) else local_source(
            (tmp_path / "empty", (tmp_path / "empty").mkdir())[0], "text"
        )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{oops\n", "row 3: no JSON ("),
        ('"a text"\n', "row 3: holds str, must be an object with the field 'text'"),
        ('{"other": 1}\n', "row 3: no field 'text'; there are 'other'. Set text_column"),
        ('{"text": 5}\n', "row 3: 'text' is int, not a text"),
        ('{"text": "a\\u0000"}\n', "row 3: a NUL character at position 1"),
        ('{"text": "ab\\ud800"}\n', r"row 3: U+D800 at position 2 is half a character"),
        ("[" * 100_000 + "\n", "row 3: no JSON (nested too deep)"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "fine"}, "\n", line, {"text": "fine"}])
    with pytest.raises(DataError) as caught:
        list(read_jsonl(path, "text"))
    assert f"{path}, {reason}" in str(caught.value)


def test_a_file_of_one_endless_line_is_no_jsonl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_ROW_CHARACTERS", 1000)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "' + "x" * 5000)
    with pytest.raises(DataError, match="row 1: longer than 1,000 characters"):
        list(read_jsonl(path, "text"))


@pytest.mark.parametrize(("value", "reason"), [(None, "is null"), ("a\0", "NUL character at position 1")])
def test_a_bad_row_of_a_parquet_file_is_named(tmp_path: Path, value: Any, reason: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["fine"] * 300 + [value, "fine"])
    with pytest.raises(DataError) as caught:
        list(read_parquet(path, "text"))
    assert f"{path}, row 301: " in str(caught.value)
    assert reason in str(caught.value)


def test_parquet_files_that_are_none(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["some text"] * 50, column="body")
    with pytest.raises(DataError, match=r"no field 'text'; there are 'id', 'body'"):
        list(read_parquet(path, "text"))
    assert list(read_parquet(path, "body")) == ["some text\n"] * 50
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[:-20], b"not at all", bytes(len(whole))):
        path.write_bytes(content)
        with pytest.raises(DataError, match="no readable parquet file") as caught:
            list(read_parquet(path, "text"))
        assert str(path) in str(caught.value)
    numbers = tmp_path / "numbers.parquet"
    pq.write_table(pa.table({"text": [1, 2]}), numbers)
    with pytest.raises(DataError, match=r"row 1: 'text' is int, not a text"):
        list(read_parquet(numbers, "text"))


def test_large_rows_are_unpacked_a_few_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", [f"{i} " * 500 for i in range(200)])
    asked: list[int] = []
    iter_batches = pq.ParquetFile.iter_batches

    def noted(self: Any, n_rows: int, **options: Any) -> Any:
        asked.append(n_rows)
        return iter_batches(self, n_rows, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noted)
    whole = list(read_parquet(path, "text"))
    monkeypatch.setattr(rows, "_BATCH_BYTES", 20_000)
    assert list(read_parquet(path, "text")) == whole
    assert asked[0] > 200
    assert 1 <= asked[1] < 200


def test_names_that_are_patterns_elsewhere(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "we[ird] *na?me" / "a.parquet", ["some text"])
    assert list(read_parquet(path, "text")) == ["some text\n"]


def test_texts_of_a_parquet_file_that_are_no_text(tmp_path: Path) -> None:
    valid, invalid = pa.array(["fine", "ab\x00"]), pa.array([b"fine", b"ab\xff"])
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 2, invalid.buffers())}), path)
    with pytest.raises(DataError, match=r"no readable parquet file after row 0 \('utf-8' codec can't decode"):
        list(read_parquet(path, "text"))
    for texts, kind in ((invalid, "bytes"), (pa.array([{"a": "b"}]), "dict"), (pa.array([["a"]]), "list")):
        pq.write_table(pa.table({"text": texts}), path)
        with pytest.raises(DataError, match=f"row 1: 'text' is {kind}, not a text"):
            list(read_parquet(path, "text"))
    for type_ in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        pq.write_table(pa.table({"text": valid.slice(0, 1).cast(type_)}), path)
        assert list(read_parquet(path, "text")) == ["fine\n"]


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(DataError, match="cannot be read"):
            local_source(tmp_path / name, "text")
        with pytest.raises(ConfigurationError, match=r"a name of 300 bytes|NUL"):
            CharDataModule(path=str(tmp_path / name)).check_source()


def test_links_that_lead_round(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "again").symlink_to(tmp_path)
    assert "".join(local_source(tmp_path, "text").texts["train"].pieces()) == "text"
    (tmp_path / "b.txt").symlink_to("b.txt")
    with pytest.raises(DataError, match=r"b\.txt: cannot be read"):
        local_source(tmp_path, "text")


@pytest.mark.timeout(20)
def test_pipes_links_and_folders_are_refused(tmp_path: Path) -> None:
    for suffix in ("txt", "jsonl", "parquet"):
        pipe = tmp_path / f"pipe.{suffix}"
        os.mkfifo(pipe)
        with pytest.raises(DataError, match="a named pipe"):
            local_source(pipe, "text")
        link = tmp_path / f"link.{suffix}"
        link.symlink_to("nowhere")
        with pytest.raises(DataError, match="a dangling link"):
            local_source(link, "text")


@pytest.mark.timeout(20)
def test_a_pipe_in_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("text")
    os.mkfifo(tmp_path / "valid.txt")
    with pytest.raises(DataError, match=r"valid\.txt: a named pipe"):
        local_source(tmp_path, "text")


def test_an_empty_row_stands_for_a_blank_line() -> None:
    assert row_text("", "here", "text") == "\n"
    assert row_text("", "here", "text", " \n") == " \n"
    assert row_text("a\rb", "here", "text") == "a\nb\n"


def test_reading_a_parquet_file_asks_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"a connection to {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert list(read_parquet(write_parquet(tmp_path / "a.parquet", ["a"]), "text")) == ["a\n"]


def test_an_unreachable_hub_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no network")

    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # put back afterwards
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(OfflineError, match=r"nobody/nothing \(small\): the hub cannot be reached"):
        _ = HubDataset("nobody/nothing", "small").opened
