"""``app gamma`` on a run, on its own JSON, and on what is neither."""

import json
from pathlib import Path

import pytest

from tests.app.conftest import Reference
from tests.support import runs
from tests.support.application import Application

pytestmark = pytest.mark.process


def test_a_run_and_its_own_output(application: Application, reference: Reference, tmp_path: Path) -> None:
    before = runs.files(reference.baseline)
    ended = application.run("gamma", reference.baseline, "--output", tmp_path / "one", cwd=tmp_path)
    assert ended.code == 0, ended
    assert runs.files(reference.baseline) == before
    for text in ("ln1", "q_proj", "T identifiable", "DeepNorm alpha"):
        assert text in ended.out
    too_few = "2 layers are too few, at least it takes for linear 4, power 4, exponential 4, power_offset 5, piecewise 7"
    assert [line for line in ended.out.splitlines() if "too few" in line] == [f"no fit   {too_few}"]
    assert "undefined" not in ended.out
    assert (tmp_path / "one/gamma.png").read_bytes().startswith(b"\x89PNG")
    first = json.loads((tmp_path / "one/gamma.json").read_text())
    assert set(first["scales"]) == {"ln1", "ln2", "q_proj", "k_proj", "v_proj", "o_proj", "fc", "proj"}
    assert "NaN" not in (tmp_path / "one/gamma.json").read_text()
    again = application.run("gamma", tmp_path / "one/gamma.json", cwd=tmp_path)
    assert again.code == 0, again
    assert json.loads((tmp_path / "gamma.json").read_text()) == first


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.ckpt"], "there is no such file"),
        (["empty"], "empty"),
        (["a.json"], "no scales over depth"),
        (["broken.json"], "broken.json"),
        (["a.safetensors"], "is no safetensors file"),
        (["a.txt"], "a.txt: is none of"),
        (["a.json", "--out", "x"], "did you mean --output?"),
        (["a.json", "--output"], "--output: expected one argument"),
        (["--output", "x"], "required: CHECKPOINT"),
    ],
)
def test_mistakes_are_one_message(
    application: Application, tmp_path: Path, words: list[str], said: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "a.safetensors").write_bytes(b"x")
    (tmp_path / "a.txt").write_text("x")
    ended = application.run("gamma", *words, cwd=tmp_path)
    assert ended.code == 2, ended
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert len(ended.err.splitlines()) == 1
