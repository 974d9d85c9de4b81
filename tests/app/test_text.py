"""Texts that cannot be trained on: one message, before a network is built."""

import os
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pytest

from tests.app.conftest import Reference
from tests.support import faults, runs, tiny
from tests.support.application import Application, Ended

pytestmark = pytest.mark.process

TEXTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such file or folder"),
    "empty": (lambda path: path.write_bytes(b""), "the text is empty; 17 training tokens are needed"),
    "one character": (lambda path: path.write_text("a"), "its training split has 0 tokens, block_size 16 needs 17"),
    "shorter than a block": (lambda path: path.write_text("abc\n" * 4), "training split has 15 tokens, block_size 16 needs 17"),
    "only white space": (lambda path: path.write_text(" \n" * 400), "the text is only white space (800 characters)"),
    "binary": (lambda path: path.write_bytes(b"text" * 30 + b"\0\x01"), "a NUL byte at byte offset 120"),
    "invalid UTF-8": (lambda path: path.write_bytes(b"fine " * 100 + b"\xff"), "invalid UTF-8 at byte offset 500"),
    "UTF-16": (lambda path: path.write_bytes("words " .encode("utf-16") * 100), "looks like UTF-16"),
    "a named pipe": (lambda path: os.mkfifo(path), "a named pipe; the text is read twice"),
    "a dangling link": (lambda path: path.symlink_to("nowhere"), "a dangling link; its target nowhere does not exist"),
    "an empty folder": (lambda path: path.mkdir(), "no text file"),
}  # fmt: skip
NO_MODEL = faults.at("model", "os._exit(99)")


@pytest.fixture(scope="module")
def refusals(
    application: Application, reference: Reference, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Future[tuple[Path, Ended]]]:
    """Every such text and the end of a run on it."""
    root = tmp_path_factory.mktemp("texts")

    def refused(folder: Path, make: Callable[[Path], object]) -> tuple[Path, Ended]:
        folder.mkdir()
        text = folder / "text"
        make(text)
        ended = application.run(
            "fit", "--config", reference.baseline_config, "--data.init_args.path", text, cwd=folder, prelude=NO_MODEL,
            timeout=20,
        )  # fmt: skip
        assert not (folder / "runs").exists()
        return text, ended

    return application.begin(
        {
            kind: partial(refused, root / str(number), make)
            for number, (kind, (make, _)) in enumerate(TEXTS.items())
        }
    )


@pytest.mark.parametrize("kind", TEXTS)
def test_it_is_refused(refusals: dict[str, Future[tuple[Path, Ended]]], kind: str) -> None:
    text, ended = refusals[kind].result()
    assert ended.code == 2, ended
    assert TEXTS[kind][1] in ended.err, ended
    for line in ended.err.splitlines():
        assert line.startswith(f"error: data.init_args.path (command line): {text}: "), ended
        assert line.count(str(text)) == 1, ended


def test_the_validation_split_must_hold_a_target(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    text = tmp_path / "text"
    text.write_text("some text " * 100)
    ended = application.run(
        "fit", "--config", reference.baseline_config, "--data.init_args.path", text,
        "--data.init_args.val_fraction", "0.001", cwd=tmp_path, prelude=NO_MODEL,
    )  # fmt: skip
    assert ended.code == 2, ended
    assert "the validation split has 1 of the 1000 tokens, it needs 2" in ended.err


def test_a_shipped_text_is_named_by_its_key(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    # The key is where the file says, and not the command line.
    config = tiny.write(tmp_path / "config.yaml", tiny.gpt(tmp_path / "nowhere.txt"))
    ended = application.run("fit", "--config", config, cwd=tmp_path, prelude=NO_MODEL)
    assert ended.code == 2, ended
    line = config.read_text().splitlines().index(f"    path: {tmp_path / 'nowhere.txt'}") + 1
    assert ended.err.startswith(f"error: data.init_args.path ({config}, line {line}): ")


def test_a_text_with_the_line_ends_of_another_system(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    content = tiny.write_text(tmp_path / "text.txt").read_bytes()
    text = tmp_path / "crlf.txt"
    text.write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    ended = application.run(
        "fit", "--config", reference.baseline_config, "--data.init_args.path", text, "--run_dir", tmp_path / "run",
        cwd=tmp_path,
    )  # fmt: skip
    assert ended.code == 0, ended
    assert not runs.differences(runs.weights(tmp_path / "run"), runs.weights(reference.baseline))
