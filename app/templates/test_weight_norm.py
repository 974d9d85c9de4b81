"""The watcher beside a short training of a small network."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from weight_norm import WeightNorm

from app.models.gpt import GPT
from app.training import LanguageModelModule
from datamodules import CharDataModule


def trained(folder: Path, watchers: list[WeightNorm]) -> LightningModule:
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)
    torch.manual_seed(0)
    data = CharDataModule(path=str(folder / "text.txt"), block_size=8, batch_size=4)
    module = LanguageModelModule(GPT(data.vocab_size, block_size=8, d_model=8, n_layers=1, n_heads=1))
    trainer = Trainer(
        accelerator="cpu", max_steps=4, max_epochs=-1, log_every_n_steps=2, limit_val_batches=0, callbacks=watchers,
        logger=CSVLogger(folder), enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module


def test_it_logs_the_norm_of_all_weights(tmp_path: Path) -> None:
    watcher = WeightNorm()
    module = trained(tmp_path, [watcher])
    assert watcher.last == pytest.approx(torch.cat([p.flatten() for p in module.parameters()]).norm().item())
    (metrics,) = tmp_path.rglob("metrics.csv")
    assert "weights/norm" in metrics.read_text().splitlines()[0].split(",")


def test_it_leaves_the_training_as_it_is(tmp_path: Path) -> None:
    watched, alone = trained(tmp_path, [WeightNorm()]), trained(tmp_path, [])
    assert all(map(torch.equal, watched.parameters(), alone.parameters()))
