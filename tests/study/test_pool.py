"""The statistics on real runs: a pool of 24 seeds at six sizes of a tiny GPT, trained here.

Run as a program it prints every line: ``python -m tests.study.test_pool``.
"""

import time
from typing import Any

import numpy as np
import pytest
import torch

from app.models.gpt import GPT
from app.study.resampling import resampled

N_SEEDS, V, T, BATCH = 24, 8, 32, 8
WIDTHS = (12, 14, 16, 18, 20, 22)
TOKENS_PER_PARAMETER = 12
N_HELD_OUT = 128


def chain(generator: np.random.Generator, n: int) -> torch.Tensor:
    """``(n, T + 1)`` windows of a text whose next symbol depends on the last two."""
    table = np.random.default_rng(7).dirichlet(np.full(V, 0.15), (V, V)).cumsum(-1)
    text = generator.integers(V, size=(n, T + 1))
    for t in range(1, T):
        drawn = (table[text[:, t - 1], text[:, t]] < generator.random((n, 1))).sum(-1)
        text[:, t + 1] = np.minimum(drawn, V - 1)
    return torch.from_numpy(text)


def train(width: int, seed: int) -> tuple[float, float]:
    """FLOPs and held-out loss of one network; the seed is that of its weights and of its text."""
    torch.manual_seed(seed)
    network, generator = (
        GPT(V, d_model=width, n_layers=1, n_heads=2, block_size=T),
        np.random.default_rng([seed, width]),
    )
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    n_steps = round(TOKENS_PER_PARAMETER * n_parameters / (BATCH * T))
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=n_steps + 1, pct_start=0.1)
    texts = chain(generator, n_steps * BATCH).view(n_steps, BATCH, T + 1)
    for text in texts:
        optimizer.zero_grad()
        network(text[:, :-1].contiguous(), text[:, 1:].contiguous()).loss.backward()
        optimizer.step()
        schedule.step()
    held_out = chain(np.random.default_rng(123), N_HELD_OUT)
    with torch.no_grad():
        loss = network.eval()(held_out[:, :-1].contiguous(), held_out[:, 1:].contiguous()).loss
    return network.flops_per_token(T) * n_steps * BATCH * T, float(loss)


def pool() -> dict[str, Any]:
    """What ``results.json`` of a study of these runs would say of its rows."""
    rows = {}
    for width in WIDTHS:
        runs = [train(width, seed) for seed in range(N_SEEDS)]
        figures = {str(seed): loss for seed, (_, loss) in enumerate(runs)}
        rows[f"width_{width}"] = {"label": "gpt", "flops": runs[0][0], "figures": figures}
    return {"rows": rows, "margin": 0.02}


@pytest.mark.stress
@pytest.mark.timeout(7200)
def test_equal_rows_of_real_runs_are_not_told_apart() -> None:
    """Coverage is not held here: rows of real runs spread unequally, see the table in ``app/study/README.md``."""
    errors = [finding for finding in resampled(pool(), 2000) if finding.promise.startswith("at most")]
    assert len(errors) == 2
    assert all(finding.is_kept for finding in errors)


if __name__ == "__main__":
    began = time.monotonic()
    report = pool()
    for name, row in report["rows"].items():
        figures = list(row["figures"].values())
        print(f"{name}: {row['flops']:.3g} FLOPs, {np.mean(figures):.4f} ± {np.std(figures, ddof=1):.4f}")
    print(f"trained after {time.monotonic() - began:.0f} s")
    for finding in resampled(report, 2000):
        print(
            f"{finding.share:7.2%}  {finding.what}; promised: {finding.promise}{'' if finding.is_kept else ' - NOT KEPT'}"
        )
    print(f"{time.monotonic() - began:.0f} s")
