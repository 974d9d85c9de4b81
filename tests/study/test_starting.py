"""Runs as copies of one process: they end, fail and are told things as fresh ones do, and outlive what started them."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from app.study.display import LiveTable
from app.study.engine import Engine
from app.study.jobs import Job, Standing
from app.study.starting import Fresh, Warm, starter
from tests.support.study_jobs import RUN, Short, jobs

#: what a copy runs in place of ``app``: the words of a short job are those of its process
PROGRAM = """
import os, sys, time, threading
from app.warm import serve
serve({warm_up})
print("session", os.getsid(0) == os.getpid(), "gpu", os.environ.get("CUDA_VISIBLE_DEVICES"), sys.argv[:2], flush=True)
sys.argv[1:] = sys.argv[2:]
exec({run!r})
"""


class Words(Short):
    """A short job whose arguments are words of a command."""

    @property
    def command(self) -> list[str]:
        return self.process[3:]


def of(made: list[Job]) -> list[Job]:
    return [Words(job.row, job.seed, job.output, {}) for job in made]


def warm_process(warm_up: str = "lambda: None") -> Warm:
    return Warm(1, [sys.executable, "-c", PROGRAM.format(warm_up=warm_up, run=RUN)])


@pytest.fixture
def warm() -> Iterator[Warm]:
    with closing(warm_process()) as made:
        yield made


def engine(warm: Warm, n_slots: int = 3) -> Engine:
    return Engine(n_slots, ["5"], LiveTable({}, stream=open(os.devnull, "w")), warm)


def test_copies_end_as_fresh_processes_do(warm: Warm, tmp_path: Path) -> None:
    made = of(jobs(tmp_path, (1,), good={}, bad={"how": "fail"}, slow={"seconds": 0.2}))
    standings = engine(warm).run(made)
    assert [standings[job.name].state for job in made] == ["finished", "failed", "finished"]
    assert standings["bad/seed_1"] == Standing("failed", 5, 2, "error: nothing to train on")
    first, _, last = (job.log.read_text() for job in made)
    assert first == last == "session True gpu 5 ['app', 'fit']\n"


def test_a_copy_is_told_to_leave(warm: Warm, tmp_path: Path) -> None:
    (job,) = of(jobs(tmp_path, (1,), slow={"seconds": 60}))
    job.note()
    process = warm.start(job, None)
    for _ in range(200):
        if job.run.status.exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert (process.wait(), job.standing().reason) == (143, "SIGTERM")


def test_a_copy_that_is_killed_has_the_code_of_its_signal(warm: Warm, tmp_path: Path) -> None:
    (job,) = of(jobs(tmp_path, (1,), slow={"seconds": 60}))
    job.note()
    process = warm.start(job, None)
    process.poll()
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_copies_outlive_the_process_that_made_them(warm: Warm, tmp_path: Path) -> None:
    first, second = of(jobs(tmp_path, (1, 2), slow={"seconds": 0.2}))
    first.note()
    process = warm.start(first, None)
    assert process.poll() is None
    warm.close()
    assert process.wait() == 0
    assert first.standing().state == "finished"
    second.note()
    assert warm.start(second, None).wait() == 0
    assert "session" not in second.log.read_text(), "a fresh process"


@pytest.mark.parametrize(
    ("warm_up", "said"),
    [
        ("threading.Thread(target=time.sleep, args=(9,), daemon=True).start", "has started 1 threads"),
        ("lambda: sys.exit(1)", ""),
    ],
)
def test_where_nothing_can_be_copied_runs_are_fresh(
    warm_up: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = of(jobs(tmp_path, (1, 2), good={}))
    with closing(warm_process(warm_up)) as warm:
        standings = engine(warm).run(made)
    assert {standing.state for standing in standings.values()} == {"finished"}
    assert said in capsys.readouterr().err
    assert made[0].log.read_text() == ""


def test_code_of_others_is_not_forked() -> None:
    assert isinstance(starter(3, 1, ["mine"]), Fresh)
    assert isinstance(starter(1, 1, []), Fresh)


@pytest.mark.stress
def test_a_copy_has_the_bits_of_a_fresh_process(tmp_path: Path) -> None:
    from app.study.plan import Row

    values = {
        "trainer.max_steps": 6,
        "trainer.val_check_interval": 3,
        "trainer.log_every_n_steps": 1,
        "model.n_layers": 1,
        "model.dropout": 0.1,
    }
    rows = [Row(name, name, ("gpt_char", "hardware/cpu"), values) for name in ("copy", "fresh")]
    made = [Job(row, seed, tmp_path, {}) for row in rows for seed in (1, 2)]
    with closing(Warm(1)) as warm:
        for job in made:
            job.note()
            process = (warm if job.row.name == "copy" else Fresh()).start(job, None)
            assert process.wait() == 0, job.log.read_text()

    def figures(job: Job) -> list[list[str]]:
        lines = [line.split(",") for line in job.run.metrics.read_text().splitlines()]
        kept = [place for place, name in enumerate(lines[0]) if not name.startswith("speed/")]
        return [[line[place] for place in kept] for line in lines]

    assert figures(made[0]) == figures(made[2]) != figures(made[1]) == figures(made[3])
