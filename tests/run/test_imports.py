"""Which import paths a file may name."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.run.errors import ConfigurationError
from app.run.imports import check_trusted, imported, is_below


@pytest.mark.parametrize(
    ("path", "prefixes", "is_allowed"),
    [
        ("app.models.gpt.GPT", ["app.models"], True),
        ("app.models.GPT", ["app.models"], True),
        ("mynet.Net", ["other", "mynet"], True),
        ("mynet.nets.Net", ["mynet.nets"], True),
        # a longer name that begins like an allowed one
        ("app.modelsX.evil", ["app.models"], False),
        ("app.models_evil.Net", ["app.models"], False),
        ("mypkg.Net", ["my"], False),
        ("mynet.netsevil.Net", ["mynet.nets"], False),
        # less than an allowed one
        ("app.models", ["app.models"], False),
        ("app.Net", ["app.models"], False),
        ("Net", ["app.models"], False),
        # no name at all
        ("app.models.", ["app.models"], False),
        ("app.models..Net", ["app.models"], False),
        ("app.models./tmp/evil.Net", ["app.models"], False),
        ("app.models.gpt Net", ["app.models"], False),
        ("", ["app.models"], False),
        (".Net", [""], False),
    ],
)
def test_whole_names_count(path: str, prefixes: list[str], is_allowed: bool) -> None:
    assert is_below(path, prefixes) == is_allowed


@pytest.mark.parametrize("prefix", ["", "my-pkg", "*", "a..b", ".a", "a.", "a b", "../a"])
def test_a_prefix_that_is_no_name_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="is no name of a package or module"):
        check_trusted(["sound", prefix])


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Modules that leave a mark when they are imported, where the user is."""
    mark = tmp_path / "mark"
    for name in ("mypkg", "mymodels"):
        (tmp_path / f"{name}.py").write_text(f"open({str(mark)!r}, 'w')\nclass Net: pass\n")
    (tmp_path / "my.py").write_text("import os\nfrom mymodule import Other\nclass Net: pass\n")
    (tmp_path / "mymodule.py").write_text("class Other: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield mark
    for name in ("my", "mymodule", "mymodels", "mypkg"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "path",
    [
        "mypkg.Net", "mymodels.Net", "os.system", "my.os", "my.os.system", "my.Other", "my.__loader__", "my.__builtins__.eval",
        "my.Net.__init__", "my.Gone",
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_refused_before_it_is_imported(evil: Path, path: str) -> None:
    with pytest.raises(ConfigurationError, match=r"is not trusted|was the run made by another version"):
        imported(path, (), ["my"], "is not trusted")
    assert not evil.exists()
    assert not {"mypkg", "mymodels"} & sys.modules.keys()


def test_what_is_allowed_is_imported(evil: Path) -> None:
    assert imported("my.Net", (), ["my"], "is not trusted").__name__ == "Net"
    assert imported("my.Other", (), ["my", "mymodule"], "is not trusted").__name__ == "Other"
    assert imported("mypkg.Net", (), ["mypkg"], "is not trusted").__name__ == "Net"
    assert evil.exists()
