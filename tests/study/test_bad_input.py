"""What a study does on a full disk, and with folders that are half written or somebody else's."""

from pathlib import Path

import pytest

from app.commands.study import _write_table
from app.run.errors import ConfigurationError, StorageError
from app.study.jobs import require_own
from app.study.plan import Study
from app.study.results import results
from tests.support.small_disk import small_disk
from tests.support.study_jobs import engine, jobs

#: what a crash or another program may have left of a file
LEFT = (b"", b'{"state": "finis', b"\x00\xff\x00", b"[]", b"null")


def fill(disk: Path) -> Path:
    """Leaves no byte."""
    other = disk / "other"
    with other.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return other


def test_a_full_disk_ends_a_study_that_then_goes_on(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk:
        made = jobs(disk, (1, 2), a={}, b={})
        engine(1).run(made[:2])
        before = [job.run.summary.read_bytes() for job in made[:2]]
        other = fill(disk)
        with pytest.raises(StorageError, match="No space left on device"):
            engine(1).run(made)
        assert [job.standing().state for job in made] == ["finished", "finished", "waiting", "waiting"]
        other.unlink()
        standings = engine(1).run(made)
        assert {standing.state for standing in standings.values()} == {"finished"}
        assert [job.run.summary.read_bytes() for job in made[:2]] == before


def test_a_table_that_does_not_fit_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", "512k") as disk:
        made = jobs(disk, (1, 2), a={})
        engine(2).run(made)
        study = Study("mine", "What is it worth", [made[0].row], [1, 2])
        monkeypatch.setattr("app.study.tuning.Job", type(made[0]))
        _write_table(study, disk, [])
        before = (disk / "results.json").read_bytes()
        other = fill(disk)
        with pytest.raises(StorageError, match="No space left on device"):
            _write_table(study, disk, [])
        assert (disk / "results.json").read_bytes() == before
        other.unlink()
        _write_table(study, disk, [])
        assert (disk / "results.json").read_bytes() == before
    capsys.readouterr()


@pytest.mark.parametrize("left", [b"{", *(pytest.param(left, marks=pytest.mark.stress) for left in LEFT)])
@pytest.mark.parametrize("file", ["summary", "status", "manifest", "metrics", "record"])
def test_a_half_written_run_is_made_again_or_refused(tmp_path: Path, file: str, left: bytes) -> None:
    (job,) = jobs(tmp_path, (1,), a={})
    engine().run([job])
    path = job.record if file == "record" else getattr(job.run, file)
    path.write_bytes(left)
    study = Study("mine", "What is it worth", [job.row], [1])
    if file == "record":
        # What it was launched as is not known any more: it is refused, and what it has found stays.
        with pytest.raises(ConfigurationError, match=r"row a/seed_1: .* was made by other settings"):
            require_own([job])
        return
    require_own([job])
    state = job.standing().state
    assert state in (("finished", "stopped", "waiting") if file == "metrics" else ("stopped", "waiting"))
    if state != "finished":
        assert results(study, [job])["rows"]["a"]["figures"] == {}
    assert engine().run([job])["a/seed_1"].state == "finished"
    assert results(study, [job])["rows"]["a"]["figures"]["1"] == pytest.approx(1.501)


def test_a_folder_in_the_place_of_a_file_is_told_with_its_row(tmp_path: Path) -> None:
    first, second = jobs(tmp_path, (1,), a={}, b={})
    first.run.path.mkdir(parents=True)
    (first.run.path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigurationError) as error:
        require_own([first, second])
    assert error.value.problems == [
        f"row a/seed_1: {first.run} holds other files (thesis.tex); remove them, or use another --output"
    ]
    assert (first.run.path / "thesis.tex").read_text() == "mine"
    second.run.path.parent.mkdir(parents=True)
    second.run.path.write_text("a file in the place of the folder")
    with pytest.raises(
        ConfigurationError, match=r"row b/seed_1: .* is a file; remove it, or use another --output"
    ):
        require_own([second])
