"""Tilelli as the command line sees it: arguments, mistakes, and settings without an effect."""

import inspect
from typing import Any

import pytest

from app import options
from app.models.tilelli import TilelliBlock, TilelliLM
from app.training import TilelliModule
from app.training.options.network_size import size_problem
from tests.support.names import name_of


def without_effect(**changes: Any) -> dict[str, str]:
    return options.unused(TilelliModule, {"vocab_size": 7} | changes)


def test_module_network_and_block_take_the_same_options() -> None:
    block, network, module = (
        inspect.signature(c).parameters for c in (TilelliBlock, TilelliLM, TilelliModule)
    )
    assert block.keys() <= network.keys() <= module.keys()
    for name, parameter in block.items():
        assert network[name].default == parameter.default, name
    for name, parameter in network.items():
        assert module[name].default == parameter.default, name


def test_block_size_reaches_the_network_with_learned_positions_only() -> None:
    small = {"vocab_size": 5, "d_model": 8, "n_layers": 1, "block_size": 6}
    assert TilelliModule(**small).network.max_context is None
    described = TilelliModule(**small).network.description()["init_args"]
    assert (
        TilelliLM.with_defaults(described)["block_size"] is None
    )  # so that runs of two lengths are of one network
    assert TilelliModule(**small, position="learned").network.max_context == 6


def test_mistakes_are_gathered() -> None:
    wrong = {"lsq": True, "quantize": False, "skip_threshold": 2.0, "beta1": 2.0}
    found = options.problems(TilelliModule, {"vocab_size": 7} | wrong)
    assert [problem.name for problem in found] == ["skip_threshold", "beta1", "lsq"]


@pytest.mark.parametrize("d_model", [10**11, 10**30])
def test_a_width_beyond_any_memory_is_a_problem_like_others(d_model: int) -> None:
    found = size_problem(lambda: TilelliLM(7, d_model, n_layers=1))
    assert found is not None
    assert found[0] == "d_model"
    assert found[1].startswith("the network cannot be laid out")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"pathways": 3}, {"wide_kernel_size", "dense_expand"}),
        ({"n_banks": 1}, {"bank_choice", "bank_gate", "balance", "aux_weight"}),
        ({"quantize": False}, {"per_row", "hadamard", "fp_attention"}),
        ({"n_banks": 2, "top_k_routing": 10}, {"top_k_routing"}),
        ({"n_banks": 2, "top_k_routing": 9}, set()),
        ({"position": "none"}, {"block_size"}),
        ({"position": "learned"}, set()),
        ({"n_banks": 4, "balance": "bias"}, {"aux_weight"}),
        ({"n_banks": 4, "balance": "switch"}, set()),
        ({"n_banks": 1, "router_z_loss": 0.1}, {"bank_choice", "bank_gate", "balance"}),
        ({"aux_weight": 0.0}, {"router_z_loss", "pathway_balance"}),
        ({"aux_weight": 0.0, "balance": "switch"}, {"router_z_loss", "pathway_balance", "balance"}),
        ({"top_k_routing": 1}, {"bank_gate", "balance", "pathway_balance"}),
        ({"hadamard": True, "d_model": 63}, set()),  # the hidden layer is even
        ({"hadamard": True, "d_model": 63, "dense_expand": 3}, {"hadamard"}),
        ({"hadamard": True, "d_model": 64, "dense_expand": 3}, set()),
    ],
    ids=name_of,
)
def test_settings_without_effect(changes: dict[str, Any], named: set[str]) -> None:
    several = {"n_banks": 2, "position": "learned"}
    assert without_effect(**several | changes).keys() - without_effect(**several).keys() == named


def test_skipping_is_for_inference() -> None:
    assert {"skip_threshold", "skip_mode"} <= without_effect().keys()
