"""Reading text files: what counts as text, and one clear error for everything that does not."""

import bz2
import gzip
import lzma
import os
from pathlib import Path

import pytest

from app.run.errors import DataError
from datamodules import text as text_module
from datamodules.text import read_ascii, read_text, summarise


@pytest.fixture(params=[1, 3, 4096], ids=lambda size: f"chunk{size}")
def chunk_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(text_module, "CHUNK_BYTES", request.param)
    return request.param


def write(folder: Path, content: bytes) -> Path:
    path = folder / "corpus.txt"
    path.write_bytes(content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(read_text(path))
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ""),
        (b"plain", "plain"),
        ("aé€😀b".encode() * 5, "aé€😀b" * 5),
        (b"one\r\ntwo\rthree\nfour\r\n\r\nfive\r", "one\ntwo\nthree\nfour\n\nfive\n"),
    ],
)
@pytest.mark.usefixtures("chunk_bytes")
def test_text_is_the_same_for_every_chunk_size(tmp_path: Path, content: bytes, expected: str) -> None:
    assert "".join(read_text(write(tmp_path, content))) == expected


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    assert "".join(read_text(write(tmp_path, "\ufeffaé".encode()))) == "aé"


@pytest.mark.parametrize(
    ("content", "offset"),
    [
        (b"\xffabc", 0),
        (b"abc\xffdef", 3),
        ("aé€".encode() + b"\xc3(", 6),
        ("a€".encode() + b"\xe2\x82", 4),  # cut off at the end of the file
        (b"ab\xed\xa0\x80", 2),  # an encoded surrogate
    ],
)
@pytest.mark.usefixtures("chunk_bytes")
def test_invalid_utf8_is_located(tmp_path: Path, content: bytes, offset: int) -> None:
    assert f"invalid UTF-8 at byte offset {offset}." in refusal(write(tmp_path, content))


def test_offsets_count_the_byte_order_mark(tmp_path: Path) -> None:
    assert "at byte offset 4." in refusal(write(tmp_path, "\ufeffa".encode() + b"\xff"))


@pytest.mark.usefixtures("chunk_bytes")
def test_nul_bytes_are_located(tmp_path: Path) -> None:
    assert "NUL byte at byte offset 5;" in refusal(write(tmp_path, b"hello\0world"))


def test_the_first_of_two_mistakes_is_reported(tmp_path: Path) -> None:
    assert "NUL byte at byte offset 2;" in refusal(write(tmp_path, b"ab\0cd\xff"))
    assert "invalid UTF-8 at byte offset 2." in refusal(write(tmp_path, b"ab\xffcd\0"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf16_is_recognised(tmp_path: Path, encoding: str) -> None:
    message = refusal(write(tmp_path, ("The quick brown fox. " * 20).encode(encoding)))
    assert f"looks like {encoding[:6].upper()}" in message
    assert "byte offset" in message
    assert "iconv" in message


def test_binary_data_is_refused(tmp_path: Path) -> None:
    assert "byte offset" in refusal(write(tmp_path, bytes(range(255, -1, -1)) * 8))


def test_missing_file(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "absent.txt")


def test_dangling_link(tmp_path: Path) -> None:
    link = tmp_path / "link.txt"
    link.symlink_to(tmp_path / "gone.txt")
    assert "dangling link; its target" in refusal(link)


def test_link_loop(tmp_path: Path) -> None:
    link = tmp_path / "link.txt"
    link.symlink_to(link)
    assert "cannot be read" in refusal(link)


@pytest.mark.timeout(10)
def test_a_named_pipe_does_not_hang(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    assert "a named pipe" in refusal(pipe)


@pytest.mark.timeout(10)
def test_an_endless_device_is_refused() -> None:
    assert "a device" in refusal(Path("/dev/zero"))


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, b"secret")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # permissions alone do not stop the superuser
    assert "cannot be read (Permission denied)" in refusal(path)


def test_ascii_part(tmp_path: Path) -> None:
    path = write(tmp_path, "né\r\nx".encode() + b"\xff\xfe")
    assert "".join(read_ascii(path)) == "n\nx"


def test_summary() -> None:
    summary = summarise(["ba", "", "é", "a\n"])
    assert summary.n_characters == 5
    assert summary.alphabet == "\nabé"
    assert summary == summarise(["baéa\n"])  # pieces do not matter
    assert summary.sha256 != summarise(["abéa\n"]).sha256


@pytest.mark.parametrize(
    ("packed", "what", "remedy"),
    [
        (gzip.compress(b"text", mtime=0), "compressed (gzip)", "`gunzip -k 'a b.txt'`"),
        (bz2.compress(b"text"), "compressed (bzip2)", "`bunzip2 -k 'a b.txt'`"),
        (lzma.compress(b"text"), "compressed (xz)", "`unxz -k 'a b.txt'`"),
        (b"PK\x03\x04" + bytes(30), "compressed (zip)", "`unzip 'a b.txt'`"),
        (b"\x28\xb5\x2f\xfd text", "compressed (Zstandard)", "`unzstd 'a b.txt'`"),
        (b"%PDF-1.7\n\xe2\xe3", "a PDF document", "`pdftotext 'a b.txt'`"),
        (b"\xff\xd8\xff\xe0 JFIF", "a picture", "Give a UTF-8 text file."),
        (b"PAR1\x15", "TextDataModule reads under the ending .parquet", "Give a UTF-8 text file."),
    ],
)
def test_other_formats_are_told_by_their_name(tmp_path: Path, packed: bytes, what: str, remedy: str) -> None:
    path = tmp_path / "a b.txt"
    path.write_bytes(packed)
    with pytest.raises(DataError) as caught:
        list(read_text(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: is ")
    assert what in message
    assert remedy in message
    assert "iconv" not in message
    for text in ("BZh what a text", "PK", "PARAGRAPH"):
        path.write_text(text)
        assert list(read_text(path)) == [text]
