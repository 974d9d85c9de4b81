"""The optimizers by name, over a network's parameter groups."""

from typing import Any, Literal

import torch

from app.models import LanguageModel
from app.training.muon import Muon

OptimizerName = Literal["adamw", "sgd", "muon"]


def optimizer_groups(
    network: LanguageModel, name: OptimizerName, weight_decay: float
) -> list[dict[str, Any]]:
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
    name: OptimizerName,
    groups: list[dict[str, Any]],
    learning_rate: float,
    betas: tuple[float, float],
    muon_momentum: float,
) -> torch.optim.Optimizer:
    """An optimizer that changes neither weights nor state while its ``found_inf`` is 1.

    Args:
        name: of the optimizer.
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
