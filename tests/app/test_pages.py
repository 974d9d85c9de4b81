"""Figures, report and trace of an architecture from outside the tree, on a text that tries to be markup."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from app.analysis.figure_numbers import numbers_of
from tests.analysis.test_report import Reader, is_self_contained
from tests.support import faults, runs, tiny
from tests.support.application import REPOSITORY, Application, Ended

pytestmark = pytest.mark.process
HOSTILE = "<script>alert(1)</script>"
TRUST = ("--trust_imports", "lane_mixer")


@dataclass(frozen=True)
class Runs:
    """A finished run, and the same one killed on the way and resumed."""

    folder: Path
    clean: Path
    resumed: Path


@pytest.fixture(scope="module")
def made(application: Application, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "lane_mixer.py").write_text((REPOSITORY / "tests" / "app" / "lane_mixer.py").read_text())
    text = tiny.write_text(folder / "text.txt", n_words=1500)
    text.write_text(text.read_text() + f"{HOSTILE}\n" * 20)
    model = {
        "class_path": "lane_mixer.LaneMixerModule",
        "init_args": {"learning_rate": 0.01, "warmup_steps": 5},
    }
    watchers = [
        {"class_path": "callbacks.DepthTimeFigures"},
        {"class_path": "callbacks.RunHealth", "init_args": {"max_share": 0.501}},
        {"class_path": "callbacks.TextSamples", "init_args": {"prompts": [HOSTILE], "max_new_tokens": 4}},
    ]
    config = tiny.write(
        folder / "lanes.yaml",
        tiny.tilelli(
            text, model=model, trainer__max_steps=20, trainer__val_check_interval=10, trainer__callbacks=watchers,
            trainer__log_every_n_steps=2, checkpoint_every_n_steps=5,
        ),
    )  # fmt: skip
    clean, resumed = folder / "clean", folder / "resumed"
    words = ("fit", "--config", config, "--run_dir", resumed, "--resume", "auto", *TRUST)
    killed = application.start(*words, cwd=folder, prelude=faults.kill_at("step", 17))
    application.fit(config, clean, *TRUST)
    assert killed.wait().code == -9, killed.output()
    ended = application.run(*words, cwd=folder)
    assert ended.code == 0, ended
    return Runs(folder, clean, resumed)


@pytest.fixture
def call(application: Application, made: Runs) -> Callable[..., Ended]:
    return lambda *words: application.run(*words, cwd=made.folder)


def test_the_figures_of_a_resumed_run_are_unbroken(made: Runs) -> None:
    runs.assert_same_run(made.resumed, made.clean)
    names = {path.name for path in (made.clean / "figures").iterdir()}
    measures = ("lane_share", "running_share", "lane_entropy", "lane_load")
    assert names == {f"depth-{measure}.png" for measure in measures}
    for name in names:
        for run in (made.resumed, made.clean):
            numbers = numbers_of((run / "figures" / name).read_bytes())
            assert numbers is not None
            assert numbers["stamp"].startswith(f"{run.parent.name}/{run.name}, step 20, "), name
    for name in ("samples.jsonl", "health.jsonl"):
        assert (made.resumed / name).read_text() == (made.clean / name).read_text()
    rows = runs.last_checkpoint(made.resumed)["callbacks"]["DepthTimeFigures"]["kept"]["depth/lane_load"][""]
    assert rows["numbers"]["steps"] == [1, *range(2, 21, 2)]


def test_a_report_of_one_run(made: Runs, call: Callable[..., Ended]) -> None:
    ended = call("report", made.resumed)
    assert ended.code == 0, ended
    page = (made.resumed / "report.html").read_text()
    assert is_self_contained(page)
    reader = Reader(page)
    assert f"{HOSTILE}" in reader.text
    scripts = [attributes.get("type") for tag, attributes in reader.elements if tag == "script"]
    assert scripts == ["application/json", None], "numbers of the figures, and what draws them"
    assert not any(tag == "img" for tag, _ in reader.elements)
    assert page.count('"name":"depth-') == 4
    for said in (
        "LaneMixer",
        "resumed from resume-000015.ckpt",
        "one_sided",
        "lane_mixer.LaneMixerModule",
        "2 launches",
    ):
        assert said in reader.text, said


def test_a_report_of_several_runs_and_of_what_is_damaged(
    made: Runs, call: Callable[..., Ended], tmp_path: Path
) -> None:
    other, bare, broken = (runs.copied(made.clean, tmp_path / name) for name in ("other", "bare", "broken"))
    config = other / "config.yaml"
    config.write_text(re.sub(r"^seed: .*", "seed: 8", config.read_text(), flags=re.MULTILINE))
    for name in ("metrics.csv", "samples.jsonl", "summary.json", "status.json"):
        (bare / name).unlink()
    (bare / "run.json").write_text("{")
    (bare / "health.jsonl").write_text("{\n")
    (bare / "figures" / "depth-lane_share.png").write_text("no picture")
    (broken / "config.yaml").write_text("seed: [")
    target = tmp_path / "made" / "page.html"
    ended = call("report", made.clean, other, bare, broken, "--output", target)
    assert ended.code == 0, ended
    for said in ("bare: has no metrics.csv", "run.json: cannot be read", "health.jsonl: 1 damaged line(s)",
                 "depth-lane_share.png: is no PNG file", "broken: left out"):  # fmt: skip
        assert said in ended.out, (said, ended)
    text = Reader(target.read_text()).text
    assert " ± 0.0000" in text and "(n = 2)" in text and "unknown at step 0" in text


def test_a_trace(made: Runs, call: Callable[..., Ended]) -> None:
    (made.folder / "some.txt").write_text(f"the quick {HOSTILE}\nbrown fox jumps over a lazy dog\n")
    ended = call("trace", made.clean, "--file", "some.txt", "--output", "pages", *TRUST)
    assert ended.code == 0, ended
    page = (made.folder / "pages" / "trace.html").read_text()
    assert is_self_contained(page)
    scripts = [attributes.get("type") for tag, attributes in Reader(page).elements if tag == "script"]
    assert scripts == ["application/json", None]
    (content,) = re.findall(r'type="application/json">(.*?)</script>', page)
    (data,) = json.loads(content)["runs"]
    assert "".join(data["tokens"]).startswith("the·quick·<script>alert(1)</script>⏎brown")
    assert data["blockSize"] == 16
    with np.load(made.folder / "pages" / "trace.npz") as found:
        assert set(found) == {"ids", "block_size", "loss", "entropy"}
        assert len(found["loss"]) == len(data["tokens"]) == len(found["ids"])
    shorter = call(
        "trace", made.clean, "--text", "the quick brown fox", "--tokens", 5, "--output", "short.html", *TRUST
    )
    assert shorter.code == 0, shorter
    assert "the first 5 of 19 tokens" in shorter.out
    two = call("trace", made.clean, made.resumed, "--text", "the quick", "--output", "two.html", *TRUST)
    assert two.code == 0, two
    (content,) = re.findall(r'type="application/json">(.*?)</script>', (made.folder / "two.html").read_text())
    first, second = json.loads(content)["runs"]
    assert first["title"] == f"LaneMixer: {made.clean}" and second["title"] == f"LaneMixer: {made.resumed}"
    assert first["tokens"] == second["tokens"]
    with np.load(made.folder / "two.npz") as one, np.load(made.folder / "two-2.npz") as other:
        assert np.array_equal(one["loss"], other["loss"], equal_nan=True), "the same weights"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("report",), "the following arguments are required: RUN"),
        (("report", "nowhere"), "nowhere: no such run directory"),
        (("report", "{run}", "--outptu", "x"), "unrecognized arguments: --outptu x"),
        (("trace", "{run}"), "one of the arguments --text --file is required"),
        (("trace", "{run}", "--text", "a", "--file", "b"), "not allowed with argument"),
        (("trace", "{run}", "--file", "nowhere.txt", *TRUST), "--file nowhere.txt: cannot be read (No such file"),
        (("trace", "{run}", "--text", "Ω", *TRUST), "--text: the text holds 1 character(s)"),
        (("trace", "{run}", "--text", "a", "--output", "x.npz"), "--output x.npz: must be a folder, or a file that"),
        (("report", "{run}", "--output", "x.pdf"), "--output x.pdf: must be a folder, or a file that ends in .html"),
        (("trace", *["{run}"] * 3, "--text", "a"), "shows 2 runs beside each other, not 3"),
        (("trace", "{run}", "--text", "", *TRUST), "--text: has no token"),
        (("trace", "{run}", "--text", "a", "--tokens", "0"), "--tokens 0: must be 1 or more"),
        (("trace", "{run}", "--text", "a", "--trust_imports", "other"), "need --trust_imports"),
    ],
)  # fmt: skip
def test_a_mistake(made: Runs, call: Callable[..., Ended], words: tuple[str, ...], said: str) -> None:
    ended = call(*(word.format(run=made.clean) for word in words))
    assert ended.code == 2, ended
    assert said in ended.err, ended
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1
