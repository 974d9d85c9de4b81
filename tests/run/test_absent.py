import importlib.metadata
import importlib.util
import sys
from pathlib import Path

import pytest

from app.run.absent import absent


def test_a_package_is_missing_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("never_imported", "also_never_imported"):
        (tmp_path / f"{name}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.meta_path)
    with absent("pytest", "never_imported"):
        with pytest.raises(ModuleNotFoundError, match="No module named 'never_imported'"):
            importlib.util.find_spec("never_imported")
        with pytest.raises(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version("pytest")
        assert importlib.util.find_spec("also_never_imported")
        assert importlib.metadata.version("torch")
    assert sys.meta_path == before
    assert importlib.util.find_spec("never_imported")
    assert importlib.metadata.version("pytest")
