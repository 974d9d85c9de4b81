"""Which operators a network's code calls, and the forms that a run keeps of them."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from app.models import LanguageModel, operators
from app.models.crystal import CrystalGPT
from app.models.equilibrium import EquilibriumLM
from app.models.gpt import GPT
from app.models.local_gpt import LocalGPT
from app.models.tilelli import TilelliLM
from app.ops import choice, use_form

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {"vocab_size": 11, "d_model": 16, "n_layers": 2}
NETWORKS: dict[str, LanguageModel] = {
    "gpt": GPT(n_heads=2, block_size=8, **SIZES),
    "tilelli": TilelliLM(n_banks=2, hadamard=True, lsq=True, **SIZES),
    "equilibrium": EquilibriumLM(n_heads=2, block_size=8, quantile="histogram", **SIZES),
    "local": LocalGPT(n_heads=2, block_size=8, method="fa", **SIZES),
    "crystal": CrystalGPT(n_heads=2, block_size=8, **SIZES),
}


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    yield
    operators.keep({})


@pytest.mark.parametrize("name", NETWORKS)
def test_all_that_a_step_calls_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called, preferred = set(), choice.preferred

    def noting(*args: Any) -> Any:
        called.add(args[3])
        return preferred(*args)

    monkeypatch.setattr(choice, "preferred", noting)
    network, idx = NETWORKS[name].train(), torch.arange(24).reshape(3, 8) % 11
    output = network(idx, idx)
    (output.loss + output.aux_loss).backward()
    network.after_optimizer_step(1)
    assert called
    assert called <= operators.called_by(network)


def test_a_network_is_told_what_it_does_not_call() -> None:
    assert set(operators.taken(NETWORKS["gpt"], CPU)) == {"embedding", "layer_norm"}
    assert "banked_ffn" in operators.taken(NETWORKS["tilelli"], CPU)


def test_a_kept_form_computes_until_another_is_forced() -> None:
    network = NETWORKS["tilelli"]
    assert operators.taken(network, CPU)["banked_ffn"] == "vectorized"
    operators.keep({"banked_ffn": "naive"})
    forms = operators.taken(network, CPU)
    assert (forms["banked_ffn"], forms["layer_norm"]) == ("naive", "vectorized")
    assert operators.taken(network, CPU, is_kept=False)["banked_ffn"] == "vectorized"
    order = choice.preferred(CPU, torch.float32, torch.Size((1,)), "app.ops.banked_ffn")
    assert order[0] == "naive"
    with use_form("vectorized"):
        assert operators.taken(network, CPU)["banked_ffn"] == "vectorized"
    operators.keep({})
    assert operators.taken(network, CPU)["banked_ffn"] == "vectorized"
    with pytest.raises(ValueError, match="layer_norm = 'fast': must be one of"):
        operators.keep({"banked_ffn": "naive", "layer_norm": "fast"})
    assert operators.taken(network, CPU)["banked_ffn"] == "vectorized"


def test_a_kept_kernel_computes_where_it_has_not_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(choice, "has_passed", lambda form, package, device: False)
    monkeypatch.setattr(operators.importlib.util, "find_spec", lambda name: object())  # type: ignore[attr-defined]
    assert operators.taken(NETWORKS["tilelli"], cuda)["banked_ffn"] == "vectorized"
    operators.keep({"banked_ffn": "triton"})
    assert operators.taken(NETWORKS["tilelli"], cuda)["banked_ffn"] == "triton"
    # Of what torch.compile sees it makes kernels of its own.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert operators.taken(NETWORKS["tilelli"], cuda)["banked_ffn"] == "vectorized"
    monkeypatch.undo()
    # Nor is it asked on a processor.
    monkeypatch.setattr(choice, "_is_interpreted", lambda: False)
    assert operators.taken(NETWORKS["tilelli"], CPU)["banked_ffn"] == "vectorized"
