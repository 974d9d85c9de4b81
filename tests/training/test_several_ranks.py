"""Two ranks in one run: gradients reduced by the framework, by us between two graphs, and in shards."""

import os
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from app.training import (
    EquilibriumModule,
    GPTModule,
    LocalGPTModule,
    SupervisedDDPStrategy,
    SupervisedFSDPStrategy,
    TilelliModule,
)
from app.training.local_store import local_meeting
from tests.support.in_process import fit
from tests.support.two_ranks import two_ranks
from tests.training.test_step_graph import Graphs

STEPS = 8
SMALL: dict[str, Any] = {"d_model": 8, "n_layers": 2, "warmup_steps": 2}
MODULES: dict[str, Any] = {
    "gpt": lambda **sizes: GPTModule(n_heads=2, **SMALL, **sizes),
    "tilelli": lambda **sizes: TilelliModule(
        n_banks=2, d_head=4, balance="bias", quantize=False, **SMALL, **sizes
    ),
    "equilibrium": lambda **sizes: EquilibriumModule(
        n_heads=2, statistics="lagged", quantile="histogram", **SMALL, **sizes
    ),
    "dfa": lambda **sizes: LocalGPTModule(n_heads=2, method="dfa", **SMALL, **sizes),
}


def _rank(name: str, how: str, rank: int, store: str, results: Connection) -> None:
    """A run of this rank: sends what it ends with, and how many of its micro-batches were replayed."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    folder = Path(store).parent / str(rank)
    folder.mkdir()
    graphs = Graphs()
    strategy = SupervisedFSDPStrategy() if how == "shards" else SupervisedDDPStrategy()
    module = fit(
        folder,
        MODULES[name],
        steps=STEPS,
        callbacks=[graphs] if how == "graphs" else [],
        strategy=strategy,
        devices=2,
        accumulate_grad_batches=2 if name == "gpt" else 1,
    )
    optimizer = strategy.optimizer_state(module.trainer.optimizers[0]).get("state", {})
    state = strategy.lightning_module_state_dict()
    state |= {f"{i}.{key}": value for i, each in optimizer.items() for key, value in each.items()}
    n_replays = graphs.graphs.n_replays if how == "graphs" else 0
    results.send(({key: value.clone().numpy() for key, value in state.items()}, n_replays))
    dist.barrier()
    os._exit(0)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Of each rank what each run ended with, by network and how it was trained."""
    both: list[Any] = [{}, {}]
    for name in MODULES:
        for how in ("framework", "graphs", "shards"):
            with local_meeting(2):
                ends = two_ranks(partial(_rank, name, how), tmp_path_factory.mktemp("ranks") / "store", 60)
            for of_rank, end in zip(both, ends, strict=True):
                of_rank.setdefault(name, {})[how] = end
    return both


@pytest.mark.parametrize("name", MODULES)
def test_a_reduction_between_graphs_has_the_bits_of_the_framework(found: list[Any], name: str) -> None:
    (framework, _), (graphs, n_replays) = found[0][name]["framework"], found[0][name]["graphs"]
    assert n_replays > 0
    assert framework.keys() == graphs.keys()
    assert [key for key in framework if framework[key].tobytes() != graphs[key].tobytes()] == []


@pytest.mark.parametrize("name", MODULES)
def test_both_ranks_end_alike(found: list[Any], name: str) -> None:
    for how in ("framework", "graphs"):
        ours, theirs = found[0][name][how][0], found[1][name][how][0]
        differing = [key for key in ours if ours[key].tobytes() != theirs[key].tobytes()]
        assert differing == [], how


@pytest.mark.parametrize("name", MODULES)
def test_shards_make_the_steps_of_whole_weights(found: list[Any], name: str) -> None:
    whole, shards = found[0][name]["framework"][0], found[0][name]["shards"][0]
    assert found[1][name]["shards"][0] == {}  # rank zero alone keeps what a file holds
    assert whole.keys() == shards.keys()
    for key in whole:
        ours, theirs = torch.tensor(shards[key]), torch.tensor(whole[key])
        torch.testing.assert_close(
            ours, theirs, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
        )
