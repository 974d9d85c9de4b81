"""Two ranks route as one process does on the same global batch."""

import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from app.models.equilibrium import EquilibriumLM, PlasticAdapter
from app.training.rank_reduction import sum_over_ranks
from tests.support.two_ranks import two_ranks

V, T = 7, 12
LAGGED: dict[str, Any] = dict(
    statistics="lagged", standardize=True, shared_router=False, soft="ordinal", quantile="histogram"
)
CURRENT: dict[str, Any] = dict(standardize=True, shared_router=False)


def _rank(rank: int, store: str, results: Connection, work: Callable[[int], Any]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    results.send(work(rank))
    dist.barrier()
    os._exit(0)


def on_two_ranks(folder: Path, work: Callable[[int], Any]) -> list[Any]:
    """What a function of the rank returns on each of two; arrays, no tensors."""
    found = two_ranks(lambda rank, store, results: _rank(rank, store, results, work), folder / "store")
    assert all(result is not None for result in found)
    return found


def trained(options: dict[str, Any], rows: slice) -> dict[str, np.ndarray]:
    """Routes and running state after some steps on some rows of each batch, without an optimizer."""
    torch.manual_seed(3)
    network = EquilibriumLM(V, T, 8, 2, 3, 12, dropout=0.0, warmup_steps=2, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    routes = []
    for step in range(6):
        idx = torch.randint(0, V, (8, T), generator=torch.Generator().manual_seed(step))
        with torch.no_grad():
            output = network(idx[rows])
        sums = network.step_sums()
        if sums and dist.is_initialized():
            sum_over_ranks(sums)
        network.after_optimizer_step(step + 1)
        for total in sums:
            total.zero_()
        routes.append(torch.stack([record.route for record in output.routing], 1))  # (rows, layers, T)
    found = {f"state {i}": state.numpy() for i, state in enumerate(network.running_state())}
    return found | {"routes": torch.stack(routes, 1).numpy()}


@pytest.mark.parametrize(
    "options",
    [LAGGED, CURRENT, CURRENT | {"quantile": "histogram"}],
    ids=["lagged", "current", "current histogram"],
)
def test_statistics_thresholds_and_routes_are_those_of_one_process(
    options: dict[str, Any], tmp_path: Path
) -> None:
    halves = on_two_ranks(tmp_path, lambda rank: trained(options, slice(4 * rank, 4 * rank + 4)))
    whole = trained(options, slice(None))
    assert np.array_equal(np.concatenate([half.pop("routes") for half in halves]), whole["routes"])
    assert set(np.unique(whole["routes"])) == {0, 1, 2, 3}
    for name, ours in halves[0].items():
        assert np.array_equal(ours, halves[1][name]), name
        np.testing.assert_allclose(ours, whole[name], rtol=1e-5, atol=1e-6, err_msg=name)


def adapted(tokens: torch.Tensor, n_steps: int) -> list[np.ndarray]:
    torch.manual_seed(3)
    adapter = PlasticAdapter(4, hidden=3)
    for seed in range(n_steps):
        adapter.adapt(tokens, torch.Generator().manual_seed(seed))
        adapter.decay()
    return [p.detach().numpy() for p in adapter.parameters()]


@pytest.mark.parametrize("n_steps", [1, 3])
def test_adaptation_is_the_same_on_every_rank(n_steps: int, tmp_path: Path) -> None:
    # One rank has no plastic token at all.
    tokens = 50 * torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    ours, theirs = on_two_ranks(tmp_path, lambda rank: adapted(tokens[: 5 * rank], n_steps))
    start, alone = adapted(tokens, 0), adapted(tokens, n_steps)
    for a, b, before, single in zip(ours, theirs, start, alone, strict=True):
        assert np.array_equal(a, b)
        assert not np.array_equal(a, before)
        if n_steps == 1:  # half the gradient, since the other rank has none
            np.testing.assert_allclose(a - before, (single - before) / 2, rtol=1e-3, atol=1e-6)
