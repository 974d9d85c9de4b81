"""What of a launch's path is kept."""

from collections.abc import Iterator

import pytest

from app.models import operators
from app.ops import choice
from app.training import run_path


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    yield
    operators.keep({})


def test_a_kernel_that_has_been_edited_is_not_kept() -> None:
    forms = {"ternary": "triton", "hadamard": "naive"}
    run_path.retake({"operators": forms, "kernels": operators.code(forms)})
    assert choice._kept == {"app.ops.ternary": "triton", "app.ops.hadamard": "naive"}
    run_path.retake({"operators": forms, "kernels": "0123456789abcdef"})
    assert choice._kept == {"app.ops.hadamard": "naive"}
    run_path.retake({"operators": forms | {"gone": "triton"}, "kernels": operators.code(forms)})
    assert choice._kept == {"app.ops.hadamard": "naive"}
