"""Standard output and standard error of real processes that have lost them."""

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.run import output
from tests.support.application import environment

BUFFERED = environment() | {"PYTHONUNBUFFERED": ""}
UNBUFFERED = environment() | {"PYTHONUNBUFFERED": "1"}
REASONS = {
    "reader gone": "Broken pipe",
    "disk full": "No space left on device",
    "file full": "File too large",
    "closed": "closed",
    "read only": "Bad file descriptor",
    "terminal gone": "Input/output error",
    "not read": "not read for 0 s",
}


def lost(how: str, number: int, folder: Path) -> Callable[[], None]:
    """Makes a descriptor of a process that is about to begin useless."""

    def prepare() -> None:
        if how == "closed":
            os.close(number)
            return
        if how == "reader gone":
            read, descriptor = os.pipe()
            os.close(read)
        elif how == "terminal gone":
            master, descriptor = os.openpty()
            os.close(master)
        elif how == "not read":
            read, descriptor = os.pipe()
            os.set_inheritable(read, True)  # there is a reader, which does not read
            os.set_blocking(descriptor, False)
            try:
                while True:
                    os.write(descriptor, bytes(4096))
            except BlockingIOError:
                os.set_blocking(descriptor, True)
        elif how == "file full":
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (5, 5))
            descriptor = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
        else:
            descriptor = os.open("/dev/full", os.O_RDONLY if how == "read only" else os.O_WRONLY)
        os.dup2(descriptor, number)

    return prepare


def python(program: str, *words: Any, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Runs a program whose standard output, standard error and end are looked at."""
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run(command, timeout=60, close_fds=False, **{"env": BUFFERED} | pipes | options)


LINES = """
    import json, os, sys
    from app.run import output
    output.PATIENCE_SECONDS = 0.2
    output.install()
    result = os.dup(0)  # what the parent reads
    output.make_courtesy()
    stream = {1: sys.stdout, 2: sys.stderr}[int(sys.argv[1])]
    for number in range(30):
        print("line", number, file=stream, flush=number == 11)
    os.write(result, json.dumps(output.unprinted()).encode())
    print("the last words", file=stream)
"""


@pytest.mark.parametrize(("number", "variables"), [(1, BUFFERED), (2, UNBUFFERED)], ids=["out", "err"])
@pytest.mark.parametrize("how", REASONS)
def test_a_courtesy_is_remembered(how: str, number: int, variables: dict[str, str], tmp_path: Path) -> None:
    read, write = os.pipe()  # standard input, so that no other descriptor is inherited
    ended = python(LINES, number, stdin=write, preexec_fn=lost(how, number, tmp_path), env=variables)
    os.close(write)
    with os.fdopen(read) as file:
        found = json.load(file)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")
    kept = found.pop("standard output" if number == 1 else "standard error")
    assert not found
    assert kept["reason"] == REASONS[how]
    assert kept["lines"] == 30
    assert kept["last"] == [f"line {number}" for number in range(10, 30)]


def test_nothing_is_remembered_where_all_is_printed() -> None:
    read, write = os.pipe()
    ended = python(LINES, 1, stdin=write)
    os.close(write)
    with os.fdopen(read) as file:
        assert json.load(file) is None
    assert ended.stdout.decode() == "".join(f"line {number}\n" for number in range(30)) + "the last words\n"


def test_a_reader_that_pauses_gets_what_is_printed_afterwards() -> None:
    program = """
        import fcntl, sys
        from app.run import output
        output.PATIENCE_SECONDS = 0.1
        output.install()
        output.make_courtesy()
        n_fit = fcntl.fcntl(1, fcntl.F_GETPIPE_SZ) // 4096
        for _ in range(n_fit + 4):
            print("x" * 4095, flush=True)
        found = output.unprinted()["standard output"]
        assert found["lines"] == 4 and {len(line) for line in found["last"]} == {output.KEPT_CHARACTERS}, found
        print(n_fit, file=sys.stderr, flush=True)
        sys.stdin.readline()
        print("again", flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=BUFFERED, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin and process.stdout and process.stderr
        n_fit = int(process.stderr.readline())
        whole = process.stdout.read(n_fit * 4096)
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.stdout.read() == b"again\n"
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert whole == (b"x" * 4095 + b"\n") * n_fit


@pytest.mark.parametrize("is_courtesy", [False, True])
def test_a_pipe_that_does_not_block_gets_everything(is_courtesy: bool) -> None:
    program = """
        import os, sys
        from app.run import output
        output.install()
        if sys.argv[1] == "True":
            output.make_courtesy()
        os.set_blocking(1, False)
        print("x" * 1_000_000)
        output.flush()
        assert output.unprinted() is None
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(is_courtesy)],
        env=BUFFERED,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout
        time.sleep(0.1)  # the pipe is full by now, or will be
        assert len(process.stdout.read()) == 1_000_001
    assert process.returncode == 0


COMMAND = [sys.executable, "-m", "app"]


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["compare", "--help"]])
@pytest.mark.parametrize("how", ["reader gone", "disk full", "closed", "terminal gone"])
def test_other_commands_end_by_their_output(words: list[str], how: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [*COMMAND, *words],
        env=BUFFERED, cwd=tmp_path, preexec_fn=lost(how, 1, tmp_path), stderr=subprocess.PIPE, timeout=60,
    )  # fmt: skip
    expected = (141, "") if how == "reader gone" else (5, f"error: standard output: {REASONS[how]}\n")
    assert (ended.returncode, ended.stderr.decode()) == expected


@pytest.mark.parametrize("how", ["reader gone", "disk full", "closed"])
def test_an_error_that_cannot_be_said_keeps_its_code(how: str, tmp_path: Path) -> None:
    for words, code in ((["fti"], 2), (["--version"], 0)):
        ended = subprocess.run(
            [*COMMAND, *words],
            env=BUFFERED, cwd=tmp_path, preexec_fn=lost(how, 2, tmp_path), stdout=subprocess.PIPE, timeout=60,
        )  # fmt: skip
        assert (ended.returncode, bool(ended.stdout)) == (code, code == 0)


def test_what_a_library_swallows_is_told_at_the_end() -> None:
    program = """
        import sys, threading
        from app import cli
        from app.run import output
        def answer(words):
            printing = threading.Thread(target=print, args=("from a thread",), kwargs={"flush": True})
            printing.start()
            printing.join()
            if words:
                try:
                    print("from the main one", flush=True)
                except Exception:
                    pass
            return 0
        cli._dispatch = answer
        cli.entry()
    """
    for words in ([], ["swallowed"]):
        with open("/dev/full", "w") as full:
            ended = python(program, *words, stdout=full)
        assert ended.returncode == 5
        assert ended.stderr == b"error: standard output: No space left on device\n"


def test_missing_descriptors_are_taken_before_a_file_takes_their_number(tmp_path: Path) -> None:
    program = """
        import subprocess, sys
        from app.run import output
        output.install()
        with open(sys.argv[1], "w") as file:
            print("not into the file")
            print("nor this", file=sys.stderr)
            assert sys.stdin.read() == "" and not sys.stdout.isatty()
            ends = "import os; os.write(1, b'x'); os.write(2, b'x'); os.read(0, 1)"
            code = subprocess.run([sys.executable, "-c", ends]).returncode
            file.write(f"number above 2: {file.fileno() > 2}, child: {code}")
    """

    def prepare() -> None:
        for number in range(3):
            os.close(number)

    python(program, tmp_path / "file", preexec_fn=prepare, stdout=None, stderr=None)
    assert (tmp_path / "file").read_text() == "number above 2: True, child: 0"


def test_any_text_can_be_printed() -> None:
    program = "from app.run import output; output.install(); print('\\u00e4 \\udcff')"
    ended = python(program, env=BUFFERED | {"PYTHONIOENCODING": "ascii"})
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"\\xe4 \\udcff\n", b"")


@pytest.mark.parametrize("variables", [BUFFERED, UNBUFFERED], ids=["buffered", "unbuffered"])
def test_streams_behave_as_those_of_the_interpreter(variables: dict[str, str]) -> None:
    program = """
        import sys
        from app.run import output
        def kind(stream):
            return stream.encoding, stream.line_buffering, stream.write_through, stream.isatty(), stream.fileno(), stream.name
        before = [kind(sys.stdout), kind(sys.stderr)]
        with output.guarded():
            assert [kind(sys.stdout), kind(sys.stderr)] == before
            with output.guarded():
                print("inner")
            print("outer")
        print("after")
    """
    ended = python(program, env=variables)
    assert (ended.stdout, ended.stderr) == (b"inner\nouter\nafter\n", b"")


def test_a_stream_that_is_not_the_process_s_own_stays(capsys: pytest.CaptureFixture[str]) -> None:
    stream = sys.stdout
    with output.guarded():
        assert sys.stdout is stream
        print("captured")
    assert capsys.readouterr().out == "captured\n"


def test_what_a_bar_has_written_over_itself_is_gone() -> None:
    program = """
        import json, os, sys
        from app.run import output
        output.install()
        output.make_courtesy()
        for step in range(3):
            print(end=f"\\r\\x1b[2K\\x1b[1m{step}/2\\x1b[0m", flush=True)
        print(end=json.dumps(output.unprinted()), file=sys.stderr)
    """
    with open("/dev/full", "w") as full:
        ended = python(program, stdout=full)
    assert json.loads(ended.stderr) == {
        "standard output": {"reason": "No space left on device", "lines": 1, "last": ["2/2"]}
    }


def test_two_interrupts_leave_at_once_although_nothing_can_be_said(tmp_path: Path) -> None:
    program = """
        import os, signal, time
        from app.run.signals import StopRequests
        StopRequests().deferring = True
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
    """
    for how in ("reader gone", "disk full"):
        assert python(program, preexec_fn=lost(how, 2, tmp_path)).returncode == 130
