"""Jobs side by side: what fails, what is killed, what somebody else is at, and what is not this study's."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from app.commands import ablate, study_routing
from app.run.errors import ConfigurationError
from app.run.lock import RunLock
from app.study.display import said, table
from app.study.engine import visible_devices
from app.study.jobs import Standing, require_own
from app.study.pages import markdown
from app.study.pages import table as csv_of
from app.study.plan import Row, Study
from app.study.results import results
from tests.support.study_jobs import Short, engine, jobs


def test_everything_finishes_once(tmp_path: Path) -> None:
    made = jobs(tmp_path, a={}, b={})
    standings = engine().run(made)
    assert {standing.state for standing in standings.values()} == {"finished"}
    assert sorted(standings) == ["a/seed_1", "a/seed_2", "b/seed_1", "b/seed_2"]
    times = [job.run.summary.stat().st_mtime_ns for job in made]
    began = time.monotonic()
    engine().run(made)
    assert time.monotonic() - began < 1
    assert [job.run.summary.stat().st_mtime_ns for job in made] == times


def test_a_row_that_fails_stops_no_other(tmp_path: Path) -> None:
    made = jobs(tmp_path, (1,), bad={"how": "fail"}, good={})
    standings = engine(1).run(made)
    assert standings["good/seed_1"].state == "finished"
    assert said(standings["bad/seed_1"]) == "failed with exit code 2: error: nothing to train on"
    assert [str(cell) for cell in table(made, standings, {}).columns[1].cells] == ["0/1", "1/1"]


def test_slots_run_side_by_side(tmp_path: Path) -> None:
    made = jobs(tmp_path, (1, 2, 3, 4), a={"seconds": 1.0})
    began = time.monotonic()
    engine(4).run(made)
    assert time.monotonic() - began < 3.5


def test_what_another_process_is_at_is_waited_for(tmp_path: Path) -> None:
    (job,) = jobs(tmp_path, (1,), a={})
    job.run.path.mkdir(parents=True)
    lock = RunLock(job.run, witness=job.run.manifest)
    lock.acquire()
    assert job.standing().state == "running"
    threading.Timer(1.0, lock.release).start()
    began = time.monotonic()
    assert engine().run([job])[job.name].state == "finished"
    assert time.monotonic() - began > 0.9


def test_a_signal_reaches_what_runs(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import signal, pathlib\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "import importlib.util as u; s = u.spec_from_file_location('t', sys.argv[2]); t = u.module_from_spec(s); s.loader.exec_module(t)\n"
        "t.engine(1).run(t.jobs(pathlib.Path(sys.argv[3]), (1, 2), a={'seconds': 60}))\n"
    )
    root = Path(__file__).resolve().parents[2]
    runner = subprocess.Popen([sys.executable, "-c", program, str(root), __file__, str(tmp_path)])
    first, second = jobs(tmp_path, a={"seconds": 60})
    for _ in range(300):
        if first.run.status.exists():
            break
        time.sleep(0.1)
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(20) == 143
    assert first.standing() == Standing("stopped", 5, 143, "SIGTERM")
    assert second.standing().state == "waiting"


def test_folders_of_others_are_refused(tmp_path: Path) -> None:
    made = jobs(tmp_path, (1,), a={}, b={}, c={}, d={})
    engine().run(made[2:])
    made[0].run.path.mkdir(parents=True)
    (made[0].run.path / "notes.txt").write_text("mine")
    made[1].run.path.mkdir(parents=True)
    made[1].run.manifest.write_text(json.dumps({"launches": [{"command": ["app", "fit", "other"]}]}))
    other = Row("c", "c", ("gpt_char",), {"loss": 2.5})
    with pytest.raises(ConfigurationError) as error:
        require_own([made[0], made[1], Short(other, 1, tmp_path, {}), made[3]])
    problems = error.value.problems
    assert ["row a/" in problems[0], "notes.txt" in problems[0]] == [True, True]
    assert "row b/seed_1" in problems[1] and "was made by other settings" in problems[1]
    assert "row c/seed_1" in problems[2]
    assert len(problems) == 3


def test_what_commands_have_found_in_a_run_is_none_of_others(tmp_path: Path) -> None:
    (job,) = jobs(tmp_path, (1,), a={})
    engine().run([job])
    for folder in (ablate.FOLDER, "crystallize", study_routing.NAME):
        (job.run.path / folder).mkdir()
    require_own([job])


def test_other_threads_are_other_bits(tmp_path: Path) -> None:
    (job,) = jobs(tmp_path, (1,), a={})
    assert job.digest != Short(job.row, 1, tmp_path, {}, threads=2).digest
    assert job.environment()["OMP_NUM_THREADS"] == "1"
    assert job.environment("3")["CUDA_VISIBLE_DEVICES"] == "3"


def test_devices_are_those_that_may_be_seen() -> None:
    assert visible_devices({}, lambda: 2) == ["0", "1"]
    assert visible_devices({"CUDA_VISIBLE_DEVICES": "4, 6"}, lambda: 8) == ["4", "6"]
    assert visible_devices({"CUDA_VISIBLE_DEVICES": ""}, lambda: 8) == []


def test_rows_of_five_seeds_are_judged_by_their_own_variance(tmp_path: Path) -> None:
    seeds = (1, 2, 3, 4, 5)
    made = jobs(tmp_path, seeds, gpt={}, wide={"per_seed": 0.03})
    engine(4).run(made)
    rows = [made[0].row, made[5].row]
    report = results(Study("s", "A headline", rows, seeds, margin=0.01, against="gpt"), made)
    found = {name: row["spread"]["sd"] for name, row in report["rows"].items()}
    assert found == {"gpt": pytest.approx(0.001 * 2.5**0.5), "wide": pytest.approx(0.03 * 2.5**0.5)}
    assert "judged by the variance of its own" in markdown(report)


def test_the_table_says_what_the_figures_allow(tmp_path: Path) -> None:
    made = jobs(tmp_path, (1, 2, 3), gpt={}, better={"loss": 1.3}, same={}, absent={"how": "fail"})
    engine(4).run(made)
    rows = [made[i].row for i in range(0, 12, 3)]
    report = results(Study("s", "A headline", rows, (1, 2, 3), margin=0.01, against="gpt"), made)
    assert report["spread"] == {"sd": pytest.approx(0.001), "degrees": 6}
    assert report["rows"]["gpt"]["spread"] == {"sd": pytest.approx(0.001), "degrees": 6}
    verdicts = {name: row.get("comparison", {}).get("verdict") for name, row in report["rows"].items()}
    assert verdicts == {"gpt": None, "better": "better", "same": "equivalent", "absent": None}
    page = markdown(report, ["results.png"])
    assert page.startswith("# A headline\n")
    assert "| better | 1.3020 ± 0.0010 |" in page
    assert "| absent | not run | – |" in page
    assert "**Not whole: 3 of 12 runs are not finished.**" in page
    assert "- absent: seed 1 stopped at step 5: was killed, seed 2 stopped" in page
    assert "- Better by the margin at least: better.\n- Equivalent, within the margin: same.\n" in page
    assert csv_of(report).splitlines()[2].startswith("better,3,1.3")
    without_times = json.dumps(
        [{k: v for k, v in row.items() if k != "times"} for row in report["rows"].values()]
    )
    again = results(Study("s", "A headline", rows, (1, 2, 3), margin=0.01, against="gpt"), made)
    assert without_times == json.dumps(
        [{k: v for k, v in row.items() if k != "times"} for row in again["rows"].values()]
    )
