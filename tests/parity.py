"""Loading of parity fixtures, and the one measure of error, which is the application's."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from torch import Tensor

from app.bench.parity import relative_error

__all__ = ["Fixture", "load_fixture", "relative_error"]

FIXTURES = Path(__file__).parent / "fixtures"


class Fixture(NamedTuple):
    """Tensors of one fixture by name, and what its test needs to know."""

    tensors: dict[str, Tensor]
    case: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix, named by the rest."""
        return {name.removeprefix(prefix): x for name, x in self.tensors.items() if name.startswith(prefix)}


def load_fixture(name: str) -> Fixture:
    with safe_open(FIXTURES / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        return Fixture(tensors, json.loads(file.metadata()["case"]))
