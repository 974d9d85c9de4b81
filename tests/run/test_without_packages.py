import importlib.metadata
import importlib.util
import os
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


def test_what_is_imported_is_no_work_for_the_garbage_collector(tmp_path: Path) -> None:
    (tmp_path / "lightning.py").write_text(
        "import gc\nwas_collecting = gc.isenabled()\nmade = [[] for _ in range(5000)]\n"
    )
    program = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count()))
from app.run.without_packages import quick_framework
with quick_framework(()):
    import lightning
assert not lightning.was_collecting
assert gc.isenabled()
assert gc.get_freeze_count() > 5000
gc.unfreeze()
with quick_framework(()):  # whatever is there by now is not all the framework's
    assert gc.isenabled()
assert gc.get_freeze_count() == 0
gc.freeze()
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    ended = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        timeout=60,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert ended.stdout == "0\n"  # of the process's end


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
