import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.run import configuration
from app.run.configuration import find_config, nearest, read_config, strict_load
from app.run.errors import ConfigurationError, ExitCode

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

MALFORMED: dict[str, tuple[str | bytes, str]] = {
    "bracket": ("model:\n  a: [1, 2\nb: 3\n", r"line 3, column 2: .*brackets"),
    "indentation": ("model:\n  a: 1\n b: 2\n", r"line 3, column 2: .*indentation"),
    "tab": ("model:\n\ta: 1\n", r"line 2, column 1: .*not tabs"),
    "colon in a value": ("name: a: b\n", r"line 1, column 8: .*put quotes around"),
    "quote": ('name: "abc\nb: 1\n', r"line \d, column \d+: .*quote"),
    "duplicate": (
        "seed: 1\nmodel:\n  a: 1\nseed: 2\n",
        r"line 4, column 1: duplicate key 'seed', first on line 1",
    ),
    "nested duplicate": (
        "m:\n  a: 1\n  b: 2\n  a: 1\n",
        r"line 4, column 3: duplicate key 'a', first on line 2",
    ),
    "duplicate on one line": ("m: {a: 1, a: 2}\n", r"line 1, column 11: duplicate key 'a'"),
    "alias": ("a: &x 1\nb: *x\n", r"line 1, column 4: found aliases or anchors; write the value out"),
    "alias bomb": (BOMB, r"line 1, column 4: found aliases"),
    "merge": ("a:\n  <<: *x\n", r"line 2, column 7: found aliases"),
    "object": (
        "a: !!python/object/apply:os.system ['touch x']\n",
        r"column 4: found the tag .*remove the tag",
    ),
    "name": ("a: !!python/name:os.system\n", "found the tag"),
    "binary": ("a: !!binary aGk=\n", "found the tag"),
    "own tag": ("a: !env HOME\n", "found the tag '!env'"),
    "deep": ("a: " + "[" * 100_000, "nested more than 64 deep"),
    "deep blocks": ("".join(" " * i + "a:\n" for i in range(200)), "nested more than 64 deep"),
    "two documents": ("a: 1\n---\nb: 2\n", "line 2, column 1: .*second document"),
    "key that is a list": ("? [a, b]\n: 1\n", "a key must be a plain word"),
    "empty": ("", "is empty"),
    "comments": ("# nothing\n\n", "is empty"),
    "list": ("- a\n- b\n", "holds a list, must hold `key: value` lines"),
    "text": ("just words\n", "holds a single value"),
    "latin-1": ("name: grün\n".encode("latin-1"), r"is not UTF-8 text \(byte 8\)"),
    "utf-16": ("name: a\n".encode("utf-16"), r"is not UTF-8 text \(byte 0\)"),
    "zero": (b"name: a\x00b\n", "character #x0 at position 7"),
    "bad integer": ("a: !!int abc\n", r"line 1, column 4: found 'abc', which is no int"),
    "integer of nothing": ("a: 1\nb: !!int ''\n", r"line 2, column 4: found '', which is no int"),
    "integer of a sign": ("a: !!int +\n", r"found '\+', which is no int"),
    "integer of a line": ("a: !!int _\n", "found '_', which is no int"),
    "float of nothing": ("a: !!float ''\n", "found '', which is no float"),
    "truth of a word": ("a: !!bool x\n", "found 'x', which is no bool"),
    "escape beyond any number": ('a: "\\UFFFFFFFF"\n', r"line 1, column \d+: .*an escape of no character"),
    "escape beyond all characters": ('a: "\\U00110000"\n', "an escape of no character"),
    "huge": (b"# " + b"x" * (1 << 18), "at most 262,144 are read"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_file_is_one_message_with_place_and_remedy(tmp_path: Path, name: str) -> None:
    content, said = MALFORMED[name]
    path = tmp_path / "experiment.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.monotonic()
    with pytest.raises(ConfigurationError, match=said) as caught:
        read_config(path)
    assert time.monotonic() - started < 1.0
    message = str(caught.value)
    assert message.startswith(str(path))
    assert len(message.splitlines()) == 1
    assert ";" in message or ":" in message.removeprefix(str(path))
    assert caught.value.exit_code == ExitCode.CONFIGURATION


def test_missing_directory_and_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    shipped = tmp_path / "configs"
    shipped.mkdir()
    (shipped / "gpt_small.yaml").write_text("a: 1\n")
    monkeypatch.setattr(configuration, "shipped_directory", lambda: shipped)
    with pytest.raises(ConfigurationError, match="no such file; did you mean the shipped gpt_small"):
        read_config(tmp_path / "gpt_smal.yaml")
    with pytest.raises(ConfigurationError, match="is a directory"):
        read_config(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigurationError, match="not a regular file"):
        read_config(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigurationError, match="no such file"):
        read_config(tmp_path / "dangling")


def test_content_and_positions(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "seed_everything: 1337\n"
        "run_dir: somewhere\n"
        "trainer:\n"
        "  max_steps: 200\n"
        "  callbacks:\n"
        "  - class_path: callbacks.A\n"
        "    init_args: {every: 5}\n"
    )
    read = read_config(path)
    assert read.data["trainer"]["callbacks"] == [{"class_path": "callbacks.A", "init_args": {"every": 5}}]
    assert read.data["run_dir"] == "somewhere"
    assert read.positions["trainer.max_steps"] == 4
    assert read.positions["trainer.callbacks.0.class_path"] == 6
    assert read.positions["trainer.callbacks.0.init_args.every"] == 7
    assert read.where("trainer.max_steps") == f"{path}, line 4"
    assert read.where("trainer.max_time") == f"{path}, line 3"
    assert read.where("model.init_args") == str(path)


def test_utf8_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: grün\n", encoding="utf-8-sig")
    assert read_config(path).data == {"name": "grün"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("3e-4", 3e-4),
        ("1E6", 1e6),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("6.", 6.0),
        ("1_000.5", 1000.5),
        ("1_000", 1000),
        (".inf", float("inf")),
        ("-.inf", float("-inf")),
        ("10", 10),
        ("-7", -7),
        ("0x10", 16),
        ("0b11", 3),
        ("+3", 3),
        ("0", 0),
        # Numbers of YAML 1.1: 90, 685230, 15 and 8.
        ("1:30", "1:30"),
        ("190:20:30", "190:20:30"),
        ("017", "017"),
        ("010", "010"),
        ("0o17", "0o17"),
        ("1e", "1e"),
        ("e3", "e3"),
        ("1.2.3", "1.2.3"),
        ("1e-3s", "1e-3s"),
        ("2026-01-02", "2026-01-02"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("'1e-3'", "1e-3"),
        ("=", "="),
        ("<<", "<<"),
        ("", None),
        ("!!float 3", 3.0),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    loaded = strict_load(text)
    assert loaded == value
    assert type(loaded) is type(value)


def test_not_a_number() -> None:
    assert strict_load(".nan") != strict_load(".nan")


def test_launch_keys_are_dropped_at_the_top_only() -> None:
    text = "run_dir: a\nresume: auto\ninit_from: b\nseed: 1\nmodel: {resume: 2}\n"
    assert strict_load(text) == {"seed": 1, "model": {"resume": 2}}
    assert strict_load(text.encode()) == {"seed": 1, "model": {"resume": 2}}


@pytest.mark.parametrize("text", ["a:", "{a, b}", "{a}"])
def test_typed_text_that_only_looks_like_a_mapping(text: str) -> None:
    assert strict_load(text) == text


@pytest.mark.parametrize(
    "text", ["a: 1\na: 2", BOMB, "*", "!hello", "!!python/name:os.system", "[" * 1000, "!!int x"]
)
def test_strict_load_refuses_with_the_parsers_own_error(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        strict_load(text)


def test_argument_parser_takes_the_loader(tmp_path: Path) -> None:
    """The loader with the parser that it is for: numbers, files, duplicates, typed texts."""
    jsonargparse = pytest.importorskip("jsonargparse")
    jsonargparse.set_loader("strict", strict_load, exceptions=(yaml.YAMLError,))
    parser = jsonargparse.ArgumentParser(parser_mode="strict", exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--name", type=str, default="x")
    path = tmp_path / "a.yaml"
    path.write_text("lr: 1e-3\nrun_dir: elsewhere\n")
    assert parser.parse_args([f"--config={path}", "--name", "!a: *b"]).as_dict()["lr"] == 1e-3
    assert parser.parse_args(["--name", "!a: *b"]).name == "!a: *b"
    path.write_text("lr: 1e-3\nlr: 2e-3\n")
    with pytest.raises(jsonargparse.ArgumentError, match="duplicate key"):
        parser.parse_args([f"--config={path}"])


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    root = tmp_path / "shipped"
    (root / "hardware").mkdir(parents=True)
    for name in ("tilelli_banks4", "gpt_small", "hardware/ddp"):
        (root / f"{name}.yaml").write_text("a: 1\n")
    return root


def test_find_config(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config("tilelli_banks4", shipped) == shipped / "tilelli_banks4.yaml"
    assert find_config("tilelli_banks4.yaml", shipped) == shipped / "tilelli_banks4.yaml"
    assert find_config("hardware/ddp", shipped) == shipped / "hardware" / "ddp.yaml"
    (tmp_path / "gpt_small").mkdir()  # such as a folder of runs
    assert find_config("gpt_small", shipped) == shipped / "gpt_small.yaml"
    (tmp_path / "gpt_small.yaml").write_text("a: 2\n")
    assert find_config("gpt_small.yaml", shipped) == Path("gpt_small.yaml")
    for wrong, said in (
        ("tileli_bank4", "did you mean tilelli_banks4"),
        ("configs/gpt_smal.yaml", "did you mean gpt_small"),
        ("ddp", "did you mean hardware/ddp"),
        ("../shipped/../gpt", "gpt_small"),
        ("zzz", "shipped: gpt_small, hardware/ddp, tilelli_banks4"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            find_config(wrong, shipped)


def test_shipped_directory_is_the_checkout_here() -> None:
    assert configuration.shipped_directory() == Path(__file__).parents[2] / "configs"


def test_nearest() -> None:
    assert nearest("max_step", ["max_steps", "min_steps", "callbacks"]) == "max_steps"
    assert nearest("qqq", ["max_steps"]) is None
