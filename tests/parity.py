"""Loading of parity fixtures, and the one measure of error."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from torch import Tensor

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


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖ in double precision; against zeros, the norm of what is not zero."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    actual, expected = actual.detach().double(), expected.detach().double()
    norm = expected.norm().item()
    return (actual - expected).norm().item() / (norm or 1.0)
