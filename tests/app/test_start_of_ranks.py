"""Between the command and the meeting of the ranks: they import and read side by side, and end as one."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.app.test_distributed import TWO, endless
from tests.support import faults, tiny
from tests.support.application import Application, Running, assert_gone, children
from tests.support.side_by_side import SideBySide

pytestmark = pytest.mark.process
side_by_side = SideBySide()


def early(first: str, rank: int = 0) -> str:
    """Something that a rank does when it is about to read the text."""
    return faults.replaced(
        "app.training.command_line.RunCLI.build_data",
        f"lambda *args: ({first} if int(__import__('os').environ.get('LOCAL_RANK', 0)) == {rank} else None, "
        "original(*args))[1]",
    )


SLEEPS = "__import__('time').sleep(60)"


def started(
    application: Application, folder: Path, *words: object, **options: object
) -> tuple[Running, list[int]]:
    """A launcher that has started its other rank, which imports the framework, and both of them."""
    config = endless(folder)
    launcher = application.start(
        "fit", "--config", config, "--run_dir", "run", *TWO, *words, cwd=folder, **options
    )  # type: ignore[arg-type]
    launcher.wait_until(lambda: children(launcher.pid), "start a rank")
    return launcher, [launcher.pid, *children(launcher.pid)]


@side_by_side
def test_a_rank_is_lost_while_it_imports(application: Application, tmp_path: Path) -> None:
    launcher, pids = started(application, tmp_path)
    os.kill(pids[1], signal.SIGKILL)
    ended = launcher.wait(15)
    assert ended.code == 6, ended
    assert ended.err == (
        "error: rank 1 was lost (signal 9); its message, if it left one, stands above. Remedy: start the same command "
        "again with --resume auto.\n"
    )
    assert_gone(pids)


@side_by_side
def test_the_launcher_is_lost_while_a_rank_imports(application: Application, tmp_path: Path) -> None:
    launcher, pids = started(application, tmp_path, prelude=early(SLEEPS))
    launcher.kill()
    began = time.monotonic()
    ended = launcher.wait()
    assert_gone(pids, 10)
    assert time.monotonic() - began < 10
    assert "Traceback" not in ended.err


@side_by_side
def test_a_signal_while_a_rank_imports(application: Application, tmp_path: Path) -> None:
    for signum, is_group in ((signal.SIGTERM, False), (signal.SIGINT, True)):
        launcher, pids = started(application, tmp_path, prelude=early(SLEEPS))
        launcher.kill(signum, group=is_group)
        ended = launcher.wait(10)
        assert ended.code == (130 if signum == signal.SIGINT else 143), ended
        assert ended.err == ""
        assert f"stopped by {signum.name} before the first step" in ended.out
        assert_gone(pids)
        assert not (tmp_path / "run").exists()


@side_by_side
def test_a_mistake_of_all_is_told_once_and_at_once(application: Application, tmp_path: Path) -> None:
    # Known while the options are read, when the text is, and when the network is built.
    for words in (
        ("--model.init_args.n_layers", "none"),
        ("--data.init_args.block_size", 100_000),
        ("--model.init_args.d_model", 17),
    ):
        launcher, pids = started(application, tmp_path, *words)  # a rank that is far from there
        ended = launcher.wait(20)
        assert ended.code == 2, ended
        assert ended.err.count("error: ") == 1, ended
        assert_gone(pids)
        ended = application.run(
            "fit", "--config", "config.yaml", *TWO, *words, cwd=tmp_path, warm_rank=True, timeout=20,
        )  # fmt: skip
        assert ended.code == 2, ended
        assert ended.err.count("error: ") == 1, ended  # a rank that gets there as soon as the launcher
        assert not (tmp_path / "run").exists()
        assert not (tmp_path / "runs").exists()


@side_by_side
def test_a_mistake_of_one_rank_is_told(application: Application, tmp_path: Path) -> None:
    fails = "(_ for _ in ()).throw(__import__('app.run.errors').run.errors.DataError('not on this rank'))"
    ended = application.run(
        "fit", "--config", endless(tmp_path), "--run_dir", "run", *TWO, cwd=tmp_path, warm_rank=True, timeout=30,
        prelude=early(fails, rank=1),
    )  # fmt: skip
    assert ended.code == 6, ended
    first, last = ended.err.splitlines()
    assert first == "error: not on this rank"
    assert last.startswith("error: rank 1 was lost (exit code 2);")


@side_by_side
def test_an_exception_of_all_is_told_once(application: Application, tmp_path: Path) -> None:
    fails = faults.at("model", "raise KeyError('the cause')")
    ended = application.run(
        "fit", "--config", endless(tmp_path), "--run_dir", "run", *TWO, cwd=tmp_path, warm_rank=True, timeout=30,
        prelude=fails,
    )  # fmt: skip
    assert ended.code == 1, ended
    assert ended.err.count("KeyError: 'the cause'") == 1
    assert "was lost" not in ended.err


@side_by_side
def test_the_text_is_read_by_rank_zero_alone(application: Application, tmp_path: Path) -> None:
    text = tiny.write_text(tmp_path / "text.txt")
    config = tiny.write(tmp_path / "config.yaml", tiny.gpt(text, trainer__max_steps=2))
    counted = faults.replaced(
        "datamodules.char.read_char_corpus",
        "lambda *a, **k: (print('reads the text', flush=True), original(*a, **k))[1]",
    )
    ended = application.run(
        "fit", "--config", config, "--run_dir", "run", *TWO, cwd=tmp_path, warm_rank=True, prelude=counted
    )
    assert ended.code == 0, ended
    assert ended.out.count("reads the text") == 1
    ended = application.run("validate", "run", *TWO, cwd=tmp_path, warm_rank=True, prelude=counted)
    assert ended.code == 0, ended
    assert ended.out.count("reads the text") == 1
    assert ended.out.count("val/loss") == 1


@side_by_side
def test_all_devices_that_there_are_start_late(application: Application, tmp_path: Path) -> None:
    # The framework alone can count them; the CPU is one.
    config = endless(tmp_path)
    ended = application.run(
        "fit", "--config", config, "--run_dir", "run", "--trainer.devices", "auto", "--trainer.max_steps", 2,
        cwd=tmp_path,
    )  # fmt: skip
    assert ended.code == 0, ended
    counted = faults.replaced("app.commands.fit.n_known_processes", "lambda files, launch: 1")
    ended = application.run(
        "fit", "--config", config, "--run_dir", "two", *TWO, "--trainer.max_steps", 2, cwd=tmp_path, warm_rank=True,
        prelude=counted,
    )  # fmt: skip
    assert ended.code == 0, ended
    assert "world size 2" in ended.out
