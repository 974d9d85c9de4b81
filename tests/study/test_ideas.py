"""The page of ideas: a line for each row of each shipped study, filled by the results that there are."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.cli import main
from app.run.configuration import shipped_directory, shipped_studies
from app.study.plan import find_study, read_study
from app.study.statistics import Pooled
from app.study.verdicts import Pair, compare


def row(loss: float, **more: Any) -> dict[str, Any]:
    times = {"seconds": 20 * loss, "peak_bytes": 1e8}
    origins = [{"device": "a GPU"}]
    return {
        "figures": {"1": loss},
        "n_planned": 1,
        "parameters": 50,
        "times": times,
        "made_with": origins,
    } | more


def comparison(loss: float, other: float) -> dict[str, Any]:
    (found,) = compare([Pair(loss, 5, other, 5, Pooled(1e-6, 8))], 0.05)
    return {**found._asdict(), "interval": list(found.interval)}


def page(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["study", "--ideas", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_shipped_page_is_what_the_command_says(capsys: pytest.CaptureFixture[str]) -> None:
    shipped = shipped_directory() / "study" / "results"
    assert page(capsys) == (shipped / "README.md").read_text(encoding="utf-8").splitlines()
    strangers = {folder.name for folder in shipped.iterdir() if folder.is_dir()} - set(shipped_studies())
    assert not strangers


def test_every_row_is_an_idea_or_what_ideas_are_compared_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = page(capsys, "--output", str(tmp_path))
    for name in shipped_studies():
        study = read_study(find_study(name))
        labels = {row.label for row in study.rows}
        ideas = labels - {study.against, study.ladder} if len(labels) > 1 else set()
        for label in ideas:
            assert [line for line in lines if line.startswith(f"| {label} | ") and "| not run |" in line], (
                label
            )
    assert not [line for line in lines if "|  |" in line], "an idea that changes nothing"


def test_results_fill_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gates = {"parameters": 60, "comparison": comparison(1.4, 1.5)}
    gates |= {"multiplier": {"value": "1.5", "range": "1.2 to 1.9"}}
    report: dict[str, Any] = {"study": "speedrun", "margin": 0.05, "rows": {"base": row(1.5)}}
    report["rows"] |= {"head_gates": row(1.4, **gates), "muon": {"figures": {}, "n_planned": 1}}
    tasks: dict[str, Any] = {"study": "skills", "margin": 0.05, "rows": {}}
    for name in ("mqar", "mano"):
        mine = row(1.0, task=name, comparison=comparison(1.0, 2.0 if name == "mqar" else 0.5))
        tasks["rows"] |= {f"gpt-task_{name}": row(2.0, task=name), f"crystal-task_{name}": mine}
    for found in (report, tasks):
        (tmp_path / found["study"]).mkdir()
        (tmp_path / found["study"] / "results.json").write_text(json.dumps(found))
    lines = page(capsys, "--output", str(tmp_path))
    assert [line for line in lines if "[Page](speedrun/results.md): 2 of 3 runs, margin 0.05, a GPU." in line]
    (gates_line,) = [line for line in lines if line.startswith("| head_gates |")]
    assert "| × 1.2 | × 1 | × 0.933 | better, -0.1000 (" in gates_line
    assert "| × 1.5 (1.2 to 1.9) | – | – |" in gates_line
    assert [line for line in lines if line.startswith("| muon | optimizer muon | not run |")]
    (crystal,) = [line for line in lines if line.startswith("| crystal | model CrystalGPTModule")]
    assert crystal.endswith("| better 1, worse 1, not run 10 | – | mqar | mano |")
