"""``app ablate`` on a run, and its row in the report."""

import json
from pathlib import Path

import pytest

from app.cli import main
from tests.app.conftest import Reference
from tests.support import runs

pytestmark = pytest.mark.process
FEW = ["--n_blocks", "4", "--calibration_blocks", "2"]


def test_a_run_is_cut_reported_and_gone_on_with(
    reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs.copied(reference.clean, tmp_path / "run")
    assert main(["ablate", str(run), *FEW]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines()[4:-5])) <= 80
    assert {"ablate.json", "ablate.png", "stages.json"} <= {path.name for path in (run / "ablate").iterdir()}
    summary = json.loads((run / "ablate" / "ablate.json").read_text())
    assert {entry["kind"] for entry in summary["ablations"]} == {"bank", "pathway", "block", "precision"}
    assert summary["verdict"] in " ".join(out.split())
    before = (run / "ablate" / "ablate.json").read_bytes()
    assert main(["ablate", str(run), *FEW]) == 0  # every stage is there
    assert (run / "ablate" / "ablate.json").read_bytes() == before
    assert main(["ablate", str(run), *FEW, "--at", "blocks.1.paths.sparse", "--with", "mean"]) == 0
    (one,) = json.loads((run / "ablate" / "ablate-blocks.1.paths.sparse-mean.json").read_text())["ablations"]
    same = next(entry for entry in summary["ablations"] if entry["name"] == one["name"])
    assert (one["delta"], one["interval"]) == (same["delta"], same["interval"])
    assert main(["ablate", str(run), "--names"]) == 0
    assert "blocks.1.router.bank" in capsys.readouterr().out
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Without a part" in page
    assert "quantisation switched off" in page
    (run / "ablate" / "ablate.json").write_text(
        json.dumps(
            {"ablations": [{"label": 3}, None, {"label": "x", "kind": "bank", "delta": "<b>", "interval": 1}]}
        )
    )
    assert main(["report", str(run)]) == 0
    assert "Without a part" not in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--n_blocks", "1", "--seed", "-1"], "--n_blocks 1: must be 2 or more"),
        (["--with", "mean"], "--with mean: belongs to --at NAME"),
        (["--at", "x", "--kinds", "bank"], "--at x: is one ablation"),
        (["--at", "blocks.1.paths.sprase"], "did you mean blocks.1.paths.sparse?"),
        (["--at", "blocks.1.router.bank", "--with", "mean"], "holds indices, which have no mean"),
        (["--kinds", "head"], "--kinds head: TilelliLM has none; it has bank, block, pathway, precision"),
        (["--kinds", "nose"], "invalid choice: 'nose'"),
        (["--n_blocks", "100000"], "windows of 16; ask for fewer"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(
    reference: Reference, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    assert main(["ablate", str(reference.clean), "--out_dir", str(target), *FEW, *words]) == 2
    assert said in capsys.readouterr().err
    assert not target.exists()
