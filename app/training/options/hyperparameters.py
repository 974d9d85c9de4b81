"""What distinguishes one run from another, for the table of hyper-parameters."""

import inspect
from collections.abc import Mapping
from typing import Any


def chosen(configuration: Mapping[str, Any], **built: object) -> dict[str, Any]:
    """Seed, length, precision, classes, and every argument that is not its constructor's default.

    Args:
        configuration: the resolved one.
        built: section to what was built from it.

    Returns:
        Name to plain value.
    """
    trainer = configuration["trainer"]
    found = {"seed": configuration["seed"]}
    found |= {key: trainer[key] for key in ("max_steps", "precision") if trainer.get(key)}
    for section, made in built.items():
        found[section] = type(made).__name__
        usual = _defaults(type(made))
        for name, value in configuration[section].get("init_args", {}).items():
            if value is not None and (name not in usual or usual[name] != value):
                found[name] = value
    return found


def _defaults(class_type: type) -> dict[str, Any]:
    """Defaults of the arguments that a class takes, through its bases; the nearest one's count."""
    found: dict[str, Any] = {}
    for base in reversed(class_type.__mro__):
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
            found |= {p.name: p.default for p in parameters if p.default is not p.empty}
    # A configuration knows lists alone.
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
