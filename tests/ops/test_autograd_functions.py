"""No function of ours with a backward of its own returns a tensor that it has written to.

``torch.compile`` (torch 2.11, every back end) computes the right loss with such a function and a gradient of zeros for
whatever went into it.
"""

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import app.models
import app.ops
from app.models.crystal import CrystalGPT
from app.models.gpt import GPT
from app.models.local_gpt import LocalGPT
from app.models.local_gpt.surrogates import softmax_value_mix
from app.models.tilelli import TilelliLM
from app.ops.embedding.vectorized import Embedding

SIZES: dict[str, Any] = {"vocab_size": 20, "d_model": 16, "n_layers": 2}
HEADS = SIZES | {"block_size": 16, "n_heads": 2}
TILELLI = SIZES | {"d_head": 4, "top_k": 2, "n_banks": 2}


def functions() -> Iterator[type[torch.autograd.Function]]:
    """All of ours, wherever they are."""
    for package in (app.ops, app.models):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith(".triton"):
                importlib.import_module(module.name)
    waiting = [torch.autograd.Function]
    while waiting:
        found = waiting.pop().__subclasses__()
        waiting += found
        ours = (each for each in found if each.__module__.startswith(("app.ops.", "app.models.")))
        yield from (each for each in ours if not each.__module__.endswith(".triton"))


def train(network: Any, **watched: Any) -> None:
    idx = torch.randint(0, 20, (2, 16))
    output = network(idx, idx, **watched)
    (output.loss + output.aux_loss).backward()


def test_what_a_function_returns_is_what_an_operation_made(monkeypatch: pytest.MonkeyPatch) -> None:
    versions: dict[str, set[int]] = {}
    for function in functions():
        versions[function.__name__] = set()

        def watched(*args: Any, forward: Any = function.forward, name: str = function.__name__) -> Any:
            returned = forward(*args)
            every = returned if isinstance(returned, tuple) else (returned,)
            versions[name].update(x._version for x in every if isinstance(x, Tensor))
            return returned

        monkeypatch.setattr(function, "forward", staticmethod(watched))
    train(GPT(**HEADS))
    train(GPT(**HEADS), capture=["blocks.0.attn.weights"])
    train(TilelliLM(**TILELLI))
    train(TilelliLM(**TILELLI, lsq=True, hadamard=True))
    train(CrystalGPT(**HEADS, rank=4))
    for options in (
        {"method": "fa"},
        {"method": "dfa"},
        {"ln_mode": "ste", "ste_sigmoid": True, "ste_gelu": True},
        {"ln_mode": "center_scale", "vq_codes": 4},
    ):
        train(LocalGPT(**HEADS, **options))
    Embedding.apply(torch.arange(3), torch.randn(4, 2, requires_grad=True)).sum().backward()
    softmax_value_mix(torch.randn(4, 4, requires_grad=True), torch.randn(4, 2)).sum().backward()
    assert {name: {0} for name in versions} == versions
