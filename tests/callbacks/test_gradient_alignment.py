import os
import warnings
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from unseen_architecture import BLOCK_SIZE, VOCAB_SIZE, RecordingLogger, UnseenModule, train, windows

from app.models.gpt import GPT
from app.models.local_gpt import LocalGPT
from app.records import LanguageModelOutput, StepRecord
from callbacks import GradientAlignment
from callbacks.gradient_alignment import layer_of, measure
from tests.support.two_ranks import two_ranks


def local_gpt(**options: Any) -> LocalGPT:
    torch.manual_seed(1)
    sizes = {"block_size": BLOCK_SIZE, "vocab_size": VOCAB_SIZE, "n_layers": 2, "n_heads": 2, "d_model": 16}
    return LocalGPT(**sizes | options)


def run(
    network: Any, every: int = 2, steps: int = 4, **options: Any
) -> tuple[GradientAlignment, RecordingLogger]:
    callback = GradientAlignment(every_n_steps=every, n_windows=3)
    return callback, train(UnseenModule(network=network), [callback], steps=steps, **options)


def vectors(network: LocalGPT, prefix: str, idx: Tensor, targets: Tensor) -> Tensor:
    """The gradient of the parameters under a prefix, as one vector, by ordinary backward passes."""
    network.zero_grad()
    network(idx, targets).loss.backward()
    found = [
        p.grad.flatten()
        for name, p in network.named_parameters()
        if name.startswith(prefix) and p.grad is not None
    ]
    network.zero_grad()
    return torch.cat(found).double()


@pytest.mark.parametrize(
    "options", [{"method": "fa"}, {"method": "dfa"}, {"method": "sign_sym"}, {"ln_mode": "ste"}]
)
def test_angles_and_norms_are_those_of_the_gradients(options: dict[str, Any]) -> None:
    network = local_gpt(**options)
    callback, logger = run(network)
    assert sorted(logger.scalars) == [1, 2, 4]
    idx, targets = (part[24:27] for part in windows(32))  # of the last step, whose weights are still there
    network.eval()
    for layer in range(2):
        own = vectors(network, f"blocks.{layer}.", idx, targets)
        with network.with_rule("bp"):
            true = vectors(network, f"blocks.{layer}.", idx, targets)
        angle = torch.rad2deg((own @ true / own.norm() / true.norm()).acos()).item()
        assert callback.last[f"alignment/angle/l{layer:02d}"] == pytest.approx(angle, rel=1e-4)
        assert callback.last[f"alignment/gradient_norm/l{layer:02d}"] == pytest.approx(
            own.norm().item(), rel=1e-5
        )
        assert callback.last[f"alignment/bp_gradient_norm/l{layer:02d}"] == pytest.approx(
            true.norm().item(), rel=1e-5
        )
        assert angle > 1
    with network.layer_outputs() as outputs:
        network(idx)
    rms = [x.square().mean().sqrt().item() for x in outputs.values()]
    assert callback.last["alignment/activation_norm/l01"] == pytest.approx(rms[1], rel=1e-5)
    assert callback.last["alignment/activation_norm"] == pytest.approx(sum(rms) / 2, rel=1e-5)
    assert set(callback.last) == {
        *(f"alignment/angle/{part}" for part in ("tok_emb", "pos_emb", "ln_f", "head")),
        *(
            f"alignment/{key}{rest}"
            for key in ("angle", "gradient_norm", "bp_gradient_norm", "activation_norm")
            for rest in ("", "/min", "/max", "/l00", "/l01")
        ),
    }
    details = logger.details[4]
    assert details["alignment/angle"] == [
        callback.last[f"alignment/angle/l{layer:02d}"] for layer in range(2)
    ]
    by_name = details["alignment/angle_by_parameter"]
    assert list(by_name) == [name for name, _ in network.named_parameters()]
    own = vectors(network, "blocks.1.attn.v_proj", idx, targets)
    with network.with_rule("bp"):
        true = vectors(network, "blocks.1.attn.v_proj", idx, targets)
    angle = torch.rad2deg((own @ true / own.norm() / true.norm()).acos()).item()
    assert by_name["blocks.1.attn.v_proj.weight"] == pytest.approx(angle, rel=1e-4)


def test_what_lies_outside_the_blocks_is_named_and_exact_with_dfa() -> None:
    callback, _ = run(local_gpt(method="dfa"))
    for part in ("tok_emb", "pos_emb", "ln_f", "head"):
        assert callback.last[f"alignment/angle/{part}"] == pytest.approx(0, abs=1e-2)


def test_a_network_that_is_deep_is_capped() -> None:
    callback, _ = run(local_gpt(n_layers=9, method="fa"), every=1, steps=1)
    assert len(callback.last) == 4 * 3 + 4
    assert len({key.rpartition("/")[2] for key in callback.last} & {f"l{i:02d}" for i in range(9)}) == 0


def test_frozen_parts_are_left_out() -> None:
    callback, _ = run(local_gpt(freeze_blocks=True), every=1, steps=1)
    assert set(callback.last) >= {"alignment/angle/head", "alignment/activation_norm"}
    assert "alignment/angle" not in callback.last


def test_layers_by_name() -> None:
    assert layer_of("blocks.3.mlp.0.weight") == 3
    assert layer_of("tok_emb.weight") == "tok_emb"


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("method", ["fa", "dfa"])
def test_it_changes_nothing(method: str, micro_batches: int) -> None:
    states = []
    for callbacks in ([], [GradientAlignment(every_n_steps=1)]):
        network = local_gpt(method=method, fa_grape=True)
        torch.manual_seed(3)
        train(UnseenModule(network=network), callbacks, steps=4, micro_batches=micro_batches)
        states.append([*network.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


def test_gradients_modes_and_buffers_stay() -> None:
    network = local_gpt(method="fa", fa_grape=True)
    idx, targets = windows(4)
    network(idx, targets).loss.backward()
    network.blocks[0].eval()
    network.register_buffer("seen", torch.zeros(()))

    def count(*args: Any) -> None:  # as a running statistic would
        network.seen.add_(1)

    network.blocks[1].register_forward_hook(count)
    before = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    modes = [module.training for module in network.modules()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    measure(network, idx, targets)
    assert all(torch.equal(a, p.grad) for a, p in zip(before, network.parameters(), strict=True))  # type: ignore[arg-type]
    assert [module.training for module in network.modules()] == modes
    assert network.seen == 0
    assert torch.equal(torch.get_rng_state(), state)
    assert {module.rule for module in network.modules() if hasattr(module, "rule")} == {"fa", "bp"}


def test_back_propagation_is_told_that_there_is_nothing_to_see() -> None:
    network = GPT(VOCAB_SIZE, BLOCK_SIZE, 2, 2, 16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        callback, _ = run(network)
    assert sum("every trained parameter of this network" in str(warning.message) for warning in caught) == 1
    assert callback.last["alignment/angle"] == pytest.approx(0, abs=1e-3)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="every_n_steps is 0"):
        GradientAlignment(every_n_steps=0)
    with pytest.raises(ValueError, match="n_windows is 0"):
        GradientAlignment(n_windows=0)


def _rank(rank: int, store: str, results: Connection) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    trainer: Any = SimpleNamespace(
        loggers=[], callbacks=[], precision_plugin=SimpleNamespace(forward_context=nullcontext), world_size=2
    )
    module: Any = SimpleNamespace(network=local_gpt(method="dfa"))
    output = LanguageModelOutput(torch.empty(0), None, torch.zeros(()), [])
    found = []
    for n_windows in (3, 6, 99):
        callback = GradientAlignment(n_windows=n_windows)
        for micro_step in range(2):
            record = StepRecord(1, micro_step, micro_step == 1, False, 1, output, dict)
            first = 4 * rank + 2 * micro_step  # of the eight windows of the global batch
            own = [part[first : first + 2] for part in windows(8)]
            callback.on_train_batch_end(trainer, module, {"record": record}, own, micro_step)
        names, products, _ = measure(module.network, *(part[:n_windows] for part in windows(8)))
        cosine = products[:, 0] / (products[:, 1] * products[:, 2]).sqrt()
        alone = dict(zip(names, cosine.clamp(-1, 1).acos().rad2deg().tolist(), strict=True))
        found.append((callback.last, callback.last_details, alone))
    results.send(found)
    dist.barrier()
    os._exit(0)


def test_every_rank_reads_the_windows_of_one_process(tmp_path: Path) -> None:
    ours, theirs = two_ranks(_rank, tmp_path / "store")
    assert ours == theirs
    for _, details, alone in ours:
        assert details["alignment/angle_by_parameter"] == alone
    few, more, all_of_them = (alone["blocks.1.mlp.fc.weight"] for *_, alone in ours)
    assert len({few, more, all_of_them}) == 3
