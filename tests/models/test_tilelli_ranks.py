"""Tilelli on two ranks, one of which has a bank without a token, against one process on the same global batch."""

import os
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from app.models.tilelli import TilelliLM
from app.training.rank_reduction import mean_over_ranks, sum_over_ranks
from tests import tolerances
from tests.models.tilelli_cases import batch, small_network
from tests.parity import relative_error
from tests.support.two_ranks import two_ranks

CASES: list[dict[str, Any]] = [
    {"balance": "original"},
    {"balance": "switch", "router_z_loss": 0.01, "pathway_balance": 0.1, "bank_gate": "bank"},
    {"balance": "bias", "top_k_routing": 5, "lsq": True},
]
STEPS = 2


def global_batch() -> tuple[Tensor, Tensor]:
    """Four windows; the last two, those of rank 1, hold one symbol alone."""
    idx, targets = (tokens.clone() for tokens in batch(4))
    idx[2:] = 3
    return idx, targets


def step(network: TilelliLM, idx: Tensor, targets: Tensor, n_ranks: int) -> list[Tensor]:
    """One optimizer step as the module makes it; losses, gradients, biases, and the loads of the first block."""
    output = network(idx, targets)
    assert output.loss is not None
    means = network.auxiliary_means(output)
    aux_loss = output.aux_loss
    if means is not None and n_ranks > 1:
        aux_loss = network.auxiliary_losses(mean_over_ranks(means))
    (output.loss + 10 * aux_loss).backward()
    parameters = list(network.parameters())
    gradients = [p.grad for p in parameters if p.grad is not None]
    assert len(gradients) == len(parameters)
    loss, load = output.loss.detach(), network.measures(output)["bank_load"].values[0]
    if n_ranks > 1:
        # What data parallelism does with every parameter's gradient.
        for x in (*gradients, loss):
            dist.all_reduce(x)
            x /= n_ranks
        if network.step_sums():
            sum_over_ranks(network.step_sums())
    with torch.no_grad():
        for p, gradient in zip(parameters, gradients, strict=True):
            p -= 0.1 * gradient
        network.after_optimizer_step(1)
        for total in network.step_sums():
            total.zero_()
    network.zero_grad(set_to_none=True)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    biases = torch.cat([bias.flatten() for bias in network.running_state()] or [torch.zeros(1)])
    return [loss, aux_loss.detach(), flat, biases.clone(), load]


def run(rank: int | None) -> list[list[Tensor]]:
    idx, targets = global_batch()
    if rank is not None:
        idx, targets = idx[2 * rank : 2 * rank + 2], targets[2 * rank : 2 * rank + 2]
    found = []
    for options in CASES:
        network = small_network(n_banks=3, **options)
        found += [step(network, idx, targets, 1 if rank is None else 2) for _ in range(STEPS)]
    return found


def _rank(rank: int, store: str, results: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    results.send([[x.numpy() for x in found] for found in run(rank)])
    dist.barrier()
    os._exit(0)


def test_two_ranks_train_like_one_though_banks_starve_on_one_of_them(tmp_path: Path) -> None:
    ranks = two_ranks(_rank, tmp_path / "store")
    expected = run(None)
    starved = torch.tensor(ranks[1][0][4])
    assert (starved == 0).any()
    assert (torch.tensor(ranks[0][0][4])[starved == 0] > 0).any()
    for found in ranks:
        for actual, wanted in zip(found, expected, strict=True):
            loss, aux_loss, gradient, biases, _ = (torch.tensor(x) for x in actual)
            assert relative_error(loss, wanted[0]) <= tolerances.OUTPUT
            assert relative_error(aux_loss, wanted[1]) <= tolerances.OUTPUT
            assert relative_error(gradient, wanted[2]) <= tolerances.GRADIENT
            assert torch.equal(biases, wanted[3])
