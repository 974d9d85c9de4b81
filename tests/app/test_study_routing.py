"""``app study routing`` on a run, with controls, and its section in the report."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.cli import main
from tests.app.conftest import Reference
from tests.support import runs
from tests.support.application import Application

pytestmark = pytest.mark.process
FEW = ["--n_blocks", "10", "--n_tokens", "2"]


def made(run: Path, target: Path, by: float = 0.0, **init_args: Any) -> Path:
    """A finished run of other settings, its losses shifted."""
    runs.copied(run, target)
    configuration = yaml.safe_load((target / "config.yaml").read_text())
    configuration["seed"] = init_args.pop("seed")
    configuration["model"]["init_args"] |= init_args
    (target / "config.yaml").write_text(yaml.safe_dump(configuration))
    with (target / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (target / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow(row | ({"val/loss": float(row["val/loss"]) + by} if row["val/loss"] else {}))
    return target


def test_a_run_is_judged_and_reported(
    reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs.copied(reference.clean, tmp_path / "run")
    again = made(run, tmp_path / "again", 0.001, seed=8)
    hashed = [made(run, tmp_path / f"hash{n}", 0.1 + 0.001 * n, seed=n, bank_choice="hash") for n in (1, 2)]
    words = ["study", "routing", str(run), str(again), "--controls", *map(str, hashed), *FEW]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines()[5:-12])) <= 80
    report = json.loads((run / "routing" / "routing.json").read_text())
    assert [entry["name"] for entry in report["routers"]][:2] == ["layer 0, local", "layer 0, state"]
    assert len(report["routers"]) == 6
    assert report["verdict"] in " ".join(out.split())
    (control,) = report["controls"]
    assert (control["control"], control["n"], control["verdict"]) == ("hash", 2, "useful")
    assert control["difference"] == pytest.approx(-0.101, abs=1e-6)
    steps = [found["step"] for found in report["saturation"]]
    assert steps == sorted(set(runs.saved_steps(run)) | set(runs.saved_steps(run, "best")))
    assert {path.name for path in (run / "routing").glob("*.png")} == set(report["pictures"])
    assert set(report["pictures"]) == {
        f"routing-{what}.png"
        for what in ("exchange", "controls", "tokens", "coactivation", "saturation", "retention")
    }
    before = (run / "routing" / "routing.json").read_bytes()
    assert main(words) == 0  # every stage is there
    assert (run / "routing" / "routing.json").read_bytes() == before
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Banks and routes" in page
    assert "Is the choice better than the others?" in page
    for text in ('{"routers": [{"name": 3}, null], "controls": 7, "pictures": []}', "{", "[]"):
        (run / "routing" / "routing.json").write_text(text)
        assert main(["report", str(run)]) == 0
        assert "Banks and routes" not in (run / "report.html").read_text()


def test_what_is_no_control_is_told(
    reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs.copied(reference.clean, tmp_path / "run")
    wide = made(run, tmp_path / "wide", seed=1, bank_choice="hash", d_head=4)
    alike = made(run, tmp_path / "alike", seed=2)
    killed = made(run, tmp_path / "killed", seed=3, bank_choice="random")
    (killed / "status.json").write_text(
        json.dumps({"state": "failed", "step": 40, "exit_code": 1, "reason": "x"})
    )
    words = ["study", "routing", str(run), "--controls", str(wide), str(alike), str(killed), *FEW]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "wide: differs from" in said and "model.init_args.d_head: 4 in place of 8" in said
    assert "alike: is decided by router, not by forward or hash or position or random; leave it out" in said
    assert "killed: is failed; finish it, or leave it out" in said
    assert not (run / "routing").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--n_blocks", "9", "--n_tokens", "0", "--margin", "0"], "--n_tokens 0: must be 1 or more"),
        (["--n_blocks", "100000"], "windows of 16; ask for fewer"),
        (["--margin", "nan"], "--margin nan: must be a positive number"),
        (["--contorls", "x"], "did you mean --controls?"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(
    reference: Reference, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    assert main(["study", "routing", str(reference.clean), "--out_dir", str(target), *words]) == 2
    assert said in capsys.readouterr().err
    assert not target.exists()


def test_a_network_without_choices_has_nothing_to_ask(
    reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "routing", str(reference.baseline), "--out_dir", str(tmp_path / "out"), *FEW]) == 2
    assert "GPT chooses neither banks nor routes; name a run that does" in capsys.readouterr().err


@pytest.mark.stress
def test_a_task_tells_its_regime_too(application: Application, tmp_path: Path) -> None:
    values = {
        "data.sizes": "{length: 24}", "data.batch_size": 8, "data.n_evaluation_windows": 32, "model.d_model": 16,
        "model.n_layers": 1, "trainer.max_steps": 20, "trainer.val_check_interval": 20, "trainer.callbacks": "[]",
    }  # fmt: skip
    words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    fitted = application.run("fit", "tilelli_task", *words, "--run_dir", tmp_path / "run", cwd=tmp_path)
    assert fitted.code == 0, fitted
    assert main(["study", "routing", str(tmp_path / "run"), *FEW]) == 0
    report = json.loads((tmp_path / "run" / "routing" / "routing.json").read_text())
    assert report["text"] == "task planted_routes"
    assert set(report["routers"][0]["told_by"]) == {"input", "next", "predicted", "regime"}
