from collections.abc import Iterator

import pytest

from app.ops import Form, use_form


@pytest.fixture(params=["naive", "vectorized"])
def form(request: pytest.FixtureRequest) -> Iterator[Form]:
    """The form that computes every operator of a test."""
    with use_form(request.param):
        yield request.param
