"""Parquet files that claim more than they hold take no memory for it."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.run.errors import DataError
from datamodules import rows
from datamodules.rows import read_parquet
from tests.support.memory import measured

MB = 1 << 20


def write(path: Path, texts: list[str], **options: Any) -> Path:
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), path, compression="zstd", **options)
    return path


def test_a_page_that_claims_more_than_the_file_has(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", ["lazy dog"] * 50, use_dictionary=False)
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(1)
    content = bytearray(path.read_bytes())
    place = content.index(b"\x15", chunk.data_page_offset + 3)  # the field of the packed size
    grown = content[: place + 1] + b"\xfe\xff\xff\xff\x07" + content[place + 6 :]
    path.write_bytes(grown)
    ended = measured(lambda: list(read_parquet(path, "text")))
    assert ended.error is not None
    assert ended.error[0] == "DataError", ended
    assert "no readable parquet file after row 0" in ended.error[1]
    assert ended.n_bytes < 32 * MB


@pytest.mark.parametrize(
    "form", [{}, {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}}]
)
def test_one_long_text_many_times_is_unpacked_a_few_rows_at_once(
    tmp_path: Path, form: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet", ["x" * MB] * 20, **form)
    assert path.stat().st_size < 16_000
    asked: list[int] = []
    iter_batches = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda file, n, **rest: asked.append(n) or iter_batches(file, n, **rest),
    )
    monkeypatch.setattr(rows, "_MOST_BATCH_BYTES", 3 * MB)
    assert sum(1 for _ in read_parquet(path, "text")) == 20
    assert asked == [2]  # a page holds the length of its text too


def test_statistics_of_any_length_are_passed_over(tmp_path: Path) -> None:
    texts = [f"{number} " * 900 for number in range(60)]
    for version in ("1.0", "2.0"):
        path = write(tmp_path / "a.parquet", texts, data_page_version=version, data_page_size=4096)
        assert list(read_parquet(path, "text")) == [text + "\n" for text in texts]
        with pytest.raises(DataError, match="no field 'body'"):
            list(read_parquet(path, "body"))
