"""A data module as the framework's tutorials write them; copied beside a test's configuration."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from app.models.language_model import LanguageModel, next_token_loss
from app.records import LanguageModelOutput


class Counting(LightningDataModule):
    """Windows of counting upwards modulo 11, in shuffled batches of four; 40 windows, ten batches an epoch."""

    def setup(self, stage: str) -> None:
        start = torch.arange(40)[:, None]
        stream = (start + torch.arange(9)) % 11
        self.data = TensorDataset(stream[:, :-1], stream[:, 1:])

    def train_dataloader(self) -> Any:
        return DataLoader(self.data, batch_size=4, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.data, batch_size=4)


class Sized(Counting):
    """It knows how many tokens there are."""

    vocab_size = 11


class Bigrams(LanguageModel):
    """Any network with a vocabulary and no block size.

    Args:
        vocab_size: number of tokens.
    """

    def __init__(self, vocab_size: int):
        super().__init__()
        self.logits = nn.Embedding(vocab_size, vocab_size)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> LanguageModelOutput:
        logits = self.logits(idx)
        return LanguageModelOutput(logits, next_token_loss(logits, targets), logits.new_zeros(()), [])


class InOrder:
    """A loader that says where it stands."""

    def __init__(self, data: TensorDataset):
        self.data = data
        self.position = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while self.position < len(self.data):
            self.position += 4
            yield self.data[self.position - 4 : self.position]
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


class Stateful(Counting):
    """The same in order, from a loader with a state; nothing to validate on."""

    def train_dataloader(self) -> Any:
        return InOrder(self.data)

    val_dataloader = LightningDataModule.val_dataloader


class Wrong(Counting):
    """Yields no pairs."""

    def train_dataloader(self) -> Any:
        return DataLoader(self.data.tensors[0], batch_size=4)
