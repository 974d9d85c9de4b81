"""What watchers write of two processes is what they write of one."""

import re
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest

from tests import tolerances
from tests.support import runs, tiny, watched
from tests.support.application import Application
from tests.support.side_by_side import selected

pytestmark = pytest.mark.process

#: numbers of tokens, rows, banks, modes and layers, and what is divided by them
COUNTS = re.compile(
    r"step|tokens_seen|health/open|crystal/residual_r90.*|balance/(bank_load|dead_banks.*|max_over_mean_load.*)"
    r"|budget/(tokens_at|rows|overflow).*|routes/route_share.*|.*/worst_layer"
)
Entries = dict[tuple[Any, ...], Any]


#: an architecture and what else there is to it
EACH: dict[str, tuple[str, dict[str, Any]]] = {
    # The auxiliary loss of these two is one of micro-batches, of which two processes make others than one.
    "tilelli": ("tilelli", {}),
    "equilibrium": ("equilibrium", {}),
    "local_gpt": ("local_gpt", {"trainer__accumulate_grad_batches": 2}),
    "crystal": ("crystal", {"trainer__accumulate_grad_batches": 2}),
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "tilelli, three pathways, Switch": ("tilelli", {"pathways": 3, "balance": "switch", "n_banks": 4}),
    "tilelli, bias": ("tilelli", {"balance": "bias", "pathway_balance": 0.1, "bank_gate": "bank"}),
    "equilibrium, original": (
        "equilibrium",
        {
            "statistics": "current", "standardize": False, "soft": "centres", "shared_router": True, "quantile": "sort",
            "reprocess_context": False, "enforce_budget": False, "capacity_factor": None,
        },
    ),
    "equilibrium, causal budget": ("equilibrium", {"budget_order": "causal", "shared_router": True}),
    "local_gpt, whole batches": ("local_gpt", {}),
    "local_gpt, dfa": ("local_gpt", {"method": "dfa", "attn_mode": "softmax", "fa_grape": False}),
    "local_gpt, gates and sparsity": ("local_gpt", {"gated_blocks": True, "mlp_topk": 32, "ln_mode": "ste"}),
    "crystal, whole batches": ("crystal", {}),
    "crystal, top 2": ("crystal", {"mode": "topk", "top_k": 2}),
    "crystal, learnt basis": ("crystal", {"learn_basis": True}),
    "gpt": ("gpt", {}),
    "gpt, Muon": ("gpt", {"optimizer": "muon"}),
}  # fmt: skip
OTHERS = {
    name: (architecture, {f"model__init_args__{key}": value for key, value in arguments.items()})
    for name, (architecture, arguments) in OTHERS.items()
}


@pytest.fixture(scope="module")
def made(
    application: Application, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[str, Future[tuple[Entries, Entries]]]:
    """Everything that was written by one process and by two, for every selected test."""
    folder = tmp_path_factory.mktemp("ranks")
    text = tiny.write_text(folder / "text.txt", n_words=1500)

    def fit(name: str) -> tuple[Entries, Entries]:
        architecture, changes = (EACH | OTHERS)[name]
        lengths = {
            "trainer__max_steps": 6,
            "trainer__val_check_interval": 6,
            "trainer__limit_val_batches": 1.0,  # a number of batches would be other windows on two ranks
        }
        config = tiny.write(
            folder / f"{name}.yaml", watched.configuration(architecture, text, **lengths | changes)
        )
        one = application.fit(config, folder / name)
        two = application.fit(config, folder / f"{name}, two", "--trainer.devices", 2, warm_rank=True)
        assert [runs.launches(run)[0]["world_size"] for run in (one, two)] == [1, 2]
        return runs.entries(one), runs.entries(two)

    return application.begin({name: partial(fit, name) for name in selected(request, "name")})


@pytest.mark.parametrize("name", [*EACH, *(pytest.param(name, marks=pytest.mark.stress) for name in OTHERS)])
def test_two_processes_write_what_one_does(
    made: dict[str, Future[tuple[Entries, Entries]]], name: str
) -> None:
    one, two = made[name].result()
    files = {"metrics", "details", "samples"} | ({"health"} if name == "tilelli" else set())
    assert {place[0] for place in one} >= files
    assert one.keys() == two.keys()
    worst: dict[str, float] = {}
    for place, expected in one.items():
        file, found = place[0], two[place]
        key = str(place[3] if file == "metrics" else place[2])
        if place[-1] == "what":  # a sentence around the number under `value`
            continue
        if not isinstance(expected, float) or COUNTS.fullmatch(key):
            assert found == expected, place
        else:
            error = abs(found - expected) / max(abs(expected), 1e-30)
            assert error <= tolerances.OUTPUT, (place, found, expected)
            worst[file] = max(worst.get(file, 0.0), error)
    print(f"{name}: {len(one)} entries,", ", ".join(f"{file} {error:.1e}" for file, error in worst.items()))
