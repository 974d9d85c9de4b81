"""Which constructor arguments of the network make sense."""

import math
from collections.abc import Mapping
from typing import Any, get_args

from app.models.equilibrium.budget import BudgetOrder
from app.models.equilibrium.routing import Quantile, Soft
from app.models.equilibrium.signal import Statistics

COUNTS = (
    "vocab_size",
    "block_size",
    "d_model",
    "n_heads",
    "n_layers",
    "d_ff",
    "plastic_hidden",
    "n_branches",
    "max_budget_per_token",
)
CHOICES = {"statistics": Statistics, "soft": Soft, "quantile": Quantile, "budget_order": BudgetOrder}


def problems_of(arguments: Mapping[str, Any]) -> list[str]:
    """Every rule that these arguments break, as ``name = value: rule``; all of them have to be there."""
    found = [f"{name} = {arguments[name]}: must be at least 1" for name in COUNTS if arguments[name] < 1]
    d_model, n_heads = arguments["d_model"], arguments["n_heads"]
    if n_heads >= 1 and d_model % n_heads:
        found.append(f"n_heads = {n_heads}: must divide d_model = {d_model}")
    if not 0 <= arguments["dropout"] < 1:
        found.append(f"dropout = {arguments['dropout']}: must lie in [0, 1)")
    if arguments["warmup_steps"] < 0:
        found.append(f"warmup_steps = {arguments['warmup_steps']}: must be at least 0")
    ratio = arguments["total_budget_ratio"]
    if not 0 < ratio < math.inf:
        found.append(f"total_budget_ratio = {ratio}: must be positive and finite")
    elif arguments["enforce_budget"] and ratio < 1:
        found.append(
            f"total_budget_ratio = {ratio}: must be at least 1 with enforce_budget, as every token costs one unit"
        )
    factor = arguments["capacity_factor"]
    if factor is not None and not 0 < factor < math.inf:
        found.append(f"capacity_factor = {factor}: must be positive and finite, or None")
    for name, kind in CHOICES.items():
        if arguments[name] not in get_args(kind):
            found.append(f"{name} = {arguments[name]!r}: must be one of {', '.join(get_args(kind))}")
    return found
