"""Mistakes in configurations and command lines: what, where, the rule and the remedy, and nothing else."""

from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import runs, tiny
from tests.support.application import Application, Ended

pytestmark = pytest.mark.process


@dataclass
class Mistake:
    """One wrong configuration.

    Attributes:
        said: what the message must contain.
        changes: values in an otherwise sound configuration.
        text: the whole file instead; None for no file.
        words: of the command line.
    """

    said: tuple[str, ...]
    changes: dict[str, Any] = field(default_factory=dict)
    text: str | bytes | None = ""
    words: tuple[str, ...] = ()


def mistake(
    *said: str, text: str | bytes | None = "", words: tuple[str, ...] = (), **changes: Any
) -> Mistake:
    return Mistake(said, changes, text, words)


FILE = "config.yaml, line "
#: the rest of a sound file, for values that cannot be dumped as they are written
TRAINED = """
model: {class_path: app.training.GPTModule, init_args: {d_model: 16, n_layers: 2, n_heads: 2}}
data: {class_path: datamodules.CharDataModule, init_args: {path: text.txt, block_size: 16, batch_size: 4}}
trainer: {accelerator: cpu, max_steps: 1}
"""
MISTAKES = {
    # keys
    "a key with a typo": mistake(
        "model.init_args.d_modle (", FILE, "there is no such key; did you mean 'd_model'?", model__init_args__d_modle=32
    ),
    "a section with a typo": mistake("trianer (", FILE, "did you mean 'trainer'?", trianer={"max_steps": 3}),
    "a trainer key with a typo": mistake("trainer.max_step (", FILE, "did you mean 'max_steps'?", trainer__max_step=3),
    "what others call an option": mistake(
        "model.init_args.n_embd (", FILE, "there is no such key; did you mean 'd_model'?", model__init_args__n_embd=32
    ),
    "an option of another section": mistake(
        "lr (command line): there is no such key; did you mean '--model.learning_rate'?", words=("--lr", "3")
    ),
    "the same in a file": mistake(
        "model.init_args.bs (", FILE, "did you mean 'data.init_args.batch_size'?", model__init_args__bs=4
    ),
    "what the data decides": mistake(
        "model.init_args.seq_len (", FILE, "did you mean 'data.init_args.block_size'?", model__init_args__seq_len=4
    ),
    "epochs, and no length": mistake(
        "epochs (command line): there is no such key; did you mean '--trainer.max_steps'?",
        words=("--epochs", "3"), trainer={"accelerator": "cpu"},
    ),
    "no abbreviation": mistake(
        "trainer.max_step (command line): there is no such key; did you mean 'max_steps'?",
        words=("--trainer.max_step", "3"),
    ),
    "the argument of another class": mistake("model.init_args.n_banks (", "there is no such key", model__init_args__n_banks=2),
    "a callback's argument": mistake(
        "trainer.callbacks.1.init_args.tempreature (", FILE, "did you mean 'temperature'?",
        trainer__callbacks=[
            {"class_path": "callbacks.Throughput"},
            {"class_path": "callbacks.TextSamples", "init_args": {"tempreature": 1.0}},
        ],
    ),
    "a class that does not exist": mistake(
        "model.class_path (", FILE, "there is no GPTModul in app.training; did you mean 'GPTModule'?",
        model__class_path="app.training.GPTModul",
    ),
    "a class of another kind": mistake(
        "model.class_path (", "callbacks.Throughput", model__class_path="callbacks.Throughput", model__init_args={}
    ),
    "no class": mistake("model.class_path: is not set", model=None),
    # types
    "a text for a number": mistake(
        "model.init_args.n_layers (", FILE, "'two' is not an integer", model__init_args__n_layers="two"
    ),
    "a time for a number": mistake("seed (", FILE + "1): '1:30' is not an integer", text="seed: 1:30\n" + TRAINED),
    "a time on the command line": mistake("seed (command line)", "'1:30' is not an integer", words=("--seed", "1:30")),
    "an octal number": mistake("seed (", FILE + "1): '0o17' is not an integer", text="seed: 0o17\n" + TRAINED),
    "a number that begins with a zero": mistake("seed (", FILE + "1): '017' is not an integer", text="seed: 017\n" + TRAINED),
    "a fraction of a step": mistake("trainer.max_steps (", FILE, "2.5 is not an integer", trainer__max_steps=2.5),
    "none of the choices": mistake(
        "model.init_args.schedule (", "'cosin' is not one of cosine, wsd", model__init_args__schedule="cosin"
    ),
    "a list for a section": mistake("trainer (", FILE, trainer=["max_steps", 3]),
    "a number for a section": mistake("trainer (", FILE, trainer=3),
    "a list for the data": mistake("data", data=["path", "x"]),
    "a number for the model": mistake("model", model=3),
    "no number on the command line": mistake("seed (command line)", "'seven' is not an integer", words=("--seed", "seven")),
    "no YAML on the command line": mistake("seed (command line)", "'{' is not an integer", words=("--seed={",)),
    "an alias on the command line": mistake("seed (command line)", "'*x' is not an integer", words=("--seed", "*x")),
    "a tag on the command line": mistake(
        "seed (command line)", "is not an integer", words=("--seed", "!!python/name:os.system")
    ),
    "an option without a value": mistake("trainer.max_steps", words=("--trainer.max_steps",)),
    # ranges
    "a negative rate": mistake(
        "model.init_args.learning_rate (", FILE, "-1.0 is out of range; it must be positive",
        model__init_args__learning_rate=-1.0,
    ),
    "heads that do not divide": mistake("n_heads (", "3", model__init_args__n_heads=3),
    "no steps": mistake("trainer.max_steps (", "0 is out of range; it must be at least 1", trainer__max_steps=0),
    "an infinite run": mistake("trainer.max_steps (", "-1 is out of range; it must be at least 1", trainer__max_steps=-1),
    "no length": mistake("trainer.max_steps: is not set; give the length of the run in optimizer steps", trainer={"accelerator": "cpu"}),
    "a negative seed": mistake("seed (", "-1 is out of range", seed=-1),
    "a tiny block": mistake("data.init_args.block_size (", "1 is out of range; it must be at least 2", data__init_args__block_size=1),
    # the form of the file
    "broken YAML": mistake("config.yaml, line 2, column", text="trainer:\n\tmax_steps: 3\n"),
    "a duplicate key": mistake(
        "config.yaml, line 3", "duplicate key 'seed', first on line 1; keep one of the two", text="seed: 1\nmodel: x\nseed: 2\n"
    ),
    "an empty file": mistake("config.yaml: is empty", text="# nothing\n"),
    "an alias bomb": mistake(
        "aliases or anchors",
        text="a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    ),
    "a binary file": mistake("config.yaml: is not UTF-8 text (byte 0)", text=b"\xff\xfe\x00"),
    "a list": mistake("config.yaml: holds a list, must hold `key: value` lines", text="- seed: 1\n"),
    # what contradicts
    "two sources": mistake("stdlib: and path", "are both given; keep one of them", data__init_args__source="stdlib"),
    "fractions above one": mistake(
        "data.init_args.val_fraction (", "leave nothing to train on",
        data__init_args__val_fraction=0.6, data__init_args__test_fraction=0.5,
    ),
    "a batch that does not divide": mistake(
        "data.init_args.batch_size (", FILE, "4 windows per optimizer step cannot be divided evenly by 1 rank(s) × 3 accumulated",
        "Set batch_size to 3 or 6", trainer__accumulate_grad_batches=3,
    ),
    "a vocabulary of one's own": mistake(
        "model.init_args.vocab_size (", "50 differs from the data's", model__init_args__vocab_size=50
    ),
    "a block of one's own": mistake(
        "model.init_args.block_size (command line): 32 differs from the data's 16", words=("--model.init_args.block_size=32",)
    ),
    # what the framework has and we have not
    "an optimizer section": mistake(
        "optimizer (", FILE, "set model.init_args.optimizer and learning_rate", optimizer={"class_path": "torch.optim.SGD"}
    ),
    "a schedule section": mistake(
        "lr_scheduler (", FILE, "set model.init_args.schedule", lr_scheduler={"class_path": "x.Y", "init_args": {"a": 1}}
    ),
    "a checkpoint path": mistake("ckpt_path (command line)", "use --resume RUN", words=("--ckpt_path", "x.ckpt")),
    "epochs": mistake(
        "trainer.max_epochs (", FILE, "trainer.max_steps is its only length", trainer__max_epochs=3
    ),
    "a share of an epoch": mistake(
        "trainer.val_check_interval (", "0.25 is not an integer", trainer__val_check_interval=0.25
    ),
    "limited batches": mistake("trainer.limit_train_batches (", "trainer.max_steps", trainer__limit_train_batches=5),
    "overfitting": mistake("trainer.overfit_batches (", "data.init_args.repeat_windows", trainer__overfit_batches=2),
    "other bits": mistake("trainer.deterministic (", "fast_nondeterministic: true", trainer__deterministic=False),
    "kernels by timing": mistake("trainer.benchmark (", "leave it out", trainer__benchmark=True),
    "half precision": mistake("trainer.precision (", "'16-mixed' has too small a range; use bf16-mixed", trainer__precision="16-mixed"),
    "clipping by the trainer": mistake("trainer.gradient_clip_val (", "model.init_args.gradient_clip", trainer__gradient_clip_val=1.0),
    # the command line
    "no configuration": mistake("--config is missing; name a configuration", text=None),
    "a missing file": mistake("--config nowhere.yaml: neither a file nor a shipped configuration", text=None, words=("--config", "nowhere.yaml")),
    "a shipped name with a typo": mistake("did you mean tilelli_banks4", text=None, words=("--config", "tileli_banks4")),
    "a word too many": mistake("whatever", words=("whatever",)),
    "a flag given twice": mistake("--run_dir: given twice", words=("--run_dir", "a", "--run_dir", "b")),
    "a flag without its value": mistake("--resume: a value is missing", words=("--resume",)),
}  # fmt: skip


def sound(text: Path, **changes: Any) -> dict[str, Any]:
    """A configuration without a mistake, short: after a refusal each of its values is looked at alone."""
    return tiny.changed(
        {
            "seed": 7,
            "model": {
                "class_path": "app.training.GPTModule",
                "init_args": {"d_model": 16, "n_layers": 2, "n_heads": 2},
            },
            "data": {
                "class_path": "datamodules.CharDataModule",
                "init_args": {"path": str(text), "block_size": 16, "batch_size": 4},
            },
            "trainer": {"accelerator": "cpu", "max_steps": 1},
        },
        changes,
    )


def refused(application: Application, folder: Path, wrong: Mistake) -> Ended:
    """The end of a ``fit`` that must refuse a configuration and leave nothing behind."""
    folder.mkdir(exist_ok=True)
    text = tiny.write_text(folder / "text.txt", n_words=300)
    words: tuple[Any, ...] = wrong.words
    if wrong.text is not None:
        config = folder / "config.yaml"
        content = wrong.text or yaml.safe_dump(sound(text, **wrong.changes), sort_keys=False)
        config.write_bytes(content if isinstance(content, bytes) else content.encode())
        words = ("--config", config, *words)
    ended = application.run("fit", *words, cwd=folder, timeout=8)
    left = sorted({path.name for path in folder.iterdir()} - {"text.txt", "config.yaml"})
    return ended if not left else Ended(ended.code, ended.out, f"{ended.err}left behind: {left}")


@pytest.fixture(scope="module")
def refusals(application: Application, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[Ended]]:
    """The end of every mistake."""
    folder = tmp_path_factory.mktemp("mistakes")
    return application.begin(
        {
            kind: partial(refused, application, folder / str(number), wrong)
            for number, (kind, wrong) in enumerate(MISTAKES.items())
        }
    )


def assert_refused(ended: Ended, n_problems: int = 1) -> None:
    """Exit code 2, one line per problem, nothing else but what was under way."""
    assert ended.code == 2, ended
    assert all(line.startswith("start ") for line in ended.out.splitlines()), ended
    lines = ended.err.splitlines()
    assert len(lines) == n_problems, ended
    assert all(line.startswith("error: ") for line in lines), ended


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake(refusals: dict[str, Future[Ended]], kind: str) -> None:
    ended = refusals[kind].result()
    assert_refused(ended)
    for part in MISTAKES[kind].said:
        assert part in ended.err, ended


def test_gpus_that_are_not_there(application: Application, tmp_path: Path) -> None:
    text = tiny.write_text(tmp_path / "text.txt", n_words=300)
    config = tiny.write(tmp_path / "config.yaml", sound(text, trainer__accelerator="gpu"))
    for words, said in (
        ((), ("trainer.accelerator (", FILE, "there is no GPU here; leave it out")),
        (
            ("--trainer.accelerator", "auto", "--trainer.devices=[0, 3]"),
            ("trainer.devices (command line): [0, 3] numbers GPUs", "leave it out"),
        ),
    ):
        ended = application.run(
            "fit", "--config", config, *words, cwd=tmp_path, env={"CUDA_VISIBLE_DEVICES": ""}
        )
        assert_refused(ended)
        for part in said:
            assert part in ended.err, ended
    assert not (tmp_path / "runs").exists()
    prepared = application.run("prepare", "--config", config, cwd=tmp_path, env={"CUDA_VISIBLE_DEVICES": ""})
    assert prepared.code == 0, prepared


def test_all_of_them_at_once(application: Application, tmp_path: Path) -> None:
    wrong = mistake(
        model__init_args__d_modle=32,
        model__init_args__n_layers="two",
        data__init_args__batch_sise=4,
        trainer__max_stpes=3,
        trainer__callbacks=[{"class_path": "callbacks.Throughputs"}],
        words=("--seed", "seven"),
    )
    ended = refused(application, tmp_path, wrong)
    assert_refused(ended, 6)
    for key in ("d_modle", "n_layers", "batch_sise", "max_stpes", "callbacks.0.class_path", "seed"):
        assert key in ended.err


def test_all_ranges_at_once(application: Application, tmp_path: Path) -> None:
    wrong = mistake(
        model__init_args__learning_rate=0.0,
        model__init_args__n_heads=3,
        data__init_args__block_size=1,
        data__init_args__val_fraction=1.5,
        trainer__max_steps=0,
        checkpoint_every_n_steps=0,
        trainer__max_epochs=3,
    )
    assert_refused(refused(application, tmp_path, wrong), 7)


def test_types_and_ranges_at_once(application: Application, tmp_path: Path) -> None:
    """But no rule that speaks of a value that is not known yet: of the heads beside an unknown width, of the steps."""
    wrong = mistake(
        model__init_args__d_modle=10,
        model__init_args__n_heads=3,
        model__init_args__n_layers=-2,
        model__init_args__learning_rate="fast",
        data__init_args__batch_size=0,
        trainer={"accelerator": "cpu", "max_stpes": 3},
        checkpoint_every_n_steps=0,
    )
    ended = refused(application, tmp_path, wrong)
    assert_refused(ended, 6)
    for key in (
        "d_modle",
        "n_layers",
        "learning_rate",
        "batch_size",
        "max_stpes",
        "checkpoint_every_n_steps",
    ):
        assert key in ended.err


def test_both_of_two_files(application: Application, tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("a: [\n")
    (tmp_path / "two.yaml").write_text("b: 1\nb: 2\n")
    ended = application.run("fit", "--config", "one.yaml", "--config", "two.yaml", cwd=tmp_path)
    assert_refused(ended, 2)
    assert "one.yaml, line" in ended.err
    assert "two.yaml, line 2" in ended.err


def test_the_command_line_comes_last_wherever_it_stands(application: Application, tmp_path: Path) -> None:
    text = tiny.write_text(tmp_path / "text.txt", n_words=300)
    config = tiny.write(tmp_path / "config.yaml", sound(text, trainer__max_steps=40))
    over = tmp_path / "over.yaml"
    over.write_text("trainer:\n  max_steps: 3\nseed: 9\nmodel:\n  init_args:\n    dropout: 0.25\n")
    run = tmp_path / "run"
    ended = application.run(
        "fit", "--trainer.max_steps", 2, "--config", config, "--model.init_args.d_model=8", "--run_dir", run,
        "--config", over, cwd=tmp_path,
    )  # fmt: skip
    assert ended.code == 0, ended
    saved = yaml.safe_load((run / "config.yaml").read_text())
    # Constructor default, first file, second file, command line.
    assert saved["model"]["init_args"]["bias"] is False
    assert saved["data"]["init_args"]["batch_size"] == 4
    assert (saved["seed"], saved["model"]["init_args"]["dropout"]) == (9, 0.25)
    assert saved["model"]["init_args"]["d_model"] == 8
    assert runs.status(run)["step"] == 2


def test_configurations_named_first(application: Application, tmp_path: Path) -> None:
    text = tiny.write_text(tmp_path / "text.txt", n_words=300)
    tiny.write(tmp_path / "config.yaml", sound(text, trainer__max_steps=40))
    (tmp_path / "over.yaml").write_text("trainer:\n  max_steps: 3\n")
    run = tmp_path / "run"
    ended = application.run("fit", "config.yaml", "over.yaml", "--run_dir", run, cwd=tmp_path)
    assert ended.code == 0, ended
    assert runs.status(run)["step"] == 3
    ended = application.run("fit", "run", cwd=tmp_path)
    assert ended.err == "error: run: is a directory; to go on with a run write --resume run\n"
    prepared = application.run("prepare", "config.yaml", cwd=tmp_path)
    assert prepared.code == 0, prepared


def test_what_it_all_comes_to_is_printed(application: Application, tmp_path: Path) -> None:
    text = tiny.write_text(tmp_path / "text.txt", n_words=300)
    tiny.write(tmp_path / "config.yaml", sound(text))
    words = ("fit", "config.yaml", "--print_config")
    ended = application.run(*words, "--model.dropout", 0.25, cwd=tmp_path)
    assert ended.code == 0, ended
    printed = yaml.safe_load(ended.out)
    assert printed["model"]["init_args"]["dropout"] == 0.25
    assert printed["data"]["init_args"]["val_fraction"] == 0.1  # a default
    (tmp_path / "printed.yaml").write_text(ended.out)
    assert application.run("fit", "printed.yaml", "--print_config", cwd=tmp_path).out == ended.out
    assert application.run(*words, "--lr", 3, cwd=tmp_path).code == 2
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt", "config.yaml", "printed.yaml"}


#: files that want to run something; MARK stands for a file that would then exist
ATTACKS = {
    "os.system as the model": "model:\n  class_path: os.system\n  init_args:\n    command: touch MARK\n",
    "os.system as a callback": "trainer:\n  callbacks:\n    - class_path: os.system\n      init_args: {command: touch MARK}\n",
    "subprocess as a strategy": "trainer:\n  strategy:\n    class_path: subprocess.Popen\n    init_args: {args: touch MARK, shell: true}\n",
    "a module beside it as the model": "model:\n  class_path: evil.Model\n",
    "a module beside it as the data": "data:\n  class_path: evil.Model\n",
    "a module beside it as a callback": "trainer:\n  callbacks:\n    - class_path: evil.Model\n",
    "a module beside it as a callback's argument": (
        "trainer:\n  callbacks:\n    - class_path: callbacks.TextSamples\n      init_args: {prompts: {class_path: evil.Model}}\n"
    ),
    "a module beside it as a plugin": "trainer:\n  plugins:\n    - class_path: evil.Model\n",
    "a module beside it as a profiler": "trainer:\n  profiler:\n    class_path: evil.Model\n",
    "a callable in an allowed package": "model:\n  class_path: app.cli.importlib.import_module\n  init_args: {name: evil}\n",
    "an allowed prefix only": "model:\n  class_path: application.Model\n",
    "a tag": "seed: !!python/object/apply:os.system ['touch MARK']\n",
    "a tag for a module": "seed: !!python/module:evil\n",
    "a local tag": "seed: !evil 1\n",
}  # fmt: skip


def attacked(application: Application, folder: Path, attack: str) -> Ended:
    """The end of a ``fit`` whose configuration wants to run something."""
    folder.mkdir()
    mark = folder / "mark"
    evil = f"open({str(mark)!r}, 'w')\nclass Model:\n    pass\n"
    for name in ("evil.py", "application.py"):
        (folder / name).write_text(evil)
    text = tiny.write_text(folder / "text.txt", n_words=300)
    config = tiny.write(folder / "config.yaml", sound(text))
    (folder / "attack.yaml").write_text(attack.replace("MARK", str(mark)))
    # With the working directory on the path, as it is for `python -m app`.
    ended = application.run(
        "fit",
        "--config",
        config,
        "--config",
        "attack.yaml",
        cwd=folder,
        prelude="import sys; sys.path.insert(0, '')",
    )
    assert not mark.exists(), ended
    assert not (folder / "runs").exists(), ended
    return ended


@pytest.fixture(scope="module")
def attacks(application: Application, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[Ended]]:
    """The end of every attack."""
    folder = tmp_path_factory.mktemp("attacks")
    return application.begin(
        {
            kind: partial(attacked, application, folder / str(number), attack)
            for number, (kind, attack) in enumerate(ATTACKS.items())
        }
    )


@pytest.mark.parametrize("kind", ATTACKS)
def test_nothing_in_a_configuration_is_run(attacks: dict[str, Future[Ended]], kind: str) -> None:
    ended = attacks[kind].result()
    assert ended.code == 2, ended
    assert "attack.yaml, line" in ended.err, ended
    assert all(line.startswith("error: ") for line in ended.err.splitlines()), ended


def test_neither_on_the_command_line(application: Application, tmp_path: Path) -> None:
    for name in ("evil", "callbacksx", "datamodules_evil"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nclass Model: pass\n")
    text = tiny.write_text(tmp_path / "text.txt", n_words=300)
    config = tiny.write(tmp_path / "config.yaml", sound(text))
    (tmp_path / "trainer.yaml").write_text("callbacks:\n- class_path: evil.Model\n")
    for words, said in (
        (("--model", "evil.Model"), "'evil.Model' may not be imported"),
        (("--trainer.callbacks+=evil.Model",), "may not be imported"),
        (("--trainer", "trainer.yaml"), "stands for a whole section"),
        (("--trust_imports", "good", "--model", "evil.Model"), "'evil.Model' may not be imported"),
        (("--trust_imports", "ev", "--model", "evil.Model"), "'evil.Model' may not be imported"),
        (("--trainer.callbacks+=callbacksx.Model",), "may not be imported"),
        (("--data", "datamodules_evil.Model"), "'datamodules_evil.Model' may not be imported"),
        (("--trainer.callbacks+=callbacks.trits.torch.save",), "cannot be imported"),
        (("--model", "app.training.evaluation_steps.LightningModule"), "may not be imported"),
        (("--trust_imports", "my-package", "--model", "evil.Model"), "is no name of a package or module"),
    ):
        ended = application.run(
            "fit", "--config", config, *words, cwd=tmp_path, prelude="import sys; sys.path.insert(0, '')"
        )
        assert ended.code == 2, ended
        assert said in ended.err, ended
        assert not (tmp_path / "mark").exists()


def test_a_file_name_leads_nowhere_else(application: Application, tmp_path: Path) -> None:
    text = tiny.write_text(tmp_path / "text.txt", n_words=300)
    folder = tmp_path / "in" / "here"
    folder.mkdir(parents=True)
    for name in ("..yaml", "...yaml", "a b;c $(x).yaml"):
        tiny.write(folder / name, sound(text, trainer__max_steps=1))
        ended = application.run("fit", "--config", name, cwd=folder)
        assert ended.code == 0, ended
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt", "in"}
    assert {path.name for path in (tmp_path / "in").iterdir()} == {"here"}
    assert {path.name for path in (folder / "runs").iterdir()} == {"run", "a-b-c-x"}
