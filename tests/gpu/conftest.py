"""The application is started as it is in `tests/app`."""

from tests.app.conftest import application

__all__ = ["application"]
