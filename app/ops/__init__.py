"""Operators, each a package of forms of one function; see README.md."""

from app.ops.choice import Form, use_form

__all__ = ["Form", "use_form"]
