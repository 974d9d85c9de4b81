"""Text from a network while it trains."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule

from app.models import LanguageModel
from app.models.generation import generate, generation_window, seeded


class TextGeneration(LightningModule):
    """A module that generates text with its network and the tokenizer of the trainer's data."""

    network: LanguageModel

    def generate_text(self, prompt: str = "", **options: Any) -> str:
        """Text that continues one prompt; options as in :meth:`generate_texts`."""
        return self.generate_texts([prompt], **options)[0]

    def generate_texts(
        self,
        prompts: Sequence[str | np.ndarray],
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> list[str]:
        """Texts that continue prompts of equal length; no mode and no global generator is left changed.

        Args:
            prompts: texts to continue, or their tokens, with equally many tokens; an empty one starts after a
                line break, or after the first symbol where there is none.
            max_new_tokens: tokens to generate.
            temperature: 0 is greedy.
            top_k: keep the k likeliest tokens.
            top_p: keep the smallest set of tokens with this probability.
            seed: of the generator used for these texts alone, in [0, 2^64).

        Raises:
            ValueError: an option is out of its range.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        tokenizer = data.tokenizer
        starts = [
            prompt if isinstance(prompt, np.ndarray) else tokenizer.encode_prompt(prompt)
            for prompt in prompts
        ]
        idx = torch.tensor([start.tolist() for start in starts], dtype=torch.int64, device=self.device)
        was_training = self.network.training
        self.network.eval()
        try:
            with torch.no_grad():
                stream = generate(
                    self.network,
                    idx,
                    max_new_tokens,
                    temperature=temperature,
                    top_k=top_k,
                    top_p=top_p,
                    generator=seeded(seed, self.device),
                    block_size=generation_window(self.network, data.block_size),
                )
                tokens = torch.stack(list(stream), dim=1)
        finally:
            self.network.train(was_training)
        return [tokenizer.decode(row) for row in tokens.cpu().numpy()]
