"""Single flipped bits in a training: which are found, when, and that no update is made from them."""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from app.run.errors import ConfigurationError, IntegrityError
from app.training import EquilibriumModule, GPTModule, LanguageModelModule, TilelliModule
from app.training.checksums import GROUP_BYTES, Checksums, Place
from app.training.guards import Guards
from app.training.repeated_steps import RepeatedSteps
from app.training.run_callbacks.integrity import IntegrityStop
from app.training.run_callbacks.nonfinite import FiniteGate
from tests.support.in_process import SEED, fit
from tests.training.test_step_graph import Graphs, same

SMALL: dict[str, Any] = {"d_model": 8, "n_layers": 2, "schedule": "constant", "warmup_steps": 0}


def gpt(**options: Any) -> Callable[..., LanguageModelModule]:
    return lambda **sizes: GPTModule(**SMALL | {"n_heads": 2, "dropout": 0.2} | options, **sizes)


def equilibrium(**options: Any) -> Callable[..., LanguageModelModule]:
    """One whose statistics run along in buffers."""
    own = {"n_heads": 2, "d_ff": 8, "statistics": "lagged", "quantile": "histogram"}
    return lambda **sizes: EquilibriumModule(**SMALL | own | options, **sizes)


def tilelli(**options: Any) -> Callable[..., LanguageModelModule]:
    return lambda **sizes: TilelliModule(
        n_banks=2, d_head=4, balance="bias", dropout=0.1, **SMALL | options, **sizes
    )


def flip(tensor: Tensor, draw: random.Random) -> Callable[[], None]:
    """Flips one bit of a tensor where it lies; the function that is returned flips it back."""
    raw = tensor.detach().reshape(-1).view(torch.uint8)
    place, bit = draw.randrange(len(raw)), 1 << draw.randrange(8)

    def turn() -> None:
        raw[place] ^= bit

    turn()
    return turn


def of_kind(kind: str, trainer: Trainer, module: Any) -> list[Tensor]:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    states = trainer.optimizers[0].state.values()
    return {
        "weights": list(module.parameters()),
        "moments": [x for state in states for name, x in state.items() if isinstance(x, Tensor)],
        "buffers": [x for x in module.network.buffers() if x is not None],
        "tokens": list(data.tokens_in_memory().values()),
        "gradients": [p.grad for p in module.parameters() if p.grad is not None],
    }[kind]


class Flips(Callback):
    """Flips a bit in every step but the first, looks whether that is found, and puts all back as it was."""

    def __init__(self, kind: str, in_step: bool, every_n_steps: int = 0):
        self.kind, self.in_step, self.every_n_steps = kind, in_step, every_n_steps
        self.draw = random.Random(kind)
        self.n_flips = 0
        self.found: list[int] = []
        self.said: set[str] = set()

    def guards(self, trainer: Trainer, module: Any) -> None:
        """New ones, that have found nothing yet, before an open gate."""
        repeated = RepeatedSteps(self.every_n_steps, SEED) if self.every_n_steps else None
        module.guards = Guards(is_state_checked=not self.every_n_steps, repeated=repeated)
        module.guards.begin(module)
        module.gate = FiniteGate("skip")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.guards(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.before = {name: x.clone() for name, x in pl_module.state_dict().items()}
        if not self.in_step and trainer.global_step:
            self._flip(trainer, pl_module)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.in_step and trainer.global_step:
            self._flip(trainer, pl_module)

    def _flip(self, trainer: Trainer, module: LightningModule) -> None:
        tensor = self.draw.choice([x for x in of_kind(self.kind, trainer, module) if x.numel()])
        self.back = flip(tensor, self.draw)
        self.n_flips += 1

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        module: Any = pl_module
        step, what = module.guards.findings()
        if not what:
            return
        assert step == trainer.global_step, "found in the very step"
        self.found.append(step)
        self.said |= set(what)
        if not self.every_n_steps:
            self.back()
        after = module.state_dict()
        moved = [
            name
            for name, x in self.before.items()
            if not torch.equal(
                x.view(torch.uint8) if x.dim() else x,
                after[name].view(torch.uint8) if x.dim() else after[name],
            )
        ]
        assert not moved, "no update is made"
        self.guards(trainer, module)


AT_REST: Mapping[str, tuple[Callable[..., LanguageModelModule], bool]] = {
    "weights": (gpt(), False),
    "moments": (gpt(), False),
    "moments of muon": (gpt(optimizer="muon"), False),
    "tokens": (gpt(), False),
    "buffers": (equilibrium(), False),
    # Not buffers, which the forward pass has moved by then.
    "weights within the step": (gpt(), True),
    "moments within the step": (tilelli(), True),
    "tokens within the step": (gpt(), True),
}


def flipped_at_rest(folder: Path, name: str, n_flips: int) -> Flips:
    make, in_step = AT_REST[name]
    flips = Flips(name.split()[0], in_step)
    fit(folder, make, steps=n_flips + 1, callbacks=[flips], log_every_n_steps=10**9)
    return flips


@pytest.mark.parametrize("name", AT_REST)
def test_every_bit_that_flips_at_rest_is_found_before_the_next_update(tmp_path: Path, name: str) -> None:
    flips = flipped_at_rest(tmp_path, name, 8)
    assert len(flips.found) == flips.n_flips == 8
    assert all("by one bit" in said and said.startswith(flips.kind) for said in flips.said)


@pytest.mark.stress
@pytest.mark.parametrize("name", AT_REST)
def test_a_thousand_bits_at_rest(tmp_path: Path, name: str) -> None:
    flips = flipped_at_rest(tmp_path, name, 1000)
    assert len(flips.found) == flips.n_flips == 1000


def flipped_gradients(folder: Path, n_flips: int, every_n_steps: int, **options: Any) -> Flips:
    flips = Flips("gradients", True, every_n_steps)
    fit(
        folder,
        gpt(nonfinite="skip", max_skips=10**9),
        steps=n_flips + 1,
        callbacks=[flips],
        log_every_n_steps=10**9,
        **options,
    )
    return flips


def test_of_bits_that_flip_in_gradients_those_of_steps_made_twice_are_found(tmp_path: Path) -> None:
    flips = flipped_gradients(tmp_path, 30, every_n_steps=5)
    assert flips.n_flips == 30
    assert flips.found == [5, 10, 15, 20, 25, 30]
    assert all(said.startswith("made twice, these were not the same: gradient of ") for said in flips.said)


@pytest.mark.stress
@pytest.mark.parametrize("every_n_steps", [1, 10, 100])
def test_a_thousand_bits_in_gradients(tmp_path: Path, every_n_steps: int) -> None:
    flips = flipped_gradients(tmp_path, 1000, every_n_steps)
    assert flips.n_flips == 1000
    assert len(flips.found) == 1000 // every_n_steps


# -- a clean run ------------------------------------------------------------------------------------------


CLEAN = {
    "gpt": gpt(),
    "muon": gpt(optimizer="muon"),
    "sgd": gpt(optimizer="sgd"),
    "equilibrium": equilibrium(),
    "tilelli": tilelli(),
}


def stays_as_it_is(folder: Path, name: str, accumulation: int, is_captured: bool) -> None:
    options: dict[str, Any] = {"steps": 7, "accumulate_grad_batches": accumulation}
    plain = fit(folder, CLEAN[name], **options)
    graphs = [Graphs()] if is_captured else []
    stop = IntegrityStop(SEED, folder, True, 2)
    guarded = fit(folder, CLEAN[name], callbacks=[stop, *graphs], **options)
    assert same(guarded, plain)
    assert guarded.guards.findings() == (0, [])
    assert all(each.graphs.objection == "" and each.graphs.n_replays > 0 for each in graphs)


@pytest.mark.parametrize(
    ("name", "accumulation", "is_captured"), [("gpt", 1, False), ("equilibrium", 2, True), ("muon", 1, True)]
)
def test_guards_change_no_bit_of_a_clean_run(
    tmp_path: Path, name: str, accumulation: int, is_captured: bool
) -> None:
    stays_as_it_is(tmp_path, name, accumulation, is_captured)


@pytest.mark.stress
@pytest.mark.parametrize("name", CLEAN)
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("is_captured", [False, True])
def test_they_change_none_of_any(tmp_path: Path, name: str, accumulation: int, is_captured: bool) -> None:
    stays_as_it_is(tmp_path, name, accumulation, is_captured)


class FlipsOnce(Callback):
    def __init__(self, step: int):
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step - 1:
            flip(pl_module.network.blocks[0].mlp.proj.weight, random.Random(0))  # type: ignore[union-attr, index]


@pytest.mark.parametrize("is_captured", [False, True])
def test_the_run_ends_at_the_next_logged_step(tmp_path: Path, is_captured: bool) -> None:
    """Whatever the steps in between computed from the flipped bit, none has moved a weight."""
    graphs = [Graphs()] if is_captured else []
    stop = IntegrityStop(SEED, tmp_path, True, 0)
    with pytest.raises(IntegrityError) as raised:
        fit(tmp_path, gpt(), steps=20, callbacks=[stop, FlipsOnce(7), *graphs], log_every_n_steps=5)
    said = str(raised.value)
    assert said.startswith("before the update of step 7: weights: ")
    assert "blocks.0.mlp.proj.weight" in said or " more changed" in said
    assert "no update was made from it\nlast good checkpoint: none yet" in said
    ended: Any = raised.value.module  # type: ignore[attr-defined]
    before = fit(tmp_path, gpt(), steps=6)
    theirs = before.state_dict()
    n_changed = sum(
        int((x.view(torch.int32) != theirs[name].view(torch.int32)).sum())
        for name, x in ended.state_dict().items()
    )
    assert n_changed == 1


class Saves(Callback):
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == 3:
            flip(pl_module.network.blocks[0].mlp.proj.weight, random.Random(0))  # type: ignore[union-attr, index]
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "resume-000003.ckpt")


def test_a_state_that_changed_is_not_saved(tmp_path: Path) -> None:
    stop = IntegrityStop(SEED, tmp_path, True, 0)
    with pytest.raises(IntegrityError, match="weights"):
        fit(tmp_path, gpt(), steps=5, callbacks=[stop, Saves()], log_every_n_steps=100)
    assert not list(tmp_path.glob("*.ckpt"))


class OwnStep(GPTModule):
    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        return super().training_step(batch, batch_idx)


def test_a_module_that_would_ask_no_guard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="OwnStep has a training_step of its own"):
        fit(
            tmp_path,
            lambda **sizes: OwnStep(n_heads=2, **SMALL, **sizes),
            callbacks=[IntegrityStop(SEED, tmp_path, True, 0)],
        )


class Costs(Callback):
    """CPU time of a step, and of what the guards do in one."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.guards: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.began = time.process_time()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.steps.append(time.process_time() - self.began)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: Any = pl_module
        for _ in range(20):
            began = time.process_time()
            module.guards.before_forward(module, 0)
            module.guards.before_update(module)
            module.guards.after_update(module)
            self.guards.append(time.process_time() - began)
        assert module.guards.findings() == (0, [])


@pytest.mark.stress
@pytest.mark.parametrize(
    ("n_layers", "d_model", "batch_size"), [(1, 8, 4), (4, 128, 16), (8, 512, 16)], ids=str
)
def test_what_the_guards_cost(
    tmp_path: Path, record_property: Callable[[str, Any], None], n_layers: int, d_model: int, batch_size: int
) -> None:
    """Printed, and asserted nowhere: a figure of a machine and its load."""
    costs = Costs()
    make = gpt(n_layers=n_layers, d_model=d_model, n_heads=2)
    arguments: dict[str, Any] = {"steps": 6, "block_size": 128, "batch_size": batch_size}
    module = fit(tmp_path, make, callbacks=[IntegrityStop(SEED, tmp_path, True, 2), costs], **arguments)
    once, twice, guards = (
        statistics.median(each) * 1e3 for each in (costs.steps[2::2], costs.steps[3::2], costs.guards[2:])
    )
    n = sum(p.numel() for p in module.parameters())
    said = f"{n_layers} x {d_model}: checksums {guards / once:.2%} of a step, a step made twice {twice / once:.2f} steps"
    record_property("figure", said)
    print(
        f"{said}; {n:,} parameters, {batch_size * 128:,} tokens, a step {once:.2f} ms of CPU time, checksums {guards:.3f} ms"
    )


# -- the sums ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8]
)
@pytest.mark.parametrize("n", [1, 3, 4, 1001])
def test_each_bit_of_any_type_counts(dtype: torch.dtype, n: int) -> None:
    torch.manual_seed(0)
    owner = {"x": (torch.randn(n) * 3).to(dtype), "y": torch.ones(n)}
    sums = Checksums([Place("kind", key, owner, key) for key in owner])
    sums.note()
    raw = owner["x"].view(torch.uint8).numpy()
    draw = random.Random(0)
    for _ in range(20):
        place, bit = draw.randrange(len(raw)), 1 << draw.randrange(8)
        raw[place] ^= bit
        sums.compare(3)
        assert sums.findings()[0] == 3
        raw[place] ^= bit
        sums = Checksums([Place("kind", key, owner, key) for key in owner])
        sums.note()
        sums.compare(3)
        assert sums.findings() == (0, [])


def test_sums_wrap_around_and_large_tensors_are_alone() -> None:
    owner = {"large": torch.full((GROUP_BYTES // 8,), 2**30, dtype=torch.int32), "small": torch.ones(3)}
    sums = Checksums([Place("kind", key, owner, key) for key in owner])
    sums.note()
    owner["large"][12345] ^= -(2**31)
    sums.compare(1)
    assert sums.findings() == (
        1,
        ["kind: large changed in memory (by one bit, number 31 of a 32-bit word, if by no more than one)"],
    )
