"""The arrows between the layers, and what importing one of them may cost."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("app", "callbacks", "datamodules")


def lint(directory: Path) -> subprocess.CompletedProcess[str]:
    """Checks the contracts of pyproject.toml on the packages in a directory."""
    command = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    return run_python(command, directory)


def run_python(command: str, directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(directory)}
    return subprocess.run(
        [sys.executable, "-c", command],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.process
def test_contracts_hold() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.process
@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("app/records.py", "import numpy", "records and operators need PyTorch and nothing else"),
        ("app/ops/ternary/naive.py", "import app.records", "records and operators do not know each other"),
        *(
            pytest.param(*row, marks=pytest.mark.stress)
            for row in (
                ("app/models/gpt/network.py", "import lightning", "networks are pure PyTorch"),
                ("app/run/launching.py", "import app.models", "the run machinery stands alone"),
                ("app/training/modules.py", "import callbacks", "training knows networks by their interface"),
                (
                    "app/training/modules.py",
                    "import datamodules.char",
                    "training reaches operators through networks",
                ),
                ("app/analysis/__init__.py", "import app.training", "analyses read networks and records"),
                ("callbacks/throughput.py", "import app.run.launching", "watchers need neither the run"),
                ("callbacks/throughput.py", "import app.models", "watchers read records"),
                ("datamodules/text.py", "import app.records", "data sets know no network"),
                ("app/study/statistics.py", "import app.training.counts", "studies start processes"),
                ("app/bench/timing.py", "import app.commands", "measurements are of what there is"),
                ("app/commands/fit.py", "import callbacks", "commands name no watcher"),
                ("app/browser/page.py", "import app.loading", "a page for the browser"),
                ("datamodules/tokenizers/base.py", "import lightning", "a trained network loads without"),
            )
        ),
    ],
)
def test_each_contract_can_break(tmp_path: Path, module: str, line: str, contract: str) -> None:
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / module
    path.write_text(f"{path.read_text()}\n{line}\n")
    result = lint(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    broken = [text for text in result.stdout.splitlines() if " BROKEN" in text]
    assert any(text.startswith(contract) for text in broken), result.stdout


@pytest.mark.process
@pytest.mark.parametrize(
    ("blocked", "statement"),
    [
        (("lightning", "jsonargparse"), "import app.models.gpt, app.models.tilelli, app.models.generation"),
        (("lightning", "jsonargparse"), "import app; app.load"),
        (("lightning", "jsonargparse", "torch", "numpy"), "import app.cli; app.cli.main(['--help'])"),
        (("lightning", "jsonargparse", "torch", "numpy"), "import app.commands.fit, app.commands.generate"),
    ],
)
def test_imports_work_without(blocked: tuple[str, ...], statement: str) -> None:
    """None in ``sys.modules`` makes an import fail as if the package were not installed."""
    result = run_python(f"import sys; sys.modules |= dict.fromkeys({blocked!r}); {statement}", ROOT)
    assert result.returncode == 0, result.stderr
