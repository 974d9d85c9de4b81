"""The attention of models of transformers, exchanged through the library's table of attention functions.

Nothing here imports transformers before a model of it is at hand.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

#: the name that our function is registered under
NAME = "archlab_crystal"
#: the class of the attention layers of each family that can be exchanged
FAMILIES = {
    "gpt2": "GPT2Attention",
    "llama": "LlamaAttention",
    "mistral": "MistralAttention",
    "qwen2": "Qwen2Attention",
    "qwen3": "Qwen3Attention",
}

#: what stands in for the attention of a layer, the newest last; a layer that is not in here computes its own
_CORES: WeakKeyDictionary[nn.Module, list[nn.Module]] = WeakKeyDictionary()
#: by first layer of a model, the attention it was configured with and how many exchanges last
_CONFIGURED: WeakKeyDictionary[nn.Module, tuple[str, int]] = WeakKeyDictionary()


def attention_layers(model: nn.Module) -> list[nn.Module]:
    """The self-attention layers of the model of transformers that ``model`` is or contains; empty without one.

    Raises:
        ValueError: it is of another family than :data:`FAMILIES`.
    """
    if "transformers" not in sys.modules:
        return []
    from transformers import PreTrainedModel

    inner = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if inner is None:
        return []
    if inner.config.model_type not in FAMILIES:
        raise ValueError(
            f"model = {type(inner).__name__}: is of the family {inner.config.model_type!r}; of transformers, only "
            f"{', '.join(FAMILIES)} can be crystallised"
        )
    name = FAMILIES[inner.config.model_type]
    return [
        module
        for module in inner.modules()
        if type(module).__name__ == name and not getattr(module, "is_cross_attention", False)
    ]


@contextmanager
def exchanged(layers: Sequence[nn.Module], cores: Mapping[nn.Module, nn.Module]) -> Iterator[None]:
    """For the time of a ``with`` block, some layers compute with ``cores``, the others by the library's SDPA.

    Blocks may overlap and end in any order.

    Args:
        layers: all attention layers of one model, which share a configuration.
        cores: the layers to exchange, each with what stands in for its attention.
    """
    _register()
    first: Any = layers[0]
    with ExitStack() as stack:
        for layer, core in cores.items():
            _CORES.setdefault(layer, []).append(core)
            stack.callback(_take_back, layer, core)
        own, n_exchanges = _CONFIGURED.get(first, (first.config._attn_implementation, 0))
        _CONFIGURED[first] = own, n_exchanges + 1
        stack.callback(_configure_back, first)
        first.config._attn_implementation = NAME
        yield


def _take_back(layer: nn.Module, core: nn.Module) -> None:
    _CORES[layer].remove(core)  # modules equal themselves alone
    if not _CORES[layer]:
        del _CORES[layer]


def _configure_back(first: Any) -> None:
    own, n_exchanges = _CONFIGURED.pop(first)
    if n_exchanges > 1:
        _CONFIGURED[first] = own, n_exchanges - 1
    else:
        first.config._attn_implementation = own


def _register() -> None:
    """Adds our function, and the masks that it reads, to the library's tables."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)  # bool, True is in sight; None for causality alone


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The library's form of an attention function: ``(B, H, T, d)`` in, ``(B, T, H, d)`` and no weights out.

    Keys and values may be of fewer heads, each of them for several queries' in a row.
    """
    from transformers import AttentionInterface

    cores = _CORES.get(module)
    if cores is None:
        sdpa = AttentionInterface()["sdpa"]
        mixed: tuple[Tensor, None] = sdpa(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return mixed
    if (
        n_groups := query.shape[1] // key.shape[1]
    ) > 1:  # several query heads share a head of keys and values
        key, value = (x.repeat_interleave(n_groups, dim=1) for x in (key, value))
    return cores[-1](query, key, value, dropout, mask=attention_mask, scale=scaling).transpose(1, 2), None
