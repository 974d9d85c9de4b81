import json
import subprocess
from pathlib import Path

import pytest

from app.run import manifest
from app.run.directory import RunDirectory


def test_environment_by_allow_list_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "secret-value")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    launch = manifest.collect(["app", "fit"], seed=7, extra={"device": "cpu"})
    text = json.dumps(launch)
    assert "secret-value" not in text
    assert launch["environment"]["OMP_NUM_THREADS"] == "3"
    assert set(launch["environment"]) <= set(manifest.ENVIRONMENT)
    assert (launch["command"], launch["seed"], launch["device"]) == (["app", "fit"], 7, "cpu")
    assert launch["packages"]["torch"]
    assert launch["n_cpus"] >= 1


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    repo = tmp_path / "repo"
    (repo / "app" / "run").mkdir(parents=True)
    (repo / "app" / "run" / "manifest.py").write_text("old\n")
    identity = ["-c", "user.name=n", "-c", "user.email=e@x"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(repo), *words], check=True)
    monkeypatch.setattr(manifest, "__file__", str(repo / "app" / "run" / "manifest.py"))
    return repo


def test_commit_and_difference(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    run = RunDirectory.open_new(tmp_path / "run")
    launch = manifest.collect([], seed=1)
    assert len(launch["commit"]) == 40
    assert launch["source_diff"] is None
    manifest.record_launch(run, launch)
    assert not (run.path / "source.diff").exists()

    (checkout / "app" / "run" / "manifest.py").write_text("new\n")
    (checkout / "app" / "extra.py").write_text("x\n")
    launch = manifest.collect([], seed=1)
    assert launch["untracked_files"] == ["app/extra.py"]
    manifest.record_launch(run, launch)
    manifest.record_launch(run, launch)
    assert "+new" in (run.path / "source-2.diff").read_text()
    assert not (run.path / "source-3.diff").exists()
    launches = json.loads(run.manifest.read_text())["launches"]
    assert len(launches) == 3
    assert "source_diff" not in launches[1]
    assert launches[0]["source_diff_sha256"] is None
    assert launches[1]["source_diff_sha256"] == launches[2]["source_diff_sha256"] is not None


def test_repository_of_somebody_else_around_an_installation_is_not_ours(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = checkout / ".venv" / "site-packages" / "app" / "run"
    inner.mkdir(parents=True)
    monkeypatch.setattr(manifest, "__file__", str(inner / "manifest.py"))
    assert manifest.repository() is None
    launch = manifest.collect([], seed=None)
    assert launch["commit"] is None
    assert launch["untracked_files"] == []


def test_git_that_hangs_or_is_missing_costs_nothing_but_the_entry(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "bin" / "git"
    binary.parent.mkdir()
    binary.write_text("#!/bin/sh\nexec /bin/sleep 30\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(binary.parent))
    monkeypatch.setattr(manifest, "_GIT_SECONDS", 0.1)
    assert manifest.collect([], seed=1)["commit"] is None
    monkeypatch.setenv("PATH", "/nonexistent")
    assert manifest.collect([], seed=1)["commit"] is None


def test_damaged_manifest_starts_again(tmp_path: Path) -> None:
    run = RunDirectory.open_new(tmp_path / "run")
    for damage in ("{", "[]", '{"launches": 3}', "null"):
        run.manifest.write_text(damage)
        manifest.record_launch(run, {"command": ["app"]})
        assert len(json.loads(run.manifest.read_text())["launches"]) == 1


@pytest.mark.parametrize(
    ("launches", "name"),
    [
        ([["--config", "gpt_char", "--config=hardware/gpu"]], "gpt_char"),
        ([["-c", "mine/a.b.yaml"], ["--config", "again.yaml"], ["--resume", "runs/a"]], "again"),
        ([["--config=first"], ["--run_dir", "d", "--resume", "auto"]], "first"),
        ([["--config"]], ""),
        ([[3, "--config", "x"]], ""),
        ([], ""),
    ],
)
def test_a_run_is_called_as_what_it_was_begun_with(
    launches: list[list[str]], name: str, tmp_path: Path
) -> None:
    run = RunDirectory.open_new(tmp_path / "run")
    for words in launches:
        begun = not words or "--resume" not in words or "auto" in words
        manifest.record_launch(
            run, {"command": ["app", "fit", *words], "resumed_from": None if begun else "x.ckpt"}
        )
    manifest.record_launch(run, {"command": ["app", "fit", "--config", "overlay"], "resumed_from": "x.ckpt"})
    assert manifest.experiment(run) == name
