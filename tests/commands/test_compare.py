"""``app compare`` on run directories in every condition."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from app.cli import main
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
        (["run", "--output", "text.txt"], ["cannot write"]),
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


def test_a_narrow_terminal_gets_lists(
    compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "one" / "1")
    write_run(tmp_path / "two" / "1", n_banks=1)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "44")
    monkeypatch.setenv("TERM", "dumb")
    code, out, _ = compare("one", "two")
    assert code == 0
    assert "   tokens/s  20,480" in out
    assert "   parameters  4,000" in out
    assert "…" not in out
