"""A network that the callbacks have never heard of, and a minimal module that trains it."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from app.records import Axis, LanguageModelOutput, Measure, StepRecord

VOCAB_SIZE, BLOCK_SIZE, N_LAYERS, N_BANKS = 12, 6, 3, 4


class UnseenNetwork(nn.Module):
    """Its measures are functions of the tokens alone, so that any way of batching can be compared."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB_SIZE, 5)
        self.head = nn.Linear(5, VOCAB_SIZE)
        self.n_measured = 0

    def forward(self, idx: Tensor, targets: Tensor) -> LanguageModelOutput:
        logits = self.head(F.dropout(self.embedding(idx), 0.1, self.training))
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return LanguageModelOutput(logits, loss, idx.double().mean().float() / 100, [idx])

    def measures(self, output: LanguageModelOutput) -> dict[str, Measure]:
        self.n_measured += 1
        idx = output.routing[0]
        layers = torch.arange(1, N_LAYERS + 1)
        layer, lane = Axis("layer"), Axis("lane", ("left", "right"))
        left = (idx[..., None] < 2 * layers).double().mean((0, 1))
        banks = (idx[..., None, None] * layers[:, None] + torch.tensor([0, 1])) % (
            N_BANKS - 1
        )  # one stays dead
        load = (banks[..., None] == torch.arange(N_BANKS)).sum((0, 1))
        lanes = torch.stack([left, 1 - left], -1)
        return {
            "lanes": Measure(lanes, (layer, lane), "share", target=torch.tensor([0.25, 0.75])),
            "halted": Measure(left.float(), (layer,), "share"),
            "grid": Measure(
                lanes[:, :, None].expand(-1, -1, 3) / 3, (layer, Axis("row"), Axis("column")), "share"
            ),
            "doubt": Measure(left * 2, (layer,), "level", unit="nats"),
            "experts_used": Measure(load, (layer, lane, Axis("bank")), "count", reduce="sum"),
            "experts_liked": Measure(
                load / load.sum((1, 2), keepdim=True),
                (layer, lane, Axis("bank")),
                "share",
                target=torch.tensor(1 / (2 * N_BANKS)),
            ),
            "slope": Measure(
                torch.ones(N_LAYERS, 2, 2), (layer, Axis("in"), Axis("out")), "gain", reduce="none"
            ),
        }


class UnseenModule(LightningModule):
    def __init__(self, log_every: int = 1, network: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network or UnseenNetwork()
        self.log_every = log_every
        self.n_generated = 0

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Any]:
        accumulation, step = self.trainer.accumulate_grad_batches, self.trainer.global_step + 1
        output = self.network(*batch)
        record = StepRecord(
            step=step,
            micro_step=batch_idx % accumulation,
            is_last_micro=(batch_idx + 1) % accumulation == 0,
            is_logged=self.is_logged(step),
            tokens=batch[0].numel(),
            output=output._replace(
                logits=output.logits.new_empty(0),
                loss=output.loss.detach(),
                aux_loss=output.aux_loss.detach(),
            ),
            measure=self.network.measures,
        )
        return {"loss": output.loss + output.aux_loss, "record": record}

    def is_logged(self, step: int) -> bool:
        return step % self.log_every == 0

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.network(*batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def generate_text(
        self, prompt: str, max_new_tokens: int, temperature: float, top_k: int | None, seed: int
    ) -> str:
        self.n_generated += 1
        return f"{prompt}|{max_new_tokens}|{temperature}|{top_k}|{seed}"


class RecordingLogger(Logger):
    """Keeps what it is given."""

    name = version = ""

    def __init__(self) -> None:
        super().__init__()
        self.scalars: dict[int, dict[str, float]] = {}
        self.details: dict[int, dict[str, Any]] = {}
        self.texts: list[tuple[str, str, int]] = []
        self.figures: list[tuple[str, bytes, int]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.scalars.setdefault(step, {}).update(metrics)

    def log_details(self, details: dict[str, Any], step: int) -> None:
        self.details.setdefault(step, {}).update(details)

    def log_text(self, tag: str, text: str, step: int) -> None:
        self.texts.append((tag, text, step))

    def log_figure(self, tag: str, png: bytes, step: int) -> None:
        self.figures.append((tag, png, step))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def windows(n: int) -> tuple[Tensor, Tensor]:
    """``n`` windows that are the same in every process."""
    tokens = torch.randint(0, VOCAB_SIZE, (n, BLOCK_SIZE + 1), generator=torch.Generator().manual_seed(0))
    return tokens[:, :-1], tokens[:, 1:]


def train(
    module: UnseenModule,
    callbacks: list[Callback],
    *,
    steps: int = 1,
    micro_batches: int = 1,
    step_windows: int = 8,
    own: slice = slice(None),
    **trainer_arguments: Any,
) -> RecordingLogger:
    """Trains on ``steps`` batches of ``step_windows`` windows, in parts of which ``own`` are this rank's."""
    x, y = windows(steps * step_windows)
    size = step_windows // micro_batches
    batches = [(x[at : at + size][own], y[at : at + size][own]) for at in range(0, len(x), size)]
    logger = RecordingLogger()
    options: dict[str, Any] = {"limit_val_batches": 0, "log_every_n_steps": 1} | trainer_arguments
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=micro_batches,
        callbacks=callbacks,
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )
    # A bare list would be taken for several loaders.
    loader = DataLoader(batches, batch_size=None)
    trainer.fit(module, loader, DataLoader(batches[:1], batch_size=None))
    return logger
