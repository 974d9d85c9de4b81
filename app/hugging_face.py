"""Our networks as models of transformers: importing this file makes ``AutoModelForCausalLM`` know their exports.

Needs the extra ``hf``. A model of it computes what the network computes, without a cache: each new token reads the
context again, of a network with a limit its last tokens.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from app.loading import build
from app.models.language_model import IGNORED_TARGET


class ArchlabConfig(PreTrainedConfig):
    """What ``config.json`` of an export says.

    Args:
        network: ``class_path`` and ``init_args``; only classes of ``app.models`` are built.
        block_size: the longest context that the network was trained with.
        tied: names of weights that are another one, to that one's.
        kwargs: of the base class, and whatever else the file holds.
    """

    model_type = "archlab"

    def __init__(
        self,
        network: dict[str, Any] | None = None,
        block_size: int = 1,
        tied: dict[str, str] | None = None,
        **kwargs: Any,
    ):
        self.network = network or {}
        self.block_size = block_size
        self.tied = tied or {}
        kwargs.pop("weights_sha256", None)  # of the export; a model may be trained on and saved again
        kwargs["tie_word_embeddings"] = bool(self.tied)
        super().__init__(**kwargs)


class ArchlabForCausalLM(PreTrainedModel, GenerationMixin):
    """A network of ours behind the interface of transformers.

    Args:
        config: of an export.
    """

    config_class = ArchlabConfig
    base_model_prefix = "network"
    main_input_name = "input_ids"

    def __init__(self, config: ArchlabConfig):
        super().__init__(config)
        # The library builds without memory and fills in what a file holds; what our constructors compute is in none,
        # and has to be put back.
        with torch.device("cpu"):
            self.network = build(config.network)
        self._computed = {
            module: {
                name: buffer.clone()
                for name, buffer in module.named_buffers(recurse=False)
                if name in module._non_persistent_buffers_set
            }
            for module in self.network.modules()
        }
        self._tied_weights_keys = {
            f"network.{name}": f"network.{source}" for name, source in config.tied.items()
        }
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """The library's caches hold keys and values of layers that it knows."""
        return False

    @torch.no_grad()
    def _init_weights(self, module: torch.nn.Module) -> None:
        """Puts back what no file holds; all else the network's own constructor has done."""
        for name, value in self._computed.get(module, {}).items():
            getattr(module, name).copy_(value)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **ignored: Any,
    ) -> CausalLMOutput:
        """Logits of the next tokens.

        Args:
            input_ids: ``(B, T)`` int64.
            attention_mask: ones; the networks know no padding.
            labels: ``(B, T)``, the tokens themselves, −100 where one does not count; they are shifted here.
            ignored: what the library passes on besides.

        Raises:
            ValueError: tokens are masked.
        """
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ValueError("attention_mask: these networks know no padding; give rows of one length")
        logits = self.network(input_ids).logits
        loss = None
        if labels is not None:
            loss = F.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED_TARGET
            )
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, **kwargs: Any
    ) -> dict[str, Any]:
        """The last tokens of a context, as many as the network can read."""
        limit = self.network.max_context
        return {"input_ids": input_ids if limit is None else input_ids[:, -limit:]}


AutoConfig.register(ArchlabConfig.model_type, ArchlabConfig)
AutoModelForCausalLM.register(ArchlabConfig, ArchlabForCausalLM)
