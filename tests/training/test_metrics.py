"""The sums of an evaluation."""

from typing import Any

import torch
from lightning.pytorch.plugins.precision import HalfPrecision
from torch import Tensor

from app.models.gpt import GPT
from app.training import LanguageModelModule
from app.training.metrics import EvaluationSums

BYTES = torch.tensor([1.0, 2.0, 3.0, 1.0, 4.0], dtype=torch.float64)


def batch(n: int, padding: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    targets = torch.randint(0, 5, (n, 7), generator=generator)
    targets[:, 7 - padding :] = -100
    return torch.randn(n, 7, 5, generator=generator).to(dtype), targets


def test_they_are_those_of_all_targets_and_of_no_padding() -> None:
    sums = EvaluationSums()
    parts = [batch(3), batch(2, padding=4)]
    for logits, targets in parts:
        sums.update(logits, targets, BYTES)
    found = sums.compute()
    of_each = [
        (-float(logits[b, t].double().log_softmax(-1)[targets[b, t]]), int(targets[b, t]))
        for logits, targets in parts
        for b in range(len(targets))
        for t in range(7)
        if targets[b, t] >= 0
    ]
    assert found.tokens == len(of_each) == 3 * 7 + 2 * 3
    assert found.n_bytes == sum(float(BYTES[token]) for _, token in of_each)
    assert abs(found.nats - sum(nats for nats, _ in of_each)) < 1e-5


def test_many_small_terms_are_not_lost_beside_a_large_sum() -> None:
    sums = EvaluationSums()
    sums.sums += torch.tensor([2.0**26, 2.0**26, 2.0**26], dtype=torch.float64)
    logits, targets = batch(1)
    sums.update(logits, targets, BYTES)
    alone = EvaluationSums()
    alone.update(logits, targets, BYTES)
    assert abs(sums.compute().nats - 2.0**26 - alone.compute().nats) < 1e-7


def test_a_module_in_half_precision_is_evaluated_in_double() -> None:
    module: Any = HalfPrecision("bf16-true").convert_module(LanguageModelModule(GPT(5, 8, 1, 1, 4)))
    module.on_validation_epoch_start()
    module._token_bytes = BYTES
    idx = torch.randint(0, 5, (2, 8))
    module.validation_step((idx, idx), 0)
    assert module._evaluation.sums.dtype == torch.float64
    assert module._evaluation.compute().tokens == 16
