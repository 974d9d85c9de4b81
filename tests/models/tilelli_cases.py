"""Small Tilelli networks and text for the tests beside this file."""

from typing import Any

import torch
from torch import Tensor

from app.models.tilelli import TilelliLM

VOCABULARY, WIDTH = 17, 12

# Every option of a block beside its default, alone and where two meet.
OPTIONS: list[dict[str, Any]] = [
    {"per_row": True},
    {"hadamard": True},
    {"hadamard": True, "per_row": True},
    {"lsq": True},
    {"lsq": True, "hadamard": True},
    {"fp_attention": True},
    {"top_k_routing": 4},
    {"top_k_routing": 1},
    {"bank_gate": "bank"},
    {"bank_gate": "bank", "top_k_routing": 4, "balance": "bias"},
    {"balance": "switch"},
    {"balance": "switch", "top_k_routing": 4},
    {"balance": "bias"},
    {"balance": "none"},
    {"state_init": "unit"},
    {"router_z_loss": 0.1},
    {"pathway_balance": 0.3, "router_z_loss": 0.1, "balance": "switch"},
    {"path_norm": True},
    {"position": "learned", "block_size": 40},
]


def small_network(**options: Any) -> TilelliLM:
    torch.manual_seed(3)
    arguments = {"n_layers": 2, "d_head": 4, "wide_kernel_size": 7, "top_k": 3} | options
    return TilelliLM(VOCABULARY, WIDTH, **arguments)


def batch(n_windows: int = 3, n_tokens: int = 37) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, VOCABULARY, (n_windows, n_tokens + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def losses_and_gradients(network: TilelliLM) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, auxiliary loss and the gradient of both (the second a hundredfold) by all parameters."""
    output = network(*batch())
    assert output.loss is not None
    gradients = torch.autograd.grad(output.loss + 100 * output.aux_loss, list(network.parameters()))
    return output.loss, output.aux_loss, torch.cat([gradient.flatten() for gradient in gradients])
