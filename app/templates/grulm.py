"""A recurrent language model: layers of gated recurrent units (Cho et al. 2014, arXiv 1406.1078)."""

import torch
from torch import Tensor, nn

from app.models.language_model import LanguageModel, next_token_loss
from app.options import PositiveInt
from app.records import Axis, LanguageModelOutput, Measure


class GRULM(LanguageModel):
    """Gated recurrent units; the states of each layer are added to its input.

    Args:
        vocab_size: number of tokens; the data decides it.
        d_model: width of the embedding and of each state.
        n_layers: recurrent layers.
    """

    def __init__(self, vocab_size: PositiveInt, d_model: PositiveInt = 128, n_layers: PositiveInt = 2):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.blocks = nn.ModuleList(nn.GRU(d_model, d_model, batch_first=True) for _ in range(n_layers))
        self.head = nn.Linear(d_model, vocab_size)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> LanguageModelOutput:
        x_BTD, states = self.embedding(idx), []
        for block in self.blocks:
            states.append(block(x_BTD)[0])
            x_BTD = x_BTD + states[-1]
        logits_BTV = self.head(x_BTD)
        loss = next_token_loss(logits_BTV, targets)
        return LanguageModelOutput(logits_BTV, loss, aux_loss=logits_BTV.new_zeros(()), routing=states)

    def measures(self, output: LanguageModelOutput) -> dict[str, Measure]:
        rms = torch.stack([state.detach().square().mean().sqrt() for state in output.routing])
        return {"state_size": Measure(rms, (Axis("layer"),), "level", meaning="rms of the states")}
