"""The figures of app crystallize, on cases whose answer is known."""

import io
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from app.analysis import crystallize
from app.analysis import crystallize_statistics as statistics
from app.analysis.crystallize_figures import draw, mode_table, spectrum_table
from app.models.crystal import ResidualBasis, calibrate, random_basis
from app.models.gpt import GPT


def entry(mode: str, number: int, recovered: float | None) -> dict[str, Any]:
    interval = None if recovered is None else [recovered - 2, recovered + 2]
    return {
        "mode": mode,
        "rank": number if mode == "lowrank" else None,
        "top_k": number if mode == "topk" else None,
        "recovered": recovered,
        "recovered_interval": interval,
    }


def test_the_bootstrap_knows_the_spread_of_a_mean() -> None:
    """Of n independent blocks the mean spreads by σ/√n; the interval covers the truth in 95 of 100 texts."""
    draw = np.random.default_rng(0)
    covered = 0
    for text in range(200):
        losses = draw.normal(1.0, 0.3, (1, 40))
        low, high = statistics.interval(statistics.bootstrap_means(losses, seed=text, n_draws=400)[:, 0])
        covered += low <= 1.0 <= high
    assert 0.90 <= covered / 200 <= 0.98
    losses = draw.normal(1.0, 0.3, (1, 400))
    spread = statistics.bootstrap_means(losses, seed=1)[:, 0].std()
    assert spread == pytest.approx(losses.std() / 20, rel=0.06)


def test_rows_are_drawn_together() -> None:
    """A constant difference between two forms of attention has no spread, however much the blocks differ."""
    losses = np.random.default_rng(0).normal(2.0, 1.0, 30)
    draws = statistics.bootstrap_means(np.stack([losses, losses + 0.25]), seed=3)
    assert draws[:, 0].std() > 0.1
    assert np.allclose(draws[:, 1] - draws[:, 0], 0.25)
    assert np.array_equal(draws, statistics.bootstrap_means(np.stack([losses, losses + 0.25]), seed=3))


def test_recovered() -> None:
    assert statistics.recovered(12.0, 20.0, 10.0) == 80.0
    assert statistics.recovered(np.array([20.0, 10.0, 25.0]), 20.0, 10.0).tolist() == [0.0, 100.0, -50.0]
    assert np.isnan(statistics.recovered(10.0, 10.0, 10.0))
    assert statistics.costs_nothing(10.0, 10.009)
    assert not statistics.costs_nothing(10.0, 10.011)


def test_verdicts() -> None:
    ranks = [entry("lowrank", rank, share) for rank, share in ((1, 30.0), (8, 92.0), (16, 99.0))]
    keys = [entry("topk", k, share) for k, share in ((1, 0.0), (2, 60.0), (4, 91.0))]
    found = statistics.verdict([*ranks, *keys], 64, False)
    assert (found["kind"], found["rank"], found["top_k"]) == ("full", 8, 4)
    assert found["text"] == (
        "Rank 8 of 64 recovers 92 % (95 % interval 90 to 94 %) of what the top key alone loses; softmax over the best "
        "4 keys recovers 91 %."
    )
    found = statistics.verdict([*ranks[:1], entry("lowrank", 32, 87.0), *keys[:2]], 64, False)
    assert (found["kind"], found["rank"], found["top_k"], found["best_rank"]) == ("partial", None, None, 32)
    assert found["text"].startswith("Partial: no rank recovers 90 %")
    assert "the best, 32 of 64, recovers 87 %" in found["text"]
    assert "no number of keys up to 2 does (the best 2 recover 60 %)" in found["text"]
    found = statistics.verdict([entry("lowrank", 1, None), entry("topk", 2, None)], 64, True)
    assert found["kind"] == "undetermined"
    assert found["text"].startswith("Undetermined: what the top key alone costs cannot be told from nothing")


def test_the_full_width_is_no_low_rank() -> None:
    few = [entry("lowrank", rank, share) for rank, share in ((1, 30.0), (16, 80.0), (64, 100.0))]
    found = statistics.verdict([*few, entry("topk", 2, 60.0)], 64, False)
    assert (found["kind"], found["rank"], found["best_rank"], found["best_recovered"]) == (
        "partial",
        None,
        16,
        80.0,
    )
    assert found["text"].startswith(
        "Partial: only the full width recovers 90 % of what the top key alone loses; below it the best, 16 of 64, "
        "recovers 80 % (95 % interval 78 to 82 %)"
    )
    found = statistics.verdict([few[-1]], 64, False)
    assert (found["kind"], found["best_rank"]) == ("partial", None)
    assert found["text"] == "Partial: only the full width recovers 90 % of what the top key alone loses."


def test_draws_without_a_recovered_share_count() -> None:
    """Where too many draws leave nothing to recover, the rest say too little for an interval."""
    own, top1 = np.full(100, 10.0), np.full(100, 20.0)
    value = np.linspace(10.0, 20.0, 100)
    assert statistics.recovered_interval(value, top1, own) == pytest.approx([2.5, 97.5])
    top1[:4] = 10.0
    ends = statistics.recovered_interval(value, top1, own)
    assert ends is not None
    assert np.isfinite(ends).all()
    top1[:5] = 10.005
    assert statistics.recovered_interval(value, top1, own) is None


def test_tiles_do_not_overlap_and_reach_both_ends() -> None:
    blocks = crystallize.tiles(np.arange(105, dtype=np.uint16), 4, 10)
    assert blocks.dtype == torch.int64
    assert blocks[0].tolist() == list(range(10))
    assert blocks[-1].tolist() == list(range(90, 100))
    assert len(set(blocks.flatten().tolist())) == 40
    assert torch.equal(crystallize.tiles(np.arange(40), 4, 10), torch.arange(40).view(4, 10))


def small_network() -> GPT:
    torch.manual_seed(0)
    network = GPT(11, 16, n_layers=2, n_heads=2, d_model=12)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(5)
    return network


BLOCKS = torch.randint(0, 11, (6, 16), generator=torch.Generator().manual_seed(1))


def test_losses_of_blocks() -> None:
    network = small_network().train()
    losses = crystallize.block_losses(network, BLOCKS, batch_size=4)
    for block, loss in zip(BLOCKS, losses, strict=True):
        with torch.no_grad():
            logits = network(block[None, :-1]).logits[0]
        assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, block[1:]).item(), rel=1e-6)
    assert network.training


def experiment(ranks: tuple[int, ...] = (1, 2, 6)) -> dict[str, Any]:
    network = small_network()
    basis = calibrate(network, [0, 1], [BLOCKS])
    plan = crystallize.stages(ranks)
    losses = {
        stage.name: crystallize.measure(network, stage, [0, 1], BLOCKS, basis, seed=0).tolist()
        for stage in plan
    }
    crystallize.check_full(losses)
    about = {"model": "GPT", "n_layers": 2, "n_blocks": 6, "seq_len": 16, "text": "a text", "unit": "byte"}
    return crystallize.summarise(losses, plan, basis, 0, about)


def test_an_experiment_is_consistent() -> None:
    summary = experiment()
    modes = {mode["name"]: mode for mode in summary["modes"]}
    own = summary["baseline"]["perplexity"]
    assert list(modes) == [
        "full", "top1", "topk-1", "topk-2", "topk-4", "topk-8", "lowrank-1", "lowrank-2", "lowrank-6", "random-1",
        "random-2", "random-6",
    ]  # fmt: skip
    assert modes["topk-1"]["perplexity"] == modes["top1"]["perplexity"] != own
    for whole in ("full", "lowrank-6", "random-6"):
        assert modes[whole]["perplexity"] == pytest.approx(own, rel=1e-5)
        assert modes[whole]["recovered"] == pytest.approx(100, abs=0.1)
    assert modes["top1"]["recovered"] == 0
    for mode in modes.values():
        low, high = mode["perplexity_interval"]
        assert low <= mode["perplexity"] <= high
        low, high = mode["delta_interval"]
        assert low <= mode["delta"] <= high
    assert summary["spectrum"]["share_at"].keys() == {"1", "2", "4"}
    assert np.asarray(summary["spectrum"]["r90"]).shape == (2, 2)


def test_another_function_in_place_of_attention_is_told() -> None:
    crystallize.check_full({"baseline": [1.0, 2.0], "full": [1.0, 2.00001]})
    with pytest.raises(crystallize.FullModeError, match=r"must agree to 0\.0001"):
        crystallize.check_full({"baseline": [1.0, 2.0], "full": [1.0, 2.001]})
    with pytest.raises(crystallize.FullModeError):
        crystallize.check_full({"baseline": [1.0, 2.0], "full": [1.0, float("nan")]})
    nan = [1.0, float("nan")]
    with pytest.raises(
        crystallize.FullModeError, match="the network as it is has perplexity nan on this text"
    ):
        crystallize.check_full({"baseline": nan, "full": nan})


def test_a_top_key_that_costs_nothing_is_not_divided_by() -> None:
    plan = crystallize.stages((1, 2))
    basis = ResidualBasis((0,), random_basis(2, 4, 4)[None], torch.ones(1, 2, 4))
    losses = {stage.name: [1.0, 1.1, 1.2] for stage in plan}
    about = {"model": "GPT", "n_layers": 1, "n_blocks": 3, "seq_len": 16, "text": "a text", "unit": "byte"}
    summary = crystallize.summarise(losses, plan, basis, 0, about)
    assert {mode["recovered"] for mode in summary["modes"]} == {None}
    assert summary["verdict"]["kind"] == "undetermined"


def test_a_cost_whose_interval_holds_zero_recovers_nothing_that_can_be_told() -> None:
    plan = crystallize.stages((1, 2))
    basis = ResidualBasis((0,), random_basis(2, 4, 4)[None], torch.ones(1, 2, 4))
    own = [1.0, 1.1, 1.2, 1.3, 1.4]
    about = {"model": "GPT", "n_layers": 1, "n_blocks": 5, "seq_len": 16, "text": "a text", "unit": "byte"}
    for top1, kind in (([1.9, 0.7, 2.0, 0.8, 1.45], "undetermined"), ([1.2, 1.25, 1.4, 1.55, 1.6], "full")):
        losses = {stage.name: own for stage in plan} | {"top1": top1}
        assert np.mean(top1) > np.mean(own) + 0.05  # by the means alone it costs 5 % and more
        summary = crystallize.summarise(losses, plan, basis, 0, about)
        assert summary["verdict"]["kind"] == kind


@pytest.mark.parametrize("kind", ["usual", "free", "uncertain"])
def test_table_and_picture_show_every_form(kind: str, tmp_path: Path) -> None:
    summary = experiment()
    for mode in summary["modes"]:
        if kind == "free":
            mode["recovered"] = None
        mode["recovered_interval"] = [1.0, 2.0] if kind == "usual" else None
    summary["bootstrap"]["n_free"] = 300 if kind == "uncertain" else 0
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(mode_table(summary), spectrum_table(summary))
    shown = console.export_text()
    for mode in summary["modes"]:
        row = next(line for line in shown.splitlines() if mode["label"] in line)
        assert f"{mode['perplexity']:.3f}" in row
        assert (f"{mode['recovered'] or 0:.0f} %" in row) == (kind != "free")
        assert ("n/a" in row) == (kind != "usual")
    assert "perplexity per byte" in shown
    assert ("In 15.0% of the bootstrap draws" in shown) == (kind == "uncertain")
    r90 = summary["spectrum"]["r90"]
    for layer in (0, 1):
        for head in (0, 1):
            row = next(line for line in shown.splitlines() if line.startswith(f"{layer}.{head} "))
            assert row.split()[-1] == str(r90[layer][head])
    draw(summary, tmp_path / "picture.tmp")
    assert (tmp_path / "picture.tmp").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_forms_without_a_finite_perplexity_are_left_out(number: float, tmp_path: Path) -> None:
    summary = experiment((1, 2))
    summary |= {"model": "$x_{$[/]", "text": "a\nb\ud800", "unit": "[bold]"}
    for mode in summary["modes"][2:8]:
        mode |= dict.fromkeys(("perplexity", "delta", "recovered"), number)
        mode |= dict.fromkeys(("perplexity_interval", "delta_interval", "recovered_interval"), [number] * 2)
    console = Console(width=140, file=io.StringIO(), markup=False)
    console.print(mode_table(summary), spectrum_table(summary))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(summary, tmp_path / "picture.png")
