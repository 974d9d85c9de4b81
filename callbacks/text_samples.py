"""Text that the network writes after each validation."""

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from app.records import LogsText
from callbacks.watcher import Watcher


class TextSamples(Watcher):
    """Generates text after validations.

    Every logger that has ``log_text`` gets it. The text depends on the weights and the arguments only: every
    validation uses the same seed, in a random
    generator of its own. Logged texts, on rank zero:

    - ``samples/<i>``: what ``pl_module.generate_text`` returns for prompt i

    Args:
        prompts: texts to continue, at least one; the empty one starts from nothing.
        max_new_tokens: tokens to generate per prompt, >= 1.
        temperature: divisor of the logits, finite and >= 0; 0 always takes the likeliest token.
        top_k: sample among the k likeliest tokens only, >= 1; None samples among all.
        seed: seed of the sampling, in [0, 2^64).
        every_n_validations: sample after the first validation and then after every n-th, >= 1.

    Attributes:
        last: the newest texts, one per prompt; empty on other ranks than zero.

    Raises:
        ValueError: for an argument outside its range.
    """

    def __init__(
        self,
        prompts: list[str] | None = None,
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        seed: int = 1337,
        every_n_validations: int = 1,
    ):
        self.prompts = [""] if prompts is None else list(prompts)
        if not self.prompts:
            raise ValueError("prompts is empty; name at least one (an empty text starts from nothing)")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be >= 1")
        if not 0 <= temperature < math.inf:
            raise ValueError(
                f"temperature is {temperature}; it must be finite and >= 0 (0 always takes the likeliest token)"
            )
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k is {top_k}; it must be >= 1, or null to sample among all tokens")
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"seed is {seed}; it must be >= 0 and below 2^64")
        if every_n_validations < 1:
            raise ValueError(f"every_n_validations is {every_n_validations}; it must be >= 1")
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.top_k = top_k
        self.seed = seed
        self.every_n_validations = every_n_validations
        self.last: list[str] = []
        self._n_validations = 0

    def state_dict(self) -> dict[str, Any]:
        """The number of validations so far."""
        return {"n_validations": self._n_validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting validations from a checkpoint's."""
        self._n_validations = state_dict["n_validations"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Encodes the prompts once: the tokenizer refuses before the first step what it does not know."""
        tokenizer: Any = getattr(getattr(trainer, "datamodule", None), "tokenizer", None)
        for number, prompt in enumerate(self.prompts) if tokenizer is not None else ():
            try:
                tokenizer.encode_prompt(prompt)
            except Exception as error:
                raise type(error)(f"TextSamples: prompts[{number}]: {error}") from None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Generates and writes the texts, during training only."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self._n_validations += 1
        if (self._n_validations - 1) % self.every_n_validations or not trainer.is_global_zero:
            return
        generate_text: Any = pl_module.generate_text
        self.last = [
            generate_text(
                prompt,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                top_k=self.top_k,
                seed=self.seed,
            )
            for prompt in self.prompts
        ]
        for logger in trainer.loggers:
            if isinstance(logger, LogsText):
                for index, text in enumerate(self.last):
                    logger.log_text(f"samples/{index}", text, trainer.global_step)
