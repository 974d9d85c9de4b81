"""The optimizers by name, or of a user's own class, over a network's parameter groups."""

import types
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch

from app.models import LanguageModel
from app.training.optim.muon import Muon

OptimizerName = Literal["adamw", "sgd", "muon"]
OPTIMIZERS: tuple[str, ...] = get_args(OptimizerName)
#: makes an optimizer over parameter groups; in a configuration ``{class_path: mylab.Lion, init_args: …}``
OwnOptimizer = Callable[[Iterable], torch.optim.Optimizer]


def optimizer_groups(network: LanguageModel, name: str, weight_decay: float) -> list[dict[str, Any]]:
    """The network's groups as an optimizer takes them; for Muon its hidden matrices are groups of their own.

    Args:
        network: says which parameters decay, at which rate, and which are hidden matrices.
        name: of the optimizer.
        weight_decay: of the groups that decay.
    """
    names = {parameter: own_name for own_name, parameter in network.named_parameters()}
    groups: list[dict[str, Any]] = []
    for described in network.parameter_groups():
        parts: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
        for parameter in described["params"]:
            is_hidden = name == "muon" and network.is_hidden_matrix(names[parameter], parameter)
            parts[is_hidden].append(parameter)
        for is_hidden, parameters in parts.items():
            if parameters:
                group = {
                    "params": parameters,
                    "weight_decay": weight_decay if described["decay"] else 0.0,
                    "rate": described.get("rate", 1.0),
                }
                groups.append(group | ({"muon": is_hidden} if name == "muon" else {}))
    return groups


def build_optimizer(
    name: str,
    groups: list[dict[str, Any]],
    learning_rate: float,
    betas: tuple[float, float],
    muon_momentum: float,
) -> torch.optim.Optimizer:
    """An optimizer that changes neither weights nor state while its ``found_inf`` is 1.

    Args:
        name: an :data:`OptimizerName`.
        groups: of :func:`optimizer_groups`.
        learning_rate: to begin with.
        betas: of AdamW; the first one is the momentum of SGD.
        muon_momentum: of Muon's matrices.
    """
    if name == "muon":
        return Muon(groups, lr=learning_rate, momentum=muon_momentum, betas=betas)
    if name == "sgd":
        sgd = torch.optim.SGD(groups, lr=learning_rate, momentum=betas[0], fused=True)
        for parameter in (p for group in sgd.param_groups for p in group["params"]):
            # The fused step leaves a buffer that it creates itself unset when the gate is shut.
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def class_made_by(make: OwnOptimizer) -> str:
    """Import path of the class whose optimizers this makes, found by making one."""
    kind = type(make([torch.nn.Parameter(torch.zeros(1))]))
    return f"{kind.__module__}.{kind.__qualname__}"


def own_optimizer(
    make: OwnOptimizer, groups: list[dict[str, Any]], learning_rate: float
) -> torch.optim.Optimizer:
    """An optimizer of a user's own class that makes no step while its ``found_inf`` is 1.

    No such class knows of that flag, so that it is read on the host before every step, which waits for the device.

    Args:
        make: makes it.
        groups: of :func:`optimizer_groups`; a weight decay per group is for classes that have one.
        learning_rate: to begin with.
    """
    optimizer = make([group | {"lr": learning_rate * group["rate"]} for group in groups])
    unguarded = optimizer.step

    def step(self: torch.optim.Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        loss = closure() if closure is not None else None
        # Taken away: several of PyTorch's own refuse to step while it is there.
        found = vars(self).pop("found_inf", None)
        if found is None or not found.item():
            unguarded()
        return loss

    # A method, because schedulers wrap it as one.
    optimizer.step = types.MethodType(step, optimizer)  # type: ignore[method-assign]
    return optimizer
