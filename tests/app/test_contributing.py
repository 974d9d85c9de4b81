"""The recipes of CONTRIBUTING.md work as they are written there."""

import re
from pathlib import Path

import pytest

from app.commands.new import TEMPLATES
from tests.support import runs, tiny
from tests.support.application import REPOSITORY, Application

#: a file's name on the line before its content
BLOCK = re.compile(r"`([\w.]+)`:\n\n```(?:python|yaml)\n(.*?)```\n", re.DOTALL)
RECIPE = dict(BLOCK.findall((REPOSITORY / "CONTRIBUTING.md").read_text()))
ON_TEXT = (
    "--data.path",
    "text.txt",
    "--data.block_size",
    16,
    "--data.batch_size",
    4,
    "--trainer.accelerator",
    "cpu",
)


def test_the_recipe_is_what_app_new_writes() -> None:
    assert set(RECIPE) == {"grulm.py", "grulm.yaml", "test_grulm.py"}
    for name, content in RECIPE.items():
        assert content == (TEMPLATES / name).read_text()


@pytest.mark.process
def test_its_network_trains_resumes_is_validated_and_writes(application: Application, tmp_path: Path) -> None:
    for name, content in RECIPE.items():
        (tmp_path / name).write_text(content)
    tiny.write_text(tmp_path / "text.txt", 900)
    command = re.search(r"^# app (fit .*)$", RECIPE["grulm.yaml"], re.MULTILINE)
    assert command is not None
    words = (*command[1].split(), *ON_TEXT, "--run_dir", "run")
    trained = application.run(*words, "--trainer.max_steps", 20, cwd=tmp_path)
    assert trained.code == 0, trained
    run = tmp_path / "run"
    losses = [float(row["train/loss"]) for row in runs.curve(run) if "train/loss" in row]
    assert losses[-1] < losses[0]
    # What was trusted is remembered with the run.
    resumed = application.run("fit", "--resume", "run", "--trainer.max_steps", 24, cwd=tmp_path)
    assert resumed.code == 0, resumed
    assert runs.status(run) | {"state": "finished", "step": 24} == runs.status(run)
    validated = application.run("validate", "run", cwd=tmp_path)
    assert validated.code == 0, validated
    assert "val/loss" in validated.out
    generated = application.run("generate", "run", "--prompt", "the ", "--tokens", 8, cwd=tmp_path)
    assert generated.code == 0, generated
    assert generated.out.startswith("the ")


@pytest.mark.process
def test_a_network_of_the_tree_needs_no_trust(application: Application, tmp_path: Path) -> None:
    tiny.write_text(tmp_path / "text.txt", 900)
    words = ("fit", "gpt_char", *ON_TEXT, "--model", "LanguageModelModule", "--print_config")
    ended = application.run(*words, "--model.network", "app.models.gpt.GPT", cwd=tmp_path)
    assert ended.code == 0, ended
    assert "class_path: app.models.gpt.GPT" in ended.out
    refused = application.run(*words, "--model.network", "app.models.gpt.network.GPTBlock", cwd=tmp_path)
    assert refused.code == 2, refused
    assert (
        "app.models.gpt.network.GPTBlock is no LanguageModel; derive it from app.models.language_model"
        in refused.err
    )


@pytest.mark.process
def test_what_is_wrong_with_a_class_of_ones_own_is_said(application: Application, tmp_path: Path) -> None:
    tiny.write_text(tmp_path / "text.txt", 900)
    words = ("fit", "gpt_char", *ON_TEXT, "--model", "LanguageModelModule", "--run_dir", "run")
    absent = application.run(*words, "--model.network", "mylab.Net", "--trust_imports", "mylab", cwd=tmp_path)
    assert absent.code == 2, absent
    assert f"No module named 'mylab'; looked for in {tmp_path} and on PYTHONPATH" in absent.err
    (tmp_path / "boom.py").write_text(
        "from app.models.gpt import GPT\n\n\nclass Boom(GPT):\n    def __init__(self, **others):\n        mine\n"
    )
    failed = application.run(*words, "--model.network", "boom.Boom", "--trust_imports", "boom", cwd=tmp_path)
    assert failed.code == 1, failed
    assert (
        failed.err.splitlines()[-1] == "NameError: name 'mine' is not defined"
    )  # not the parser's words of it
