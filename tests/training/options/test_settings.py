"""What a user has set, and where."""

from pathlib import Path

from app.run import arguments
from app.run.configuration import read_config
from app.training.options.settings import settings


def test_the_last_of_equal_keys_counts_and_keeps_its_place(tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("seed: 1\ntrainer:\n  max_steps: 5\n  devices: 2\nrun_dir: elsewhere\n")
    two.write_text("trainer:\n  max_steps: 6\n")
    launch = arguments.read(["--config", "one.yaml", "--trainer.devices", "1", "--trainer.max_steps=7"])
    found = {s.key: (s.value, s.origin) for s in settings([read_config(one), read_config(two)], launch)}
    assert found == {
        "seed": (1, f"{one}, line 1"),
        "trainer.max_steps": (7, "command line"),
        "trainer.devices": (1, "command line"),
    }
    launch = arguments.read([])
    found = {s.key: (s.value, s.origin) for s in settings([read_config(one), read_config(two)], launch)}
    assert found["trainer.max_steps"] == (6, f"{two}, line 2")


def test_callbacks_are_looked_at_one_by_one(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "trainer:\n  callbacks:\n  - class_path: a.B\n    init_args:\n      x: 1\n  - class_path: c.D\n"
        "data:\n  init_args:\n    names: [p, q]\n"
    )
    found = {s.key: (s.value, s.origin) for s in settings([read_config(config)], arguments.read([]))}
    assert found == {
        "trainer.callbacks.0.class_path": ("a.B", f"{config}, line 3"),
        "trainer.callbacks.0.init_args.x": (1, f"{config}, line 5"),
        "trainer.callbacks.1.class_path": ("c.D", f"{config}, line 6"),
        "data.init_args.names": (["p", "q"], f"{config}, line 9"),
    }


def test_a_class_may_be_named_alone_and_any_text_is_a_value() -> None:
    launch = arguments.read(
        ["--model", "app.training.GPTModule", "--seed", "{", "--data.init_args.path=a: b: c"]
    )
    found = {s.key: s.value for s in settings([], launch)}
    assert found == {
        "model.class_path": "app.training.GPTModule",
        "seed": "{",
        "data.init_args.path": "a: b: c",
    }


def test_short_forms_of_the_command_line_are_written_out(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("trainer:\n  callbacks:\n  - Throughput\n")
    words = [
        "--model.n_layers",
        "3",
        "--data=CharDataModule",
        "--data.path",
        "x",
        "--trainer.callbacks+=TextSamples",
    ]
    words += ["--trainer.callbacks.temperature", "0.5", "--trainer.callbacks.init_args.top_k=4"]
    found = {s.key: s.value for s in settings([read_config(config)], arguments.read(words))}
    assert found == {
        "trainer.callbacks.0.class_path": "Throughput",
        "model.init_args.n_layers": 3,
        "data.class_path": "CharDataModule",
        "data.init_args.path": "x",
        "trainer.callbacks.1.class_path": "TextSamples",
        "trainer.callbacks.1.init_args.temperature": 0.5,
        "trainer.callbacks.1.init_args.top_k": 4,
    }


def test_so_are_those_of_a_network_within_the_model() -> None:
    words = ["--model=LanguageModelModule", "--model.network=lab.Net", "--model.network.d_model=8"]
    words += ["--model.network.init_args.n_layers=2", "--model.learning_rate", "0.1"]
    found = {s.key: s.value for s in settings([], arguments.read(words))}
    assert found == {
        "model.class_path": "LanguageModelModule",
        "model.init_args.network.class_path": "lab.Net",
        "model.init_args.network.init_args.d_model": 8,
        "model.init_args.network.init_args.n_layers": 2,
        "model.init_args.learning_rate": 0.1,
    }


def test_a_list_replaces_a_list(tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("trainer:\n  callbacks:\n  - {class_path: a.B, init_args: {x: 1}}\n  - c.D\n")
    two.write_text("trainer:\n  callbacks:\n  - e.F\n  callbacks+:\n  - g.H\n")
    found = {s.key: s.value for s in settings([read_config(one), read_config(two)], arguments.read([]))}
    assert found == {"trainer.callbacks.0.class_path": "e.F", "trainer.callbacks.1.class_path": "g.H"}


def test_an_optimizer_is_a_name_or_a_class_named_alone(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("model:\n  init_args:\n    optimizer: sgd\n    schedule: mylab.Halve\n")
    words = ["--model.optimizer", "mylab.Lion", "--model.optimizer.beta", "0.5"]
    found = {s.key: s.value for s in settings([read_config(config)], arguments.read(words))}
    assert found == {
        "model.init_args.optimizer.class_path": "mylab.Lion",
        "model.init_args.optimizer.init_args.beta": 0.5,
        "model.init_args.schedule.class_path": "mylab.Halve",
    }
    words += ["--model.optimizer", "adamw"]
    found = {s.key: s.value for s in settings([read_config(config)], arguments.read(words))}
    assert found == {
        "model.init_args.optimizer": "adamw",
        "model.init_args.schedule.class_path": "mylab.Halve",
    }
