"""``app doctor``: one line per check, and an exit code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli import main
from app.commands import doctor
from app.run.machine import Check

REPOSITORY = Path(__file__).resolve().parents[2]
CODE = """
import sys
from app.cli import main
code = main(["doctor", "--json"])
heavy = [name for name in ("lightning", "matplotlib", "datasets", "transformers") if name in sys.modules]
print(heavy, file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.process
def test_it_needs_no_framework(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": str(REPOSITORY), "HF_TOKEN": "hunter2", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == "[]\n"
    report = json.loads(ended.stdout)
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["operators on cpu"]["level"] == "ok"
    assert {"archlab", "python", "torch", "lightning", "kernels", "runs folder", "data folder"} <= set(checks)
    assert {"shared memory", "locking", "clock", "threads", "$OMP_NUM_THREADS"} <= set(checks)
    assert "hunter2" not in ended.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("warn", 0), ("fail", 2)])
def test_exit_code_and_lines(
    level: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [
        Check("one", "ok", "is there"),
        Check("another", level, "is odd", "do this" if level != "ok" else ""),
    ]
    monkeypatch.setattr(doctor, "package_checks", lambda: found[:1])
    monkeypatch.setattr(doctor, "torch_checks", lambda: found[1:])
    monkeypatch.setattr(doctor, "machine_checks", lambda runs, data: [])
    assert main(["doctor"]) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok    one      is there"
    assert lines[1] == f"{level:<5} another  is odd"
    assert lines[2:] == ([] if level == "ok" else ["               -> do this"])
    assert main(["doctor", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["level"] == level


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.requirements()["lightning"] == "<2.7,>=2.6.6"
    for version, level in (
        (None, "fail"),
        ("2.6.2", "fail"),
        ("2.5.0", "warn"),
        ("2.6.6", "ok"),
        ("2.6.7rc1", "ok"),
    ):
        check = doctor._package_check("lightning", version, ">=2.6.6,<2.7")
        assert check.level == level, version
        assert ("pip install 'lightning>=2.6.6,<2.7'" in check.remedy) == (level != "ok")
    monkeypatch.setattr(doctor, "versions", lambda: {"archlab": None, "torch": "1.0", "lightning": None})
    checks = {check.name: check for check in doctor.package_checks()}
    assert checks["torch"].level == "warn"


def test_operators_that_differ_from_their_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_operator_error", lambda device: 0.5)
    assert [check.level for check in doctor._operators()][1] == "fail"

    def broken(device: str) -> float:
        raise RuntimeError("no such kernel\nat line 1")

    monkeypatch.setattr(doctor, "_operator_error", broken)
    assert list(doctor._operators())[1].found == "no such kernel"


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--jsn"]) == 2
    assert "unrecognized arguments: --jsn" in capsys.readouterr().err
