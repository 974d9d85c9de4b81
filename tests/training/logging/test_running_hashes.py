"""The running hash of a file that grows is that of its content, whoever has written it in how many launches."""

import json
from pathlib import Path
from typing import Any

from app.run.directory import RunDirectory
from app.run.running_hashes import LINES, TABLE, RunningHash, broken, entries_of
from app.training.logging.loggers import RunFilesLogger


def log(logger: RunFilesLogger, steps: range, speed: float) -> None:
    for step in steps:
        logger.log_metrics({"train/loss": 1 / step, "speed/seconds": speed * step}, step)
        if step % 4 == 0:  # a stage and a key of its own, which widens the table
            logger.log_metrics({"val/loss": 2 / step}, step)
        if step % 3 == 0:
            logger.log_details({"a": [step, 0.1], "b": [1 / step]}, step)
            logger.log_text("samples/0", f"text,\nof {step} läuft", step)


def of_file(folder: Path, name: str, n_entries: int) -> dict[str, Any]:
    running = RunningHash()
    running.add(entry for _, entry in list(entries_of(folder / name))[:n_entries])
    return running.described()


def test_killed_gone_on_with_or_neither(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    one = RunFilesLogger(whole)
    log(one, range(1, 14), speed=1.0)
    log(RunFilesLogger(cut), range(1, 9), speed=2.0)
    # From step 6 on, in a launch that asks before it has written anything, at another speed.
    other = RunFilesLogger(cut, resume_step=6)
    early = other.running_hashes()
    log(other, range(7, 14), speed=3.0)
    carried = one.running_hashes()
    assert carried == other.running_hashes()
    assert {*carried} == {TABLE, "details.jsonl", "samples.jsonl"}
    for name, described in carried.items():
        assert described == of_file(whole, name, described["entries"])
        assert early[name]["entries"] < described["entries"]
    run = RunDirectory(whole)
    assert list(broken(run, carried)) == list(broken(run, early)) == []
    assert list(broken(RunDirectory(tmp_path / "cut"), carried)) == []


def test_what_was_changed_is_told_with_its_place(tmp_path: Path) -> None:
    logger = RunFilesLogger(tmp_path)
    log(logger, range(1, 14), speed=1.0)
    carried, run = logger.running_hashes(), RunDirectory(tmp_path)
    table = tmp_path / TABLE
    before = table.read_text()
    table.write_text(before.replace("0.25", "0.26", 1))
    assert [*broken(run, carried)] == [(TABLE, "what it has up to step 12 is not what was settled")]
    table.write_text("\n".join(before.splitlines()[:5]) + "\n")
    assert [*broken(run, carried)] == [(TABLE, "has 4 entries, and 15 were settled")]
    table.write_text(before.replace("step,", "step,speed/more,", 1).replace("\n1,", "\n1,5,", 1))
    details = tmp_path / LINES[0]
    lines = details.read_text().splitlines()
    details.write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
    assert (LINES[0], "what it has up to line 6 is not what was settled") in [*broken(run, carried)]
    assert [*broken(run, {"other": json.loads("[]")})] == [
        ("other", "has a running hash that cannot be read")
    ]
