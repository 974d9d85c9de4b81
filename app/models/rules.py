"""Layers whose backward pass can follow another rule than back-propagation."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


class FollowsRule:
    """Mixed into a module whose backward pass depends on ``rule``.

    Attributes:
        rules: what ``rule`` may be; ``"bp"``, the exact gradient, is always among them.
        rule: the one in force.
    """

    rules: tuple[str, ...] = ("bp",)
    rule: str = "bp"


@contextmanager
def following(network: nn.Module, rule: str) -> Iterator[None]:
    """For the time of a ``with`` block, every layer of ``network`` that knows ``rule`` follows it.

    Raises:
        ValueError: no layer knows the rule; back-propagation is known to every network.
    """
    layers = [m for m in network.modules() if isinstance(m, FollowsRule) and rule in m.rules]
    if rule != "bp" and not layers:
        known = sorted({name for m in network.modules() if isinstance(m, FollowsRule) for name in m.rules})
        raise ValueError(
            f"rule = {rule!r}: no layer of {type(network).__name__} learns by it; known here: "
            f"{', '.join(known) or 'bp'}"
        )
    before = [layer.rule for layer in layers]
    try:
        for layer in layers:
            layer.rule = rule
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.rule = own
