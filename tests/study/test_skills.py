"""Pictures of tasks: which are drawn, and that they are drawn whatever a row has."""

import io
from typing import Any

from app.study.skills import draw_difficulty, draw_state, tasks_of


def report() -> dict[str, Any]:
    rows = {}
    for label, share in (("gpt", 0.9), ("tilelli", 0.6)):
        for task in ("mqar", "mano", "memorization", "depo"):
            slices = {
                "mqar": {f"n_pairs_{n}": share - n / 40 for n in (4, 8, 16)},
                "mano": {"operations_1": share},
            }
            rows[f"{label}-{task}"] = {
                "label": label, "task": task, "figures": {"1": 1.0}, "accuracy": share, "state_bytes": 4096 if label == "gpt" else 700,
                "slices": slices.get(task, {}),
            }  # fmt: skip
    rows["failed"] = {"label": "gpt", "figures": {}, "n_planned": 1}
    rows["text"] = {"label": "gpt", "figures": {"1": 1.5}, "accuracy": None}
    return {"rows": rows}


def test_rows_with_an_accuracy_are_drawn_by_task() -> None:
    found = tasks_of(report())
    assert list(found) == ["mqar", "mano", "memorization", "depo"]
    assert all(list(rows) == ["gpt", "tilelli"] for rows in found.values())
    assert tasks_of({"rows": {"text": report()["rows"]["text"]}}) == {}


def test_both_pictures_are_pictures() -> None:
    for draw in (draw_difficulty, draw_state):
        target = io.BytesIO()
        draw(report(), target)
        assert target.getvalue().startswith(b"\x89PNG")
