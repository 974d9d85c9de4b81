import copy
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn
from unseen_architecture import N_LAYERS, RecordingLogger, UnseenModule, UnseenNetwork, train, windows

from app.analysis import figures
from app.analysis.depth_time import About
from app.records import Axis, LanguageModelOutput, Measure
from callbacks import DepthTimeFigures, RouteFractions
from callbacks.watcher import log_details

MEASURES = {
    "depth/lanes",
    "depth/halted",
    "depth/grid",
    "depth/doubt",
    "depth/experts_used",
    "depth/experts_liked",
    "depth/slope",
}


class Other(Callback):
    """Logs details as the watchers of weights do."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        record = outputs["record"]
        step = float(record.step)
        details = {
            "weights/zero": [step, 2.0, 3.0],
            "weights/flips": np.array([3, 4, 5]),
            "weights/lanes": [1.0, 2.0, 3.0],  # of this name there is a measure
            "weights/by_name": {"head.weight": step, "embedding.weight": 0.0},
            "weights/by_layer": {"l00": 1.0, "l01": 2.0, "l02": step},
            "weights/ragged": [[1.0], [2.0, 3.0]],
            "weights/text": ["a"],
            "weights/whole": {"head.weight": [1.0, 2.0]},
        }
        about = {"weights/flips": About("flips of a step", "weights", 4.0)}
        log_details(trainer, details, record.step, about)


def _validated(callbacks: list[Callback], steps: int = 6, **options: Any) -> RecordingLogger:
    module = UnseenModule(network=copy.deepcopy(NETWORK))
    return train(module, callbacks, steps=steps, limit_val_batches=1, **{"val_check_interval": 2, **options})


NETWORK = UnseenNetwork()


@pytest.fixture
def sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure is then all that it would be drawn from."""

    def sketch(*panels: Any) -> bytes:
        return repr([(rows, kept.edges.tolist(), kept.values.tolist()) for rows, kept in panels]).encode()

    monkeypatch.setattr(figures, "draw_quantity", lambda rows, kept, stamp: sketch((rows, kept)))
    monkeypatch.setattr(figures, "draw_group", lambda name, group, stamp: sketch(*group.values()))


def test_an_unseen_architecture_gets_figures() -> None:
    callback = DepthTimeFigures(every_n_validations=2)
    logger = _validated([RouteFractions(), callback], num_sanity_val_steps=1)
    assert {tag for tag, *_ in logger.figures} == MEASURES
    assert sorted({step for *_, step in logger.figures}) == [2, 6]
    assert all(png.startswith(b"\x89PNG") for _, png, _ in logger.figures)
    rows, kept = callback.kept["depth/lanes"][""]
    assert (rows.kind, rows.entries, rows.layers) == ("share", ("left", "right"), ("0", "1", "2"))
    assert kept.steps == [1, 2, 3, 4, 5, 6]


def test_what_is_drawn_is_what_was_measured() -> None:
    callback = DepthTimeFigures()
    train(UnseenModule(network=copy.deepcopy(NETWORK)), [callback], steps=3)
    x, _ = windows(24)
    for step in range(3):
        output = LanguageModelOutput(torch.empty(0), None, torch.zeros(()), [x[8 * step : 8 * step + 8]])
        for name, measure in NETWORK.measures(output).items():
            _, kept = callback.kept[f"depth/{name}"][""]
            np.testing.assert_allclose(kept.values[:, step], measure.values.flatten(), rtol=1e-6)


@pytest.mark.usefixtures("sketched")
@pytest.mark.parametrize("is_first", [True, False])
def test_details_of_other_callbacks_are_drawn_too(is_first: bool) -> None:
    callback = DepthTimeFigures()
    logger = _validated([callback, Other()] if is_first else [Other(), callback])
    assert {tag for tag, *_ in logger.figures} - MEASURES == {"weights/layers", "weights/by_name"}
    assert set(callback.kept["weights/layers"]) == {"zero", "flips", "by_layer"}
    rows, _ = callback.kept["weights/layers"]["flips"]
    assert (rows.meaning, rows.unit, rows.neutral) == ("flips of a step", "weights", 4.0)
    rows, kept = callback.kept["weights/by_name"]["by_name"]
    assert rows.layers == ("head.weight", "embedding.weight")
    assert kept.values[0].tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.usefixtures("sketched")
def test_a_resumed_run_draws_what_an_uninterrupted_one_does() -> None:
    whole = DepthTimeFigures()
    logger = _validated([Other(), whole])
    first = DepthTimeFigures()
    _validated([Other(), first], steps=4)
    second = DepthTimeFigures()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for tag, panels in whole.kept.items():
        for title, (rows, kept) in panels.items():
            restored_rows, restored = second.kept[tag][title]
            assert restored_rows == rows
            for step, column in zip(kept.steps[4:], kept.values.T[4:], strict=True):
                restored.add(step, column)
    trainer = _trainer(logger=RecordingLogger(), step=6)
    second.on_validation_end(trainer, UnseenModule())
    expected = {tag: png for tag, png, step in logger.figures if step == 6}
    assert {tag: png for tag, png, _ in trainer.loggers[0].figures} == expected


def _trainer(logger: RecordingLogger, step: int, **changes: Any) -> Any:
    values = {
        "sanity_checking": False,
        "state": SimpleNamespace(fn=TrainerFn.FITTING),
        "global_step": step,
        "max_steps": 10,
        "is_global_zero": True,
        "default_root_dir": "run",
        "loggers": [logger],
    }
    return SimpleNamespace(**(values | changes))


@pytest.mark.usefixtures("sketched")
def test_only_rank_zero_draws_and_only_in_training() -> None:
    callback = DepthTimeFigures()
    train(UnseenModule(network=copy.deepcopy(NETWORK)), [callback])
    logger = RecordingLogger()
    for changes in (
        {"is_global_zero": False},
        {"sanity_checking": True},
        {"state": SimpleNamespace(fn=TrainerFn.VALIDATING)},
        {"loggers": []},
    ):
        callback.on_validation_end(_trainer(logger, 1, **changes), UnseenModule())
    assert logger.figures == []


@pytest.mark.usefixtures("sketched")
def test_the_first_every_nth_and_the_last_validation() -> None:
    logger = _validated([DepthTimeFigures(every_n_validations=3)], steps=6, val_check_interval=1)
    assert sorted({step for *_, step in logger.figures}) == [1, 4, 6]
    with pytest.raises(ValueError, match="every_n_validations is 0; it must be >= 1"):
        DepthTimeFigures(every_n_validations=0)


@pytest.mark.usefixtures("sketched")
def test_weights_and_random_numbers_are_left_alone() -> None:
    found = []
    for callbacks in ([], [Other(), DepthTimeFigures()]):
        module = UnseenModule(network=copy.deepcopy(NETWORK))
        torch.manual_seed(0)
        train(module, callbacks, steps=4, limit_val_batches=1, val_check_interval=2)
        found.append([*module.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_what_a_network_reports_may_change_shape() -> None:
    callback = DepthTimeFigures()
    train(UnseenModule(network=copy.deepcopy(NETWORK)), [callback])
    state = callback.state_dict()
    rows = state["kept"]["depth/doubt"][""]["rows"]
    state["kept"]["depth/doubt"][""]["rows"] = rows | {"layers": ("0", "1")}
    callback.load_state_dict(state)
    train(UnseenModule(network=copy.deepcopy(NETWORK)), [callback])
    assert len(callback.kept["depth/doubt"][""][0].layers) == N_LAYERS


class Counting(UnseenNetwork):
    """Counts what never happens, and what does."""

    def measures(self, output: LanguageModelOutput) -> dict[str, Any]:
        layer = (Axis("layer"),)
        return {
            "never": Measure(torch.zeros(3), layer, "count", reduce="sum"),
            "often": Measure(torch.ones(3), layer, "count", reduce="sum", meaning="what happens"),
        }


@pytest.mark.usefixtures("sketched")
def test_what_is_zero_everywhere_is_not_drawn() -> None:
    callback = DepthTimeFigures()
    logger = train(UnseenModule(network=Counting()), [callback], limit_val_batches=1)
    assert {tag for tag, *_ in logger.figures} == {"depth/often"}
    assert callback.kept["depth/often"][""][0].meaning == "what happens"


class Mute(UnseenNetwork):
    def measures(self, output: LanguageModelOutput) -> dict[str, Any]:
        return {}


@pytest.mark.usefixtures("sketched")
def test_a_network_without_layers_is_told_once() -> None:
    with pytest.warns(UserWarning, match="DepthTimeFigures has no effect") as told:
        train(UnseenModule(network=Mute()), [DepthTimeFigures()], steps=4, limit_val_batches=1, val_check_interval=2)  # fmt: skip
    assert len([w for w in told if "no effect" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*no effect.*")
        logger = train(UnseenModule(network=Mute()), [Other(), DepthTimeFigures()], limit_val_batches=1)
    assert {tag for tag, *_ in logger.figures} == {"weights/layers", "weights/by_name"}
