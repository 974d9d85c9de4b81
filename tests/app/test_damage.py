"""Damaged, foreign and left-over files in a run directory."""

import pickle
import zipfile
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pytest
import torch

from app.run import checkpoint
from datamodules import tokenizers
from tests.app.conftest import Reference
from tests.support import faults, runs
from tests.support.application import Application
from tests.support.hostile import PICKLES, archive
from tests.support.side_by_side import SideBySide, selected

pytestmark = pytest.mark.process
side_by_side = SideBySide()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0b1000
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "one bit flipped": flip,
    "empty": lambda path: path.write_bytes(b""),
    "no sidecar": lambda path: path.with_name(f"{path.name}.sha256").unlink(),
}


@pytest.fixture(scope="module")
def resumed(
    application: Application,
    reference: Reference,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> dict[str, Future[None]]:
    """Runs whose newest checkpoint is damaged go on, side by side."""
    folder = tmp_path_factory.mktemp("resumed")
    return application.begin(
        {
            damage: partial(from_an_older_one, application, reference, folder / str(number), damage)
            for number, damage in enumerate(selected(request, "damage"))
        }
    )


#: what reading a checkpoint tells by itself, see tests/run/test_checkpoint.py
TOLD_ALIKE = ("truncated", "empty")


@pytest.mark.parametrize(
    "damage", [pytest.param(name, marks=[pytest.mark.stress] * (name in TOLD_ALIKE)) for name in DAMAGES]
)
def test_the_newest_whole_checkpoint_is_taken(resumed: dict[str, Future[None]], damage: str) -> None:
    resumed[damage].result()


def from_an_older_one(application: Application, reference: Reference, run: Path, damage: str) -> None:
    runs.copied(reference.broken, run)
    DAMAGES[damage](run / "checkpoints" / "resume-000030.ckpt")
    ended = application.go_on(run)
    assert ended.code == 0, ended
    notes = [line for line in ended.out.splitlines() if line.startswith("note ")]
    assert "resume-000030.ckpt" in ended.out, ended
    assert "note     going on from resume-000020.ckpt, the newest one that is whole" in notes, ended
    assert "resumed  after step 20\n" in ended.out
    runs.assert_same_run(run, reference.clean)


@side_by_side
def test_nothing_whole_is_left(application: Application, reference: Reference, tmp_path: Path) -> None:
    run = runs.copied(reference.broken, tmp_path / "run")
    for path in (run / "checkpoints").glob("resume-*.ckpt"):
        flip(path)
    before = runs.files(run)
    del before["lock/owner.json"]  # the killed process's, which is taken over and given back
    ended = application.go_on(run)
    assert ended.code == 4, ended
    assert ended.err.startswith(f"error: {run}: none of its 2 checkpoints is whole")
    assert ended.err.count("\n") <= 3
    assert runs.files(run) == before


@pytest.mark.parametrize(
    "damage", ["one bit flipped", *(pytest.param(name, marks=pytest.mark.stress) for name in TOLD_ALIKE)]
)
def test_a_damaged_file_that_was_named_is_no_other(
    application: Application, reference: Reference, tmp_path: Path, damage: str
) -> None:
    run = runs.copied(reference.broken, tmp_path / "run")
    named = run / "checkpoints" / "resume-000030.ckpt"
    DAMAGES[damage](named)
    for words in (("fit", "--resume", named), ("generate", named), ("validate", named)):
        ended = application.run(*words, cwd=tmp_path)
        assert ended.code == 4, ended
        assert ended.err.count("\n") <= 3
        assert str(named) in ended.err
        assert "sound and newest beside it: " in ended.err
    assert runs.saved_steps(run) == [20, 30]


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@side_by_side
def test_a_foreign_file_runs_nothing(application: Application, reference: Reference, tmp_path: Path) -> None:
    run = runs.copied(reference.broken, tmp_path / "run")
    fired = tmp_path / "fired"
    folder = run / "checkpoints"
    torch.save({"state_dict": {}, "archlab": Bomb(fired)}, folder / "resume-000099.ckpt")
    (folder / "resume-000098.ckpt").write_bytes(pickle.dumps(Bomb(fired)))
    with zipfile.ZipFile(folder / "resume-000097.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(fired)))
    torch.save({"state_dict": {}}, folder / "resume-000096.ckpt")
    for step in (99, 98, 97, 96):
        named = folder / f"resume-0000{step}.ckpt"
        for words in (("fit", "--resume", named), ("generate", named)):
            ended = application.run(*words, cwd=tmp_path)
            assert ended.code == 4, ended
            assert "Traceback" not in ended.err
    outside = tmp_path / "bomb.ckpt"
    outside.write_bytes((folder / "resume-000099.ckpt").read_bytes())
    assert application.run("fit", "--resume", outside, cwd=tmp_path).code == 2
    assert not fired.exists()
    # None of them has a sidecar: they are no checkpoints of the run, and it goes on from its own.
    ended = application.go_on(run)
    assert "resumed  after step 30\n" in ended.out, ended
    assert not fired.exists()


@side_by_side
def test_left_over_files_are_swept(application: Application, reference: Reference, tmp_path: Path) -> None:
    run = runs.copied(reference.broken, tmp_path / "run")
    killed = application.go_on(
        run,
        prelude=faults.replaced("app.run.checkpoint.sync_directory", "None") + faults.kill_at("saved", 40),
    )
    assert killed.code != 0
    for name in (".resume-000040.ckpt.4711.tmp", "resume-000038.ckpt.sha256"):
        (run / "checkpoints" / name).write_bytes(b"half")
    (run / ".metrics.csv.4711.tmp").write_bytes(b"half")
    ended = application.go_on(run)
    assert ended.code == 0, ended
    left = {path.name for path in run.rglob("*")}
    assert not {name for name in left if name.endswith(".tmp")}
    assert "resume-000038.ckpt.sha256" not in left
    runs.assert_same_run(run, reference.clean)


@side_by_side
def test_a_file_made_to_fill_memory_is_one_message(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    """Whatever reads it: as a run's checkpoint, as weights to begin from, as weights to look at."""
    run = runs.copied(reference.baseline, tmp_path / "run")
    named = archive(run / "checkpoints" / "resume-000099.ckpt", PICKLES["chained encode"])
    begin = ("fit", "--config", reference.baseline_config, "--run_dir", tmp_path / "new")
    commands: list[tuple[object, ...]] = [
        ("generate", named), ("validate", named), ("trace", named, "--text", "a"), ("gamma", named),
        ("crystallize", named), ("fit", "--resume", named), (*begin, "--init_from", named),
    ]  # fmt: skip
    for ended in application.all(*(partial(application.run, *words, cwd=tmp_path) for words in commands)):
        assert ended.code == 4, ended
        assert f"{named}: calls _codecs.encode as no checkpoint does" in ended.err
        assert ended.err.count("error: ") == 1
        assert "Traceback" not in ended.err
    assert not (tmp_path / "new").exists()


@side_by_side
def test_a_network_that_its_weights_do_not_fill_is_not_built(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    """Its description is in the checkpoint for some commands, and in the run's configuration for others."""
    run = runs.copied(reference.baseline, tmp_path / "run")
    named = run / "checkpoints" / "best-000020.ckpt"
    content = checkpoint.read(named)
    content["archlab"]["network"]["init_args"]["n_layers"] = 10_000
    checkpoint.write(content, named)
    configuration = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(configuration.replace("d_model: 16", "d_model: 1000000"))
    assert (run / "config.yaml").read_text() != configuration
    deep = ("--model.init_args.n_layers", 10**9)
    misfit = f"{named}: its weights do not fit its own network, which would take more memory"
    commands: list[tuple[tuple[object, ...], int, str]] = [
        (("generate", named), 4, misfit),
        (("trace", named, "--text", "a"), 4, misfit),
        (("validate", run), 2, "is far larger than the checkpoint's weights"),
        (("fit", "--resume", named), 2, "is far larger than the checkpoint's weights"),
        (("validate", run, *deep), 2, "the network cannot be laid out: it has more parts than any network"),
    ]
    calls = [partial(application.run, *words, cwd=tmp_path) for words, _, _ in commands]
    for ended, (_, code, said) in zip(application.all(*calls), commands, strict=True):
        assert ended.code == code, ended
        assert said in ended.err
        assert "Traceback" not in ended.err


@side_by_side
def test_a_checkpoint_of_a_newer_format_names_it(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    run = runs.copied(reference.baseline, tmp_path / "run")
    for path in (run / "checkpoints").glob("*.ckpt"):
        content = checkpoint.read(path)
        content["archlab"] = {"format": 7, "windows": "counted otherwise"}
        checkpoint.write(content, path)
    commands: list[tuple[object, ...]] = [
        ("generate", run), ("validate", run), ("trace", run, "--text", "a"),
        ("fit", "--resume", run, "--trainer.max_steps", 30),
    ]  # fmt: skip
    for ended in application.all(*(partial(application.run, *words, cwd=tmp_path) for words in commands)):
        assert ended.code == 4, ended
        assert "was written by a newer archlab (format 7); this one reads up to 2" in ended.err


@side_by_side
def test_another_tokenizer_of_the_same_size_is_refused_with_both_hashes(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    run = runs.copied(reference.baseline, tmp_path / "run")
    text = tmp_path / "text.txt"
    text.write_text((reference.config.parent / "text.txt").read_text().replace("z", "ö"))
    configuration = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(
        configuration.replace(str(reference.config.parent / "text.txt"), str(text))
    )
    theirs = tokenizers.load(run / "tokenizer.json")
    ours = tokenizers.CharTokenizer(theirs.to_dict()["alphabet"].replace("z", "ö"))
    assert ours.vocab_size == theirs.vocab_size
    ours.save(run / "tokenizer.json")
    commands: list[tuple[object, ...]] = [
        ("validate", run), ("generate", run), ("trace", run, "--text", "a"), ("crystallize", run),
        ("fit", "--resume", run, "--trainer.max_steps", 30),
    ]  # fmt: skip
    for ended in application.all(*(partial(application.run, *words, cwd=tmp_path) for words in commands)):
        assert ended.code == 2, ended
        assert ours.hash in ended.err, ended
        assert theirs.hash in ended.err
        assert all(line.startswith("start ") for line in ended.out.splitlines()), ended
