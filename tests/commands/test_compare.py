"""``app compare`` on run directories in every condition."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from app.analysis import comparison_figure
from app.cli import main
from tests.support.application import real
from tests.support.made_runs import write_run

Compare = Callable[..., tuple[int, str, str]]


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Compare:
    """Runs the command in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        code = main(["compare", *map(str, words)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def test_two_setups_with_seeds(compare: Compare, tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        write_run(tmp_path / "runs" / "four" / str(seed), seed=seed)
    write_run(tmp_path / "runs" / "one" / "1", n_banks=1, level=1.7)
    code, out, err = compare("runs/four", "runs/one/1", "--output", "out")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "A  four  (n = 3)"
    assert lines[1] == "   runs/four/1  (finished at step 60, seed 1)"
    assert "B  one" in lines
    assert any(line.split()[:3] == ["A", "1.6231", "±"] for line in lines)
    assert any(line.split() == ["model.init_args.n_banks", "4", "1"] for line in lines)
    assert out.count("init_args") == 1
    assert f"picture  {Path('out/figures/curves.png')}" in lines
    assert Path("out/figures/curves.png").exists()
    report = json.loads(Path("out/compare.json").read_text())
    assert [group["label"] for group in report["groups"]] == ["four", "one"]
    assert report["groups"][0]["figures"]["val/loss"]["n"] == 3
    assert [run["seed"] for run in report["groups"][0]["runs"]] == [1, 2, 3]
    assert report["differences"] == {"model.init_args.n_banks": {"A": 4, "B": 1}}
    assert report["notes"] == []


def test_the_output_has_a_default(compare: Compare, tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    assert compare("run")[0] == 0
    assert sorted(path.name for path in (tmp_path / "comparison").iterdir()) == ["compare.json", "figures"]


def test_nothing_is_lost_of_runs_that_are_not_whole(compare: Compare, tmp_path: Path) -> None:
    write_run(tmp_path / "whole")
    write_run(tmp_path / "stopped", seed=2, n_steps=30, state="stopped")
    write_run(tmp_path / "killed", seed=3, n_steps=20, state="running")
    write_run(tmp_path / "old", seed=4, seconds_per_step=None)
    write_run(tmp_path / "empty", seed=5)
    (tmp_path / "empty" / "metrics.csv").unlink()
    write_run(tmp_path / "torn", seed=6)
    with (tmp_path / "torn" / "metrics.csv").open("a") as file:
        file.write("62,1.0\n")
    (tmp_path / "torn" / "run.json").write_text("{")
    (tmp_path / "torn" / "summary.json").write_text("{")
    write_run(tmp_path / "foreign", seed=7)
    (tmp_path / "foreign" / "metrics.csv").write_text("loss\n1\n")
    write_run(tmp_path / "broken", seed=8)
    (tmp_path / "broken" / "config.yaml").write_text("a: [")
    names = ["whole", "stopped", "killed", "old", "empty", "torn", "foreign", "broken", "whole"]
    code, out, err = compare(*names)
    assert (code, err) == (0, "")
    for said in (
        "whole: named twice, counted once",
        "stopped: is stopped; its figures are those of its last rows",
        "killed: is killed; its figures",
        "old: made before seconds were logged; no curve over time",
        "empty: has no metrics.csv; only its configuration is compared",
        "torn: 1 damaged row(s) of metrics.csv left out",
        "torn/run.json: cannot be read",
        "torn/summary.json: cannot be read",
        "foreign: metrics.csv cannot be used (does not begin with the column `step`)",
        "broken: left out, broken/config.yaml, line 1",
    ):
        assert f"note     {said}" in out, said
    report = json.loads(Path("comparison/compare.json").read_text())
    assert sum(len(group["runs"]) for group in report["groups"]) == 7


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "run", "text.txt"], ["nowhere: no such run directory", "text.txt: is a file"]),
        (["folder"], ["folder: not a run directory"]),
        ([], ["the following arguments are required: RUN"]),
        (["run", "--outptu", "x"], ["unrecognized arguments: --outptu x"]),
        (["run", "--output", "text.txt"], ["--output text.txt: is a file; name a directory"]),
    ],
)
def test_mistakes(compare: Compare, tmp_path: Path, words: list[str], said: list[str]) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "text.txt").write_text("")
    (tmp_path / "folder").mkdir()
    code, out, err = compare(*words)
    assert code in (2, 5)
    assert out == ""
    for message in said:
        assert f"{message}" in err
    assert err.count("error: ") == len(said)


def test_only_broken_runs(compare: Compare, tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("")
    code, _, err = compare("run")
    assert code == 2
    assert "run/config.yaml: is empty" in err


def test_a_narrow_terminal_gets_narrow_tables(
    compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "one" / "1")
    write_run(tmp_path / "two" / "1", n_banks=1)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "44")
    monkeypatch.setenv("TERM", "dumb")
    code, out, _ = compare("one", "two")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["A", "B"] in lines  # a column per group, once they do not fit as rows
    assert ["tokens/s", "20,480", "20,480"] in lines
    assert ["parameters", "4,000", "1,000"] in lines
    assert max(map(len, out.splitlines())) <= 44
    assert "…" not in out


def test_what_launches_were_made_with(compare: Compare, tmp_path: Path) -> None:
    made = [
        {
            "device": "cpu (1 threads of 2)",
            "packages": {"torch": "2.13.0"},
            "world_size": 1,
        },  # an older record
        {"device": "cpu (2 threads of 2)", "place": {"device": "cpu", "torch": "2.13.0", "world_size": 1}},
        {"device": "cuda:0 (NVIDIA H200)", "packages": {"torch": "2.11.0"}, "world_size": 2},
    ]
    for number, launches in enumerate(
        ([made[0]], [made[1]], [made[2]], [made[1], made[2] | {"changes": ["seed"]}])
    ):
        run = write_run(tmp_path / "runs" / "four" / str(number), seed=number)
        (run / "run.json").write_text(json.dumps({"launches": launches}))
    code, out, err = compare("runs/four")
    assert (code, err) == (0, "")
    assert [line for line in out.splitlines() if line.startswith(("A", "B", "C  "))][:3] == [
        "A  four, cpu, torch 2.13.0, world size 1, changed none  (n = 2)",
        "B  four, NVIDIA H200, torch 2.11.0, world size 2, changed none",
        "C  four, cpu then NVIDIA H200, torch 2.13.0 then 2.11.0, world size 1 then 2, changed seed",
    ]


def test_a_picture_that_cannot_be_drawn_costs_nobody_the_numbers(
    compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run")
    monkeypatch.setattr(comparison_figure, "save", lambda *args: 1 / 0)
    code, out, err = compare("run", "--output", "out")
    assert (code, err) == (0, "")
    assert "curves.png is left out (ZeroDivisionError: division by zero; APP_DEBUG=1 shows more)" in out
    assert "picture " not in out
    report = json.loads(Path("out/compare.json").read_text())
    assert report["picture"] is None and len(report["notes"]) == 1
    assert report["groups"][0]["figures"]
    monkeypatch.setenv("APP_DEBUG", "1")
    assert "Traceback" in compare("run", "--output", "out")[2]


@pytest.mark.process
def test_figures_need_nothing_of_the_machine(tmp_path: Path) -> None:
    """Neither a display for the backend that the environment names, nor a home to keep a cache in."""
    write_run(tmp_path / "$x_{$" / "run")
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nbackend: TkAgg\nno.such: 1\n")
    env = {
        "MPLBACKEND": "no such backend",
        "HOME": os.devnull,
        "MPLCONFIGDIR": f"{os.devnull}/x",
        "DISPLAY": "",
    }
    ended = real(["compare", "$x_{$/run", "--output", "out"], tmp_path, env)
    out, err = ended.communicate(timeout=60)
    assert ended.returncode == 0, err
    assert "Traceback" not in err and "left out" not in out
    assert (tmp_path / "out" / "figures" / "curves.png").stat().st_size > 10_000


def test_what_is_too_large_or_no_file_is_left_out_with_a_note(compare: Compare, tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        write_run(tmp_path / name)
    with (tmp_path / "a" / "metrics.csv").open("r+b") as file:
        file.truncate(1 << 34)
    (tmp_path / "b" / "summary.json").unlink()
    os.mkfifo(tmp_path / "b" / "summary.json")
    (tmp_path / "c" / "run.json").write_text('{"launches": ' + "[" * 100 + "]" * 100 + "}")
    with (tmp_path / "d" / "metrics.csv").open("a") as file:
        file.write("9" * 400 + ",1\n" + "1" * 200_000 + "\n")
    code, out, _ = compare("a", "b", "c", "d")
    assert code == 0
    said = " ".join(out.split())
    assert "a: metrics.csv cannot be used (has 17,179,869,184 bytes, at most 67,108,864 are read)" in said
    assert "summary.json: cannot be read (it is not a regular file)" in said
    assert "run.json: cannot be read (is nested more than 64 deep)" in said
    assert "d: 2 damaged row(s) of metrics.csv left out" in said
