import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from app.run.without_packages import without_packages


def test_a_package_is_missing_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("never_imported", "also_never_imported"):
        (tmp_path / f"{name}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.meta_path)
    with without_packages("pytest", "never_imported"):
        with pytest.raises(ModuleNotFoundError, match="No module named 'never_imported'"):
            importlib.util.find_spec("never_imported")
        with pytest.raises(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version("pytest")
        assert importlib.util.find_spec("also_never_imported")
        assert importlib.metadata.version("torch")
    assert sys.meta_path == before
    assert importlib.util.find_spec("never_imported")
    assert importlib.metadata.version("pytest")


@pytest.mark.stress
def test_the_compiler_is_there_for_whoever_asks_for_more_of_it() -> None:
    program = """
import sys
from app.run.without_packages import COMPILER, without_compiler
with without_compiler():
    import lightning.pytorch
    import torch
    assert type(sys.modules[COMPILER]).__module__ == "app.run.without_packages"
    assert torch._dynamo.optimize.__module__.startswith("torch")
compiled = torch.compile(torch.nn.Linear(2, 2), backend="eager")
assert compiled(torch.ones(1, 2)).shape == (1, 2)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
