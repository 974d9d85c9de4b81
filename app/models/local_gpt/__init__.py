"""A GPT whose layers can learn by local rules, and the parts that its backward passes are made of."""

from app.models.local_gpt.config import LocalGPTConfig
from app.models.local_gpt.network import LocalGPT
from app.models.local_gpt.sparsity import FrozenSubspace, VQResidualDirection, hard_top_k
from app.models.local_gpt.surrogates import (
    LayerNormSTE,
    LayerNormSurrogate,
    gelu_ste,
    sigmoid_ste,
    softmax_value_mix,
)
from app.models.local_linear import LocalLinear

__all__ = [
    "FrozenSubspace",
    "LayerNormSTE",
    "LayerNormSurrogate",
    "LocalGPT",
    "LocalGPTConfig",
    "LocalLinear",
    "VQResidualDirection",
    "gelu_ste",
    "hard_top_k",
    "sigmoid_ste",
    "softmax_value_mix",
]
