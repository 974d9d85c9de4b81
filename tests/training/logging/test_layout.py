import re
from pathlib import Path

from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata

from app.training.logging.layout import custom_scalars
from app.training.logging.loggers import OUTCOMES, RunFilesLogger, TensorBoardRunLogger
from app.training.logging.tags import tag_of
from app.training.options.hyperparameters import chosen

KEYS = [
    "train/loss", "val/loss", "train/grad_norm", "tokens_seen",
    "routes/share/slow", "routes/share/slow/min", "routes/share/slow/max", "routes/share/slow/l00", "routes/share/slow/l01",
    "routes/share/fast", "routes/share/worst_layer",
    "angles/own", "angles/own/min", "angles/own/max", "angles/own/head", "angles/own/embedding", "angles/own/worst_layer",
    "angles/size", "angles/size/min", "angles/size/max", "angles/size/outside", "angles/size/worst_layer",
    "speed/step_ms",
]  # fmt: skip
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000030000000208020000001216f14d0000000b49444154789c6360400600000e0001"
    "1a1d5f3c0000000049454e44ae426082"
)


def plain(layout: dict) -> dict:
    """A layout with its regular expressions as the tags that they stand for."""
    return {
        category: {
            title: (kind, [tag.replace("\\", "") for tag in tags]) for title, (kind, tags) in charts.items()
        }
        for category, charts in layout.items()
    }


def test_keys_that_belong_together_share_a_chart() -> None:
    assert plain(custom_scalars(KEYS)) == {
        "objective": {
            "loss, nats per token": ("Multiline", ["^train/loss$", "^val/loss$"]),
            "gradient norm": ("Multiline", ["^train/grad_norm$"]),
        },
        "routes": {
            "share": (
                "Multiline",
                ["^watched routes, in parts/share/slow$", "^watched routes, in parts/share/fast$"],
            ),
            "share slow, over layers": (
                "Margin",
                [
                    "watched routes, in parts/share/slow",
                    "watched routes, in parts/share/slow/min",
                    "watched routes, in parts/share/slow/max",
                ],
            ),
            "worst layer, by number": ("Multiline", ["^watched routes, in parts/share/worst_layer$"]),
        },
        "angles": {
            "own, over layers": (
                "Margin",
                [
                    "watched angles/own",
                    "watched angles, in parts/own/min",
                    "watched angles, in parts/own/max",
                ],
            ),
            "size, over layers": (
                "Margin",
                [
                    "watched angles/size",
                    "watched angles, in parts/size/min",
                    "watched angles, in parts/size/max",
                ],
            ),
            "own, by part": (
                "Multiline",
                ["^watched angles, in parts/own/head$", "^watched angles, in parts/own/embedding$"],
            ),
            "size outside": ("Multiline", ["^watched angles, in parts/size/outside$"]),
            "worst layer, by number": (
                "Multiline",
                ["^watched angles, in parts/own/worst_layer$", "^watched angles, in parts/size/worst_layer$"],
            ),
        },
        "speed": {"step, milliseconds": ("Multiline", ["^watched speed/step_ms$"])},
        "routes, by layer": {
            "share slow": (
                "Multiline",
                ["^watched routes, in parts/share/slow/l00$", "^watched routes, in parts/share/slow/l01$"],
            ),
        },
    }


def test_every_key_of_a_group_is_on_a_chart() -> None:
    charted = {
        tag.strip("^$").replace("\\", "")
        for charts in custom_scalars(KEYS).values()
        for _, tags in charts.values()
        for tag in tags
    }
    assert charted == {tag_of(key) for key in KEYS if key != "tokens_seen"}


def test_every_tag_is_found_by_its_chart_alone() -> None:
    for charts in custom_scalars(KEYS).values():
        for kind, tags in charts.values():
            if kind == "Multiline":
                for tag in tags:
                    assert len([key for key in KEYS if re.match(tag, tag_of(key))]) == 1


def _events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def _layout(folder: Path) -> layout_pb2.Layout:
    newest = _events(folder).Tensors("custom_scalars__config__")[-1]
    return layout_pb2.Layout.FromString(newest.tensor_proto.string_val[0])


def test_the_newest_layout_has_all_keys(tmp_path: Path) -> None:
    logger = TensorBoardRunLogger(tmp_path)
    logger.log_metrics({"train/loss": 1.0}, 1)
    logger.log_metrics({"routes/share": 1.0, "routes/dead": 0.0}, 1)
    logger.log_metrics({"train/loss": 1.0, "routes/share": 0.5, "routes/dead": 0.0}, 2)
    logger.flush()
    assert [category.title for category in _layout(tmp_path).category] == ["objective", "routes"]
    logger.log_metrics({"val/loss": 1.0}, 2)
    logger.save()
    (loss,) = _layout(tmp_path).category[0].chart
    assert list(loss.multiline.tag) == ["^train/loss$", "^val/loss$"]
    assert len(_events(tmp_path).Tensors("custom_scalars__config__")) == 3, "one as keys come, none without"


def test_a_resumed_run_has_one_layout_and_one_entry_in_the_table(tmp_path: Path) -> None:
    for launch, resume_step in enumerate((None, 1)):
        logger = TensorBoardRunLogger(tmp_path, resume_step)
        logger.log_configuration(
            {"seed": 7, "d_model": 8, "is_tied": True, "sizes": [1, 2], "learning_rate": 0.5}
        )
        for step in range(1, 4) if launch == 0 else range(2, 5):
            logger.log_metrics({"train/loss": 1.0 / step, "val/loss": 2.0 / step + launch}, step)
        logger.finalize("success")
        logger.experiment.close()
    events = _events(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()], "one run directory"
    assert [(event.step, event.tensor_proto.float_val[0]) for event in events.Tensors("val/loss")][-1] == (
        4,
        1.5,
    )
    assert [event.step for event in events.Tensors("val/loss")] == [1, 2, 3, 4]
    assert len(_layout(tmp_path).category) == 1
    started = metadata.parse_session_start_info_plugin_data(
        events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    )
    assert (started.hparams["Seed"].string_value, started.hparams["d_model"].string_value) == ("7", "8")
    assert started.hparams["Learning_rate"].number_value == 0.5
    assert started.hparams["is_tied"].string_value == "True"
    assert started.hparams["sizes"].string_value == "[1, 2]"
    experiment = metadata.parse_experiment_plugin_data(
        events.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    )
    assert [info.name.tag for info in experiment.metric_infos] == list(OUTCOMES)
    assert "hp_metric" not in events.Tags()["tensors"]


def test_a_figure_is_an_image_and_a_file(tmp_path: Path) -> None:
    board, files = TensorBoardRunLogger(tmp_path), RunFilesLogger(tmp_path)
    for step in (1, 2):
        for logger in (board, files):
            logger.log_figure("depth/a b<é>", PNG, step)
    board.flush()
    (figure,) = (tmp_path / "figures").iterdir()
    assert figure.name.startswith("depth-a-b-")
    assert figure.read_bytes() == PNG
    events = _events(tmp_path).Tensors("watched depth/a b<é>")
    assert [event.step for event in events] == [1, 2]
    width, height, image = events[0].tensor_proto.string_val
    assert (width, height, image) == (b"3", b"2", PNG)


def test_texts_are_lines_that_a_resume_rewinds(tmp_path: Path) -> None:
    logger = RunFilesLogger(tmp_path)
    for step in (1, 2):
        logger.log_text("samples/0", f"a\n<b> {step}", step)
    resumed = RunFilesLogger(tmp_path, resume_step=1)
    resumed.log_text("samples/0", "again", 2)
    assert (tmp_path / "samples.jsonl").read_text() == (
        '{"step": 1, "key": "samples/0", "text": "a\\n<b> 1"}\n{"step": 2, "key": "samples/0", "text": "again"}\n'
    )


class Base:
    def __init__(self, rate: float = 0.1, decay: float = 0.0, **more: object) -> None:
        pass


class Made(Base):
    def __init__(self, width: int, rate: float = 0.2, **more: object) -> None:
        pass


def test_defaults_are_left_out_of_the_table() -> None:
    arguments = {"width": 8, "rate": 0.1, "decay": 0.0, "unset": None}
    configuration = {
        "seed": 1,
        "trainer": {"max_steps": 5},
        "model": {"class_path": "x.Made", "init_args": arguments},
    }
    assert chosen(configuration, model=Made(1)) == {
        "seed": 1, "max_steps": 5, "model": "Made", "width": 8, "rate": 0.1,
    }  # fmt: skip


def test_objectives_are_sorted_before_what_is_watched() -> None:
    keys = [
        "balance/dead_banks",
        "balance/dead_banks/dense",
        "speed/step_ms",
        "tokens_seen",
        "train/loss",
        "val/loss",
    ]
    assert sorted(map(tag_of, keys)) == [
        "train/loss", "val/loss", "watched balance, in parts/dead_banks/dense", "watched balance/dead_banks",
        "watched run/tokens_seen", "watched speed/step_ms",
    ]  # fmt: skip


def test_what_never_changes_has_no_curve_whatever_the_launches(tmp_path: Path) -> None:
    def numbers(step: int) -> dict[str, float]:
        return {
            "train/loss": 1.0,
            "balance/dead": 0.0,
            "balance/late": float(step > 3),
            "balance/max": 1.0 / step,
        }

    for folder, launches in (("whole", [range(1, 7)]), ("resumed", [range(1, 5), range(3, 7)])):
        (tmp_path / folder).mkdir()
        for steps in launches:
            resume = None if steps[0] == 1 else steps[0] - 1
            loggers = [
                TensorBoardRunLogger(tmp_path / folder, resume),
                RunFilesLogger(tmp_path / folder, resume),
            ]
            for step in steps:
                for logger in loggers:
                    logger.log_metrics(numbers(step), step)
            for logger in loggers:
                logger.finalize("success")
        events = _events(tmp_path / folder)
        assert not any("dead" in tag for tag in events.Tags()["tensors"])
        assert {e.step for e in events.Tensors("watched balance/late")} == {4, 5, 6}
        assert [e.step for e in events.Tensors("watched balance/max")] == [2, 3, 4, 5, 6]
