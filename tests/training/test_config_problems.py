"""What a user has set, and where."""

from pathlib import Path

from app.run import arguments
from app.run.configuration import read_config
from app.training.config_problems import constructor_arguments, settings
from app.training.tilelli import TilelliModule


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


def test_a_module_takes_its_own_arguments_and_those_of_all_modules() -> None:
    found = constructor_arguments(TilelliModule)
    assert {"n_banks", "vocab_size", "learning_rate", "schedule"} <= found
    assert not found & {"self", "network", "training"}
