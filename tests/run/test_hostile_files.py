"""Whatever a checkpoint says, nothing of it is run, and memory stays below twice its bytes and 64 MB."""

import os
import pickletools
import warnings
import zipfile
from pathlib import Path
from pickle import EMPTY_DICT, STOP

import pytest
import torch

from app.run import checkpoint
from app.run.errors import IntegrityError
from tests.support.hostile import BEGIN, PICKLES, archive
from tests.support.memory import measured


def allowed(path: Path) -> int:
    """Bytes of memory that reading a file may take."""
    return 2 * path.stat().st_size + 64_000_000


@pytest.mark.filterwarnings("ignore:.*not verified")
@pytest.mark.parametrize("what", PICKLES)
def test_it_is_refused_in_little_memory(what: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "evil.ckpt", PICKLES[what])
    outcome = measured(lambda: checkpoint.read(path))
    assert outcome.error is not None
    kind, message = outcome.error
    assert kind == "IntegrityError", message
    assert str(path) in message
    assert len(message) < 500
    assert len(message.splitlines()) == 2
    assert outcome.n_bytes <= allowed(path), f"{outcome.n_bytes:,} of {allowed(path):,} bytes: {message}"


def entry(path: Path, name: str) -> int:
    """Where the directory of an archive describes one of its records."""
    return path.read_bytes().rindex(name.encode()) - 46


def little(number: int, n_bytes: int = 4) -> bytes:
    return number.to_bytes(n_bytes, "little")


@pytest.mark.filterwarnings("ignore:.*not verified")
@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        (8, little(1, 2), "truncated or not"),  # encrypted
        (10, little(8, 2), "is compressed"),
        (20, little(15), "damaged"),  # packed to fewer bytes
        (24, little(1 << 31), "more bytes than it has"),
        (42, little(0), "overlap"),  # begins where the first record does
        (42, little(10_000), "truncated"),
        (30, little(60_000, 2), "truncated"),  # further fields
        (0, b"PK\x05\x06", "truncated"),
    ],
)
def test_an_archive_that_lies(tmp_path: Path, field: int, value: bytes, said: str) -> None:
    path = archive(tmp_path / "evil.ckpt", BEGIN + EMPTY_DICT + STOP)
    at = entry(path, "archive/data/0") + field
    content = path.read_bytes()
    path.write_bytes(content[:at] + value + content[at + len(value) :])
    with pytest.raises(IntegrityError, match=said):
        checkpoint.read(path)


@pytest.mark.filterwarnings("ignore:.*not verified")
def test_other_archives(tmp_path: Path) -> None:
    sound = archive(tmp_path / "sound.ckpt", BEGIN + EMPTY_DICT + STOP)
    assert checkpoint.read(sound) == {}
    for end in (b"PK\x05\x06" + bytes(18), b"\0", sound.read_bytes()[-22:]):
        path = tmp_path / "longer.ckpt"
        path.write_bytes(sound.read_bytes() + end)
        with pytest.raises(IntegrityError, match="not a checkpoint"):
            checkpoint.read(path)
    with zipfile.ZipFile(tmp_path / "twice.ckpt", "w") as written, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            written.writestr("archive/data.pkl", BEGIN + EMPTY_DICT + STOP)
    with pytest.raises(IntegrityError, match="is an archive, but not"):
        checkpoint.read(tmp_path / "twice.ckpt")
    with zipfile.ZipFile(tmp_path / "order.ckpt", "w") as written:
        written.writestr("archive/data.pkl", BEGIN + EMPTY_DICT + STOP)
        written.writestr("archive/byteorder", "big")
    with pytest.raises(IntegrityError, match="another order of bytes"):
        checkpoint.read(tmp_path / "order.ckpt")


@pytest.mark.filterwarnings("ignore:.*not verified")
def test_many_records_take_little_memory(tmp_path: Path) -> None:
    path = archive(tmp_path / "many.ckpt", BEGIN + EMPTY_DICT + STOP, entries=b"", n_storages=30_000)
    assert measured(lambda: checkpoint.read(path)).n_bytes <= allowed(path)


def test_what_is_large_and_sound_takes_its_size(tmp_path: Path) -> None:
    """A hundred megabytes of weights, and values enough to be charged for."""
    path = tmp_path / "resume-000001.ckpt"
    weights = {f"blocks.{n}.weight": torch.full((1024, 1024), float(n)) for n in range(25)}
    values = {"curve": [float(n) for n in range(100_000)], "names": [f"step {n}" for n in range(20_000)]}
    checkpoint.write({"state_dict": weights, "callbacks": values}, path)
    outcome = measured(lambda: checkpoint.read(path))
    assert outcome.error is None
    assert outcome.n_bytes <= path.stat().st_size + 64_000_000
    found = checkpoint.read(path)
    assert found["callbacks"] == values
    assert all(torch.equal(found["state_dict"][name], weight) for name, weight in weights.items())


def test_only_these_operations_are_known() -> None:
    """Each of them is charged for; another one may be added once it is."""
    from app.run.plain_pickle import _Interpreter

    known = {info.name for info in pickletools.opcodes if hasattr(_Interpreter, f"_{info.name.lower()}")}
    assert known == {
        "APPEND", "APPENDS", "BINFLOAT", "BINGET", "BININT", "BININT1", "BININT2", "BINPERSID", "BINPUT", "BINUNICODE",
        "BUILD", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "GLOBAL", "LONG1", "LONG_BINGET", "LONG_BINPUT", "MARK",
        "NEWFALSE", "NEWTRUE", "NONE", "REDUCE", "SETITEM", "SETITEMS", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*not verified")
def test_shared_entries_stay_shared_and_views_are_views(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(4, 6)
    saved = {"base": base, "turned": base.T, "part": base[1:3, ::2], "same": base, "half": base.half()}
    torch.save(saved, tmp_path / "a.ckpt")
    found = checkpoint.read(tmp_path / "a.ckpt")
    assert found["same"] is found["base"]
    found["base"][1, 2] = -1
    assert found["turned"][2, 1] == found["part"][0, 1] == -1
    assert found["half"][1, 2] == 8


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.ones(1).expand(3), "strides repeat storage"),
        (torch.arange(8).unfold(0, 4, 2), "strides repeat storage"),
        (torch.ones(2, dtype=torch.complex64).conj(), "conjugate"),
        ({((1, 2), 3): 4}, "has a key of the type tuple"),
        ({(1,) * 65: 4}, "has a key of the type tuple"),
    ],
)
def test_what_would_not_be_read_is_not_written(tmp_path: Path, value: object, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        checkpoint.write({"x": value}, tmp_path / "resume-000001.ckpt")
    deepest: list[object] = []
    for _ in range(63):
        deepest = [deepest]
    checkpoint.write(deepest, tmp_path / "resume-000001.ckpt")
    assert checkpoint.read(tmp_path / "resume-000001.ckpt") == deepest
    checkpoint.remove(tmp_path / "resume-000001.ckpt")
    with pytest.raises(TypeError, match="nested more than 64 deep"):
        checkpoint.write([deepest], tmp_path / "resume-000001.ckpt")
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(TypeError, match="nested more than 64 deep"):
        checkpoint.write(endless, tmp_path / "resume-000001.ckpt")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*not verified")
def test_a_sidecar_is_no_pipe_and_no_gigabyte(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.ckpt", BEGIN + EMPTY_DICT + STOP)
    sidecar = checkpoint.sidecar_path(path)
    os.mkfifo(sidecar)
    with pytest.raises(IntegrityError, match="is damaged"):
        checkpoint.read(path)
    sidecar.unlink()
    with sidecar.open("wb") as file:
        file.truncate(1 << 30)
    outcome = measured(lambda: checkpoint.verify(path, require_sidecar=True))
    assert outcome.error is not None
    assert outcome.n_bytes < 1 << 20
