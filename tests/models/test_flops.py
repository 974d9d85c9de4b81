"""Stated FLOPs against counted ones."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from app.models.gpt import GPT
from app.models.tilelli import TilelliLM

V, T, D = 11, 12, 16


def counted(network: torch.nn.Module) -> float:
    """FLOPs per token of a forward, as the products that really run, every score of a square matrix included."""
    # The fused attention of the CPU is not counted; its plain form is.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, T, dtype=torch.int64))
    return counter.get_total_flops() / T


def test_gpt_states_three_times_its_forward() -> None:
    network = GPT(V, T, n_layers=2, n_heads=2, d_model=D)
    masked_half = (
        2 * 2 * 2 * D * (T - (T + 1) / 2)
    )  # layers, two products, two FLOPs: scores above the diagonal
    assert network.flops_per_token(T) == 3 * (counted(network) - masked_half)


def test_tilelli_pays_for_one_bank_and_all_keys() -> None:
    one, four = (TilelliLM(V, D, 2, n_banks=n, d_head=8, quantize=False) for n in (1, 4))
    extra_keys_and_router = 2 * (
        3 * 8 * D + 15 * D
    )  # layers: three more key products, 15 more router outputs
    assert four.flops_per_token(T) - one.flops_per_token(T) == 6 * extra_keys_and_router


def test_tilelli_matrices_match_the_products_that_run() -> None:
    network = TilelliLM(V, D, 1, n_banks=1, d_head=8, quantize=False)
    elementwise = 6 * ((5 + 21) * D + 3 * D + 8 * D)  # convolutions, state, gather: no products to count
    masked_half = 6 * 8 * (T - (T + 1) / 2)
    assert network.flops_per_token(T) - elementwise == 3 * counted(network) - masked_half
