"""What a network says that it keeps of a text is what lies in its cache."""

from typing import Any

import pytest
import torch

from app.models import LanguageModel
from app.models.crystal import CrystalGPT
from app.models.equilibrium import EquilibriumLM
from app.models.gpt import GPT
from app.models.local_gpt import LocalGPT
from app.models.tilelli import TilelliLM

SIZES = dict(block_size=16, n_layers=3, n_heads=2, d_model=8)


def n_bytes(*tensors: torch.Tensor) -> int:
    return sum(x[:1].numel() * x.element_size() for x in tensors)


def of_keys_and_values(caches: Any) -> int:
    return sum(n_bytes(c._keys[:, :, : c.length], c._values[:, :, : c.length]) for c in caches)


@pytest.mark.parametrize(
    "network",
    [GPT(7, **SIZES), CrystalGPT(7, **SIZES), LocalGPT(vocab_size=7, **SIZES)],
    ids=["gpt", "crystal", "local_gpt"],
)
def test_keys_and_values(network: LanguageModel) -> None:
    for n_tokens in (1, 5, 16):
        _, cache = network.eval().prefill(torch.zeros(2, n_tokens, dtype=torch.int64))
        assert network.state_size(n_tokens) == of_keys_and_values(cache)
    assert network.state_size(100) == network.state_size(16) == 3 * 16 * 2 * 8 * 4


@pytest.mark.parametrize("pathways", [3, 5])
@pytest.mark.parametrize("n_banks", [1, 3])
def test_of_tilelli_the_sparse_pathway_alone_grows(pathways: int, n_banks: int) -> None:
    network = TilelliLM(7, 8, 2, pathways=pathways, n_banks=n_banks, d_head=4).eval()  # type: ignore[arg-type]
    for n_tokens in (1, 9):
        _, cache = network.prefill(torch.zeros(2, n_tokens, dtype=torch.int64))
        kept = 0
        for state in (s for block in cache.blocks for s in block.pathways):
            if hasattr(state, "window_BKD"):
                kept += n_bytes(state.window_BKD)
            elif hasattr(state, "state_BND"):
                kept += n_bytes(state.state_BND)
            elif hasattr(state, "length"):
                keys_BNSd = state._keys_NBSd[:, :, : state.length].transpose(0, 1)
                kept += n_bytes(keys_BNSd, state._rows_BSD[:, : state.length])
        assert network.state_size(n_tokens) == kept
    assert network.state_size(10) - network.state_size(9) == 2 * (8 + n_banks * 4) * 4


def test_the_format_counts() -> None:
    network = GPT(7, **SIZES)
    assert 2 * network.to(torch.bfloat16).state_size(9) == GPT(7, **SIZES).state_size(9)


def test_a_network_that_does_not_step() -> None:
    assert EquilibriumLM(7, d_ff=8, **SIZES).state_size(9) == 3 * 9 * 2 * 8 * 4

    class Plain(LanguageModel):
        pass

    assert Plain().state_size(9) == 72
