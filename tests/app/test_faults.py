"""Faults of the machine around a run, caused: slow disks, stepped clocks, long stops, too little memory, and what it sends."""

import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.run import checkpoint
from app.run.errors import IntegrityError
from app.run.lock import STALE_SECONDS
from datamodules import CharDataModule
from tests.app.conftest import Reference
from tests.app.test_position import keeping_windows, windows_read
from tests.app.test_sharing import process_state
from tests.app.test_storage import NO_DEMAND, NO_DIFFERENCE, small_disk
from tests.support import faults, runs, tiny
from tests.support.application import Application, environment

pytestmark = [pytest.mark.process, pytest.mark.stress, pytest.mark.timeout(900)]

Note = Callable[[str, Any], None]
FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)
COMMAND = "import sys\nfrom app.cli import main\nsys.exit(main(sys.argv[1:]))"


def strace() -> str:
    """The program, which changes and shows the calls of a process at the kernel's own boundary."""
    found = shutil.which("strace")
    if found is None:
        pytest.skip("needs the program strace")
    return found


def process_of(prelude: str, words: tuple[Any, ...], cwd: Path, env: dict[str, str]) -> subprocess.Popen[str]:
    """A process of its own, for what has to be there when it starts."""
    return subprocess.Popen(
        [sys.executable, "-c", f"{prelude}\n{COMMAND}", *map(str, words)], cwd=cwd, env=environment() | env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def test_every_window_of_two_epochs(application: Application, tmp_path: Path, record_property: Note) -> None:
    text = tiny.write_text(tmp_path / "text.txt", n_words=150)
    settings = {"checkpoint_every_n_steps": 5, "data__init_args__val_fraction": 0.3}
    config = tiny.write(tmp_path / "config.yaml", tiny.gpt(text, **settings))
    run, file = tmp_path / "run", tmp_path / "windows"
    words = ("fit", "--config", config, "--run_dir", run, "--resume", "auto")
    for step in (8, 19, 33):
        ended = application.run(
            *words, cwd=tmp_path, prelude=keeping_windows(file) + faults.kill_at("step", step)
        )
        assert ended.code == -9, ended
    ended = application.run(*words, cwd=tmp_path, prelude=keeping_windows(file))
    assert ended.code == 0, ended
    read = windows_read(file)
    rows = [row for step in range(40) for row in read[step]]
    n_windows = runs.launches(run)[0]["data"]["train_tokens"] // 16 - 1
    assert len(rows) == 160 >= 2 * n_windows
    data = CharDataModule(path=str(text), block_size=16, batch_size=160, val_fraction=0.3, seed=7)
    expected, _ = next(iter(data.train_dataloader()))
    assert rows == expected.tolist()
    for epoch in (rows[:n_windows], rows[n_windows : 2 * n_windows]):
        assert len({tuple(row) for row in epoch}) == n_windows
    record_property("figure", f"{2 * n_windows} windows, 0 lost, 0 twice")


def test_accumulation_is_a_larger_batch(
    application: Application, tmp_path: Path, record_property: Note
) -> None:
    """Whole curves, as the baseline has neither rounding nor routes."""
    text = tiny.write_text(tmp_path / "text.txt")
    curves = []
    for parts in (1, 2):
        settings = {
            "model__init_args__dropout": 0.0,
            "data__init_args__batch_size": 8,  # of a step; its parts divide it
            "trainer__accumulate_grad_batches": parts,
            "trainer__max_steps": 200,
            "trainer__log_every_n_steps": 10,
            "trainer__val_check_interval": 100,
        }
        config = tiny.write(tmp_path / f"{parts}.yaml", tiny.gpt(text, **settings))
        curves.append(runs.curve(application.fit(config, tmp_path / str(parts))))
    worst = 0.0
    for one, other in zip(*curves, strict=True):
        assert one["step"] == other["step"]
        for key in {"train/loss", "val/loss", "train/grad_norm"} & one.keys():
            a, b = float(one[key]), float(other[key])
            worst = max(worst, abs(a - b) / abs(a))
    record_property("figure", f"worst of 200 steps {worst:.1e}")
    assert worst <= 1e-5


def test_a_kill_within_a_slow_save(
    application: Application, reference: Reference, tmp_path: Path, record_property: Note
) -> None:
    """Each sync takes a fifth of a second, as on a disk that others use; the run lies on another file system than TMPDIR."""
    program, draw = strace(), random.Random(5)
    with small_disk(tmp_path / "disk", "64m") as disk:
        run = disk / "run"
        words = ("fit", "--config", reference.baseline_config, "--run_dir", run, "--resume", "auto")
        prelude = NO_DEMAND + NO_DIFFERENCE
        moments: list[float] = []
        last = ""
        for step in (5, 10, 15, 20):
            go = tmp_path / f"go-{step}"
            waits = faults.at(
                "save", f"while not os.path.exists({str(go)!r}): __import__('time').sleep(0.01)", step
            )
            process = application.start(*words, cwd=tmp_path, prelude=prelude + waits)
            deadline = time.monotonic() + 60
            slow = subprocess.Popen(
                [program, "-f", "-qq", "-p", str(process.pid), "-o", str(tmp_path / "calls"), "-e", "trace=fsync",
                 "-e", "inject=fsync:delay_enter=200000"],
            )  # fmt: skip
            while "TracerPid:\t0\n" in Path(f"/proc/{process.pid}/status").read_text():
                if slow.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    pytest.skip("this machine lets no process be traced")
                time.sleep(0.01)
            go.touch()
            folder = run / "checkpoints"
            process.wait_until(
                lambda folder=folder, name=f".resume-{step:06d}.ckpt": (
                    folder.exists() and any(folder.glob(f"{name}*.tmp"))
                ),
                "begin a save",
            )
            moments.append(draw.uniform(0, 0.7))
            time.sleep(moments[-1])
            process.kill()
            assert process.wait().code == -9, process.output()
            slow.wait(30)
            newest = checkpoint.newest_verified(folder)
            assert newest is None or newest.name >= last
            assert newest is not None or not last
            last = newest.name if newest else last
        ended = application.run(*words, cwd=tmp_path, prelude=prelude)
        assert ended.code == 0, ended
        assert not [path for path in run.rglob("*") if ".tmp" in path.name]
        runs.assert_same_run(run, reference.baseline)
    record_property("figure", f"{len(moments)} kills within slow saves, 0 unusable")


def test_500_flipped_bits(reference: Reference, tmp_path: Path, record_property: Note) -> None:
    _, path = checkpoint.list_checkpoints(reference.clean / "checkpoints")[-1]
    whole, draw = path.read_bytes(), random.Random(4)
    copy = tmp_path / path.name
    shutil.copy(checkpoint.sidecar_path(path), checkpoint.sidecar_path(copy))
    found = 0
    for _ in range(500):
        place = draw.randrange(8 * len(whole))
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        copy.write_bytes(changed)
        try:
            checkpoint.verify(copy, require_sidecar=True)
        except IntegrityError:
            found += 1
    record_property("figure", f"{found} of 500 bits found")
    assert found == 500


class NoHash:
    """In place of what hashes a checkpoint behind its writer."""

    def __init__(self, path: Path):
        pass

    def digest(self) -> str:
        return "0" * 64


def test_the_hash_costs_a_tenth_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Note
) -> None:
    """Of the unhashed save, or of reading and hashing the file, where the disk takes less time than that.

    SHA-256 is one chain of blocks: a second core makes the hash of a file no shorter.
    """
    state = {"state_dict": {str(part): torch.rand(1 << 24) for part in range(16)}}  # 1 GiB
    seconds: dict[str, list[float]] = {"hashed": [], "verified": [], "plain": []}
    for kind in [*seconds] * 5:
        with monkeypatch.context() as patch:
            if kind == "plain":
                patch.setattr(checkpoint, "_TrailingHash", NoHash)
            began = time.perf_counter()
            if kind == "verified":
                checkpoint.verify(tmp_path / "a.ckpt", require_sidecar=True)
            else:
                checkpoint.write(state, tmp_path / "a.ckpt")
            seconds[kind].append(time.perf_counter() - began)
        for path in tmp_path.iterdir() if kind != "hashed" else ():
            path.unlink()
    hashed, verified, plain = (statistics.median(each) for each in seconds.values())
    load = os.getloadavg()[0]
    record_property(
        "figure",
        f"1 GiB in {hashed:.2f} s, {hashed / plain:.2f} x the unhashed {plain:.2f} s; hashing the file alone "
        f"{verified:.2f} s; at a load of {load:.1f}",
    )
    assert hashed <= 1.1 * max(plain, verified)


#: addresses in a line of strace's: those that a call names, and where a socket of TCP is open to others from then on
ADDRESS = re.compile(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')
LISTENS = re.compile(r" listen\(\d+<TCP(?:v6)?:\[\[?([0-9a-f.:]+?)\]?:\d+\]>")


def addresses(line: str) -> list[str]:
    """Those with which a call leaves the process, or lets others in."""
    if " listen(" in line and "<UNIX" not in line:
        return LISTENS.findall(line) or ["unknown"]
    if " bind(" in line and "<TCP" in line:
        return []  # to find a free port, and closed again, or it will listen
    return [four or six for four, six in ADDRESS.findall(line)]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('1 connect(5<TCP:[6]>, {sin_port=htons(53), sin_addr=inet_addr("10.0.0.1")}, 16) = 0', ["10.0.0.1"]),
        ('1 bind(5<UDP:[6]>, {sin_port=htons(0), sin_addr=inet_addr("0.0.0.0")}, 16) = 0', ["0.0.0.0"]),
        ('1 bind(5<TCP:[6]>, {sin_port=htons(0), sin_addr=inet_addr("0.0.0.0")}, 16) = 0', []),
        ("1 listen(5<TCP:[0.0.0.0:80]>, -1 <unfinished ...>", ["0.0.0.0"]),
        ("1 listen(5<TCPv6:[[::]:80]>, 5) = 0", ["::"]),
        ("1 listen(5<TCP:[6]>, 5) = 0", ["unknown"]),
    ],
)
def test_an_address_is_seen(line: str, found: list[str]) -> None:
    assert addresses(line) == found


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_no_socket_leads_elsewhere(
    reference: Reference, tmp_path: Path, record_property: Note, n_ranks: int
) -> None:
    program, calls, n_calls = strace(), tmp_path / "calls", 0
    run = tmp_path / "run"
    commands = (
        ("fit", "--config", reference.baseline_config, "--run_dir", run, "--trainer.devices", n_ranks,
         "--trainer.max_steps", 10, "--trainer.limit_val_batches", 1.0),
        ("fit", "--resume", run, "--trainer.max_steps", 15),
        ("generate", run, "--tokens", 8),
    )  # fmt: skip
    for words in commands:
        ended = subprocess.run(
            [program, "-f", "-yy", "--seccomp-bpf", "-qq", "-o", str(calls),
             "-e", "trace=connect,bind,listen,sendto,sendmsg,sendmmsg",
             sys.executable, "-m", "app", *map(str, words)],
            cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        if "ptrace" in ended.stderr and ended.returncode:
            pytest.skip("this machine lets no process be traced")
        assert ended.returncode == 0, ended.stderr
        lines = calls.read_text().splitlines()
        n_calls += sum(bool(addresses(line)) for line in lines)
        elsewhere = [
            line
            for line in lines
            if any(not place.startswith("127.") and place != "::1" for place in addresses(line))
        ]
        assert not elsewhere, f"{words[0]}: {elsewhere[:5]}"
    record_property("figure", f"{n_ranks} ranks: {n_calls} calls with an address, all of this machine alone")
    assert n_ranks == 1 or n_calls > 0


def test_the_clock_is_stepped(
    application: Application, reference: Reference, tmp_path: Path, record_property: Note
) -> None:
    """An hour forwards, then two backwards, while a run trains; in between another launch wants its folder."""
    if FAKETIME is None:
        pytest.skip("needs the library libfaketime")
    clock, told, go, run = tmp_path / "clock", tmp_path / "told", tmp_path / "go", tmp_path / "run"
    clock.write_text("+0")
    step = "open({clock!r}, 'w').write('{hours}h'); open({told!r}, 'a').write(str(__import__('time').time()) + '\\n')"
    prelude = "".join(
        faults.at("step", step.format(clock=str(clock), told=str(told), hours=hours), at)
        for at, hours in ((6, "+1"), (8, "+1"), (14, "-1"), (16, "-1"))
    )
    prelude += faults.at("step", f"while not os.path.exists({str(go)!r}): __import__('time').sleep(0.05)", 9)
    words = ("fit", "--config", reference.baseline_config, "--run_dir", run, "--resume", "auto")
    env = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    process = process_of(prelude, words, tmp_path, env)
    try:
        deadline = time.monotonic() + 300
        while not told.exists() or told.read_text().count("\n") < 2:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.05)
        refused = application.run(*words, cwd=tmp_path)
        assert refused.code == 2, refused
        assert f"is in use by process {process.pid} on host {socket.gethostname()} since" in refused.err
    finally:
        go.touch()
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, ""), out
    before, after, later, back = map(float, told.read_text().split())
    assert 3500 < after - before < 3700 or before > time.time() + 3000
    assert later - back > 3000 or back < time.time() - 3000
    runs.assert_same_run(run, reference.baseline)
    record_property("figure", "clock +1 h and -1 h: bitwise, lock kept")


def test_a_stop_longer_than_the_lease(
    application: Application, reference: Reference, tmp_path: Path, record_property: Note
) -> None:
    run = tmp_path / "run"
    words = ("fit", "--config", reference.baseline_config, "--run_dir", run, "--resume", "auto")
    stops = faults.at("step", "signal.raise_signal(signal.SIGSTOP)", 8)
    stopped = application.start(*words, cwd=tmp_path, prelude=stops)
    try:
        stopped.wait_until(lambda: process_state(stopped.pid) == "T", "stop")
        time.sleep(STALE_SECONDS + 5)
        refused = application.run(*words, cwd=tmp_path)
        assert refused.code == 2, refused
        assert f"is in use by process {stopped.pid} on host" in refused.err
    finally:
        stopped.kill(signal.SIGCONT)
    ended = stopped.wait()
    assert ended.code == 0, ended
    runs.assert_same_run(run, reference.baseline)
    record_property("figure", f"stopped for {STALE_SECONDS + 5:.0f} s: bitwise, lock kept")


@pytest.mark.parametrize("n_workers", [0, 2])
def test_memory_runs_short(
    application: Application, reference: Reference, tmp_path: Path, record_property: Note, n_workers: int
) -> None:
    """From one step on the process gets 64 MB more and no byte beyond, and something takes 16 MB of them at every step."""
    run = tmp_path / "run"
    words = ("fit", "--config", reference.baseline_config, "--run_dir", run, "--resume", "auto")
    limits = (
        "__import__('resource').setrlimit(__import__('resource').RLIMIT_AS, ((64 << 20) + 4096 * "
        "int(open('/proc/self/statm').read().split()[0]), -1))"
    )
    takes = (
        "taken = sys.modules['__main__'].__dict__.setdefault('taken', []); taken.append(bytearray(16 << 20))"
    )
    ended = application.run(
        *words, "--data.init_args.num_workers", n_workers, cwd=tmp_path, timeout=180,
        prelude=faults.at("step", limits, 8) + faults.at("step", takes, 9) + "".join(
            faults.at("step", takes, step) for step in range(10, 20)
        ),
    )  # fmt: skip
    assert ended.code == 1, ended
    assert "MemoryError" in ended.err or "not enough memory" in ended.err, ended
    assert runs.status(run)["state"] == "failed"
    assert runs.last_checkpoint(run)["archlab"]["step"] == runs.saved_steps(run)[-1] >= 5
    assert not (run / "lock").exists()
    ended = application.run(*words, cwd=tmp_path)
    assert ended.code == 0, ended
    runs.assert_same_run(run, reference.baseline)
    record_property("figure", "memory short: exit 1, checkpoint intact, bitwise on")
