"""A GPT-2 of transformers in one file: built from its configuration, trained as any network of a user's own."""

from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from app.models.language_model import LanguageModel, next_token_loss
from app.records import LanguageModelOutput
from app.training import LanguageModelModule


class HuggingFaceGPT2(LanguageModel):
    """``GPT2LMHeadModel``, initialised by its own rule."""

    def __init__(
        self, vocab_size: int, block_size: int, n_layer: int, n_head: int, n_embd: int, dropout: float
    ):
        super().__init__()
        self.max_context = block_size
        config = GPT2Config(
            vocab_size=vocab_size,
            n_positions=block_size,
            n_layer=n_layer,
            n_head=n_head,
            n_embd=n_embd,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )
        self.inner = GPT2LMHeadModel(config)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> LanguageModelOutput:
        logits = self.inner(input_ids=idx).logits
        return LanguageModelOutput(
            logits, next_token_loss(logits, targets), torch.zeros((), device=idx.device), []
        )


class HuggingFaceGPT2Module(LanguageModelModule):
    """Trains it."""

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        n_layer: int = 3,
        n_head: int = 4,
        n_embd: int = 128,
        dropout: float = 0.0,
        **training: Any,
    ):
        super().__init__(
            HuggingFaceGPT2(vocab_size, block_size, n_layer, n_head, n_embd, dropout), **training
        )
