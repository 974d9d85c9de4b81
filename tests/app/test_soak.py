"""A run of 2,000 steps that is disturbed forty times, by everything at once, and restarted by the same words each time."""

import os
import random
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.app.test_output import lost
from tests.app.test_storage import NO_DEMAND, NO_DIFFERENCE, small_disk
from tests.support import faults, runs, tiny
from tests.support.application import Application, Running, alive, children

pytestmark = [pytest.mark.process, pytest.mark.stress, pytest.mark.timeout(1800)]

STEPS, SAVED_EVERY = 2000, 10
LEAST_GOODPUT = 0.85
MOST_GROWTH = 8 << 20  # bytes of memory between the 500th and the last step


@dataclass(frozen=True)
class Fault:
    """Something that happens to a run.

    Attributes:
        codes: exit codes that it may lead to; 0 where the run may come to its end in spite of it.
        cause: does it to a process that trains.
        prelude: source that is run in the process before.
        repair: what an operator does before the run is started again.
    """

    codes: tuple[int, ...]
    cause: Callable[[Running, Path], object]
    prelude: str = ""
    repair: Callable[[Path], object] = lambda run: None


def _kill(process: Running, run: Path) -> None:
    process.kill()


def _signalled(signum: signal.Signals) -> Callable[[Running, Path], None]:
    return lambda process, run: process.kill(signum, group=True)


def _kill_a_worker(process: Running, run: Path) -> None:
    workers = children(process.pid)
    os.kill(workers[0], signal.SIGKILL) if workers else process.kill()


def _stop_for_a_while(process: Running, run: Path) -> None:
    process.kill(signal.SIGSTOP, group=True)
    time.sleep(1.5)
    process.kill(signal.SIGCONT, group=True)
    time.sleep(0.3)
    process.kill()


def _fill_the_disk(process: Running, run: Path) -> None:
    with (run.parent / "other").open("wb", buffering=0) as other:
        while alive(process.pid) and not process.has_ended:
            try:
                other.write(bytes(1 << 16))
            except OSError:
                time.sleep(0.01)


def _limit(kind: int, of: Callable[[int], int]) -> Callable[[Running, Path], None]:
    def cause(process: Running, run: Path) -> None:
        resource.prlimit(process.pid, kind, (of(process.pid), resource.RLIM_INFINITY))
        deadline = time.monotonic() + 10
        while not process.has_ended and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()  # where it needed no more than it had

    return cause


def _address_space(pid: int) -> int:
    return 1024 * int(Path(f"/proc/{pid}/status").read_text().split("VmSize:")[1].split()[0])


def _newest(run: Path) -> Path | None:
    found = sorted((run / "checkpoints").glob("resume-*.ckpt"))
    return found[-1] if found else None


def _flip_a_bit(run: Path) -> None:
    if path := _newest(run):
        content = bytearray(path.read_bytes())
        place = random.randrange(8 * len(content))
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)


def _cut(run: Path) -> None:
    if path := _newest(run):
        os.truncate(path, path.stat().st_size // 2)


def _forget_the_sidecar(run: Path) -> None:
    if path := _newest(run):
        path.with_name(f"{path.name}.sha256").unlink()


FAULTS = {
    "kill -9": Fault((-9,), _kill),
    "kill -9 of all its processes": Fault((-9,), _signalled(signal.SIGKILL)),
    "SIGTERM": Fault((143, 0), _signalled(signal.SIGTERM)),
    "SIGINT": Fault((130, 0), _signalled(signal.SIGINT)),
    "SIGUSR1": Fault((143, 0), _signalled(signal.SIGUSR1)),
    "SIGHUP": Fault((143, 0), _signalled(signal.SIGHUP)),
    "SIGSTOP, then kill -9": Fault((-9,), _stop_for_a_while),
    "a worker killed": Fault((1, -9), _kill_a_worker),
    "disk full": Fault((5,), _fill_the_disk, repair=lambda run: (run.parent / "other").unlink()),
    "file size limited": Fault((5, -9), _limit(resource.RLIMIT_FSIZE, lambda pid: 20_000)),
    "no more memory": Fault((1, 5, -9, -6), _limit(resource.RLIMIT_AS, _address_space)),
    "output gone, then kill -9": Fault((-9,), _kill, prelude=lost("reader gone", 1, 2) + "\n"),
    "bit flipped after kill -9": Fault((-9,), _kill, repair=_flip_a_bit),
    "checkpoint cut after kill -9": Fault((-9,), _kill, repair=_cut),
    "sidecar lost after kill -9": Fault((-9,), _kill, repair=_forget_the_sidecar),
}


def counting(file: Path) -> str:
    """Notes every step that is begun."""
    return faults.at(
        "read", f"os.write(os.open({str(file)!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT), b'.')", calls=()
    )


def noting_growth(file: Path) -> str:
    """Notes memory and open descriptors at step 500 and at the last one."""
    note = (
        f"open({str(file)!r}, 'a').write(f\"{{len(os.listdir('/proc/self/fd'))}} "
        "{open('/proc/self/statm').read().split()[1]}\\n\")"
    )
    return faults.at("step", note, 500) + faults.at("step", note, STEPS)


def test_forty_faults(
    application: Application, tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    seed = time.time_ns()
    draw = random.Random(seed)
    random.seed(seed)
    config = tiny.write(
        tmp_path / "config.yaml",
        tiny.gpt(
            tiny.write_text(tmp_path / "text.txt"),
            checkpoint_every_n_steps=SAVED_EVERY,
            data__init_args__num_workers=2,
            trainer__max_steps=STEPS,
            trainer__val_check_interval=100,
        ),
    )
    growth, executed = tmp_path / "growth", tmp_path / "executed"
    clean = application.fit(
        config, tmp_path / "clean", prelude=NO_DIFFERENCE + noting_growth(growth), timeout=600
    )
    (n_before, pages_before), (n_after, pages_after) = [
        tuple(map(int, line.split())) for line in growth.read_text().splitlines()
    ]
    kinds = [*FAULTS, *draw.choices(list(FAULTS), k=40 - len(FAULTS))]
    draw.shuffle(kinds)
    # Each falls where it may into the fortieth part of the run that is its own.
    moments = [draw.randint(round(i * STEPS / 41) + 1, round((i + 1) * STEPS / 41)) for i in range(40)]
    story: list[str] = [f"seed {seed}"]
    with small_disk(tmp_path / "disk", "64m") as disk:
        run = disk / "run"
        for kind, moment in zip(kinds, moments, strict=True):
            story.append(disturbed(application, config, run, FAULTS[kind], kind, moment, executed))
        ended = launched(application, config, run, counting(executed)).wait(600)
        assert ended.code == 0, "\n".join([*story, str(ended)])
        runs.assert_same_run(run, clean, "\n".join(story))
    goodput = STEPS / executed.stat().st_size
    grown = (pages_after - pages_before) * resource.getpagesize()
    record_property(
        "figure",
        f"40 faults of {len(FAULTS)} kinds, bitwise, goodput {goodput:.1%}, {n_after - n_before:+d} descriptors, "
        f"{grown / 1e6:+.1f} MB in 1,500 steps",
    )
    print("\n".join(story))
    assert goodput >= LEAST_GOODPUT, "\n".join(story)
    assert n_after <= n_before
    assert grown <= MOST_GROWTH


def launched(application: Application, config: Path, run: Path, prelude: str) -> Running:
    """The words that start the run, or go on with it."""
    return application.start(
        "fit", "--config", config, "--run_dir", run, "--resume", "auto", cwd=config.parent,
        prelude=NO_DEMAND + NO_DIFFERENCE + prelude,
    )  # fmt: skip


def disturbed(
    application: Application, config: Path, run: Path, fault: Fault, kind: str, moment: int, executed: Path
) -> str:
    """One launch with its fault; what happened, in words."""
    before = executed.stat().st_size if executed.exists() else 0
    reached = run.parent / "reached"  # made by the run itself, at the step of the fault
    tells = faults.at("step", f"open({str(reached)!r}, 'w')", moment)
    process = launched(application, config, run, fault.prelude + counting(executed) + tells)
    deadline = time.monotonic() + 120
    while not reached.exists() and not process.has_ended and time.monotonic() < deadline:
        time.sleep(0.001)
    assert reached.exists(), f"{kind} at step {moment}: it did not come there\n{process.output()}"
    reached.unlink()
    fault.cause(process, run)
    ended = process.wait(60)
    assert ended.code in fault.codes, f"{kind} at step {moment}: {ended}"
    fault.repair(run)
    return f"{kind} at step {moment}: exit {ended.code}, {executed.stat().st_size - before} steps made"
