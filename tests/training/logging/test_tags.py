"""Which numbers TensorBoard shows from when on."""

from app.training.logging.tags import Changing, tag_of


def test_objectives_are_shown_at_once_and_all_else_once_it_changes() -> None:
    shown = Changing()
    first = {
        "train/loss": 2.0,
        "train/lr": 0.1,
        "train/aux_loss": 0.0,
        "balance/dead_banks": 0.0,
        "speed/step_ms": 5.0,
    }
    assert [*shown.of(first)] == ["train/loss", "train/lr", "speed/step_ms"]
    assert [*shown.of({"train/loss": 2.0, "train/aux_loss": 0.0})] == ["train/loss"], "a network without one"
    assert [*shown.of({"train/aux_loss": 0.1, "balance/dead_banks": 1.0})] == [
        "train/aux_loss",
        "balance/dead_banks",
    ]


def test_the_order_of_the_cards_of_training() -> None:
    keys = ["train/aux_loss", "train/loss", "train/grad_norm", "train/lr"]
    assert sorted(map(tag_of, keys)) == ["train/grad_norm", "train/loss", "train/loss, auxiliary", "train/lr"]
