"""The pictures of a study: each is drawn where there is something to draw, and asks one question."""

import io
from typing import Any

import numpy as np
import pytest

from app.study.multiplier import Point, curve, multiplier
from app.study.pages import TITLES, markdown, pictures_of
from app.study.statistics import Pooled

LADDER = [Point(float(flops), 1.1 + 0.6 * (flops / 1e14) ** -0.3, 3) for flops in np.geomspace(1e14, 1e15, 6)]


def row(label: str, loss: float, **more: Any) -> dict[str, Any]:
    return {
        "label": label, "figures": {"1": loss, "2": loss + 0.01}, "n_planned": 2, "tuned": {}, "mean": loss, "sd": 0.01,
        "interval": [loss - 0.02, loss + 0.02], "made_with": [], "times": {"seconds": 1.0, "tokens_per_second": None},
        **more,
    }  # fmt: skip


def report(**rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "study": "mine", "headline": "What it is worth", "about": "", "decides": "val/loss", "margin": 0.02, "against": "gpt",
        "ladder": "rung", "seeds": [1, 2], "spread": None, "rows": rows,
    }  # fmt: skip


def test_a_ladder_is_drawn_where_there_is_one() -> None:
    rungs = {
        f"rung{number}": row("rung", point.loss, flops=point.flops) for number, point in enumerate(LADDER)
    }
    assert list(pictures_of(report(**rungs))) == ["results.png"]
    worth = {"value": "1.50", "range": "1.2 to 1.8", "excludes_one": True}
    idea = row("idea_" + "long_" * 20, 1.5, flops=3e14, multiplier=worth, against="gpt")
    beyond = row("$idea", 1.0, flops=3e14, multiplier=worth | {"value": "> 3.3"})
    found = report(**rungs, idea=idea, beyond=beyond, gpt=row("gpt", 1.52, flops=3e14))
    assert list(pictures_of(found)) == ["results.png", "compute.png"]
    for draw in pictures_of(found).values():
        target = io.BytesIO()
        draw(found, target)
        assert target.getvalue().startswith(b"\x89PNG")
    page = markdown(found, list(pictures_of(found)))
    assert all(f"## {TITLES[name]}\n\n![{TITLES[name]}]({name})" in page for name in pictures_of(found))


def test_nothing_is_drawn_of_a_study_without_figures() -> None:
    assert pictures_of(report(gpt={"label": "gpt", "figures": {}, "n_planned": 2})) == {}


@pytest.mark.parametrize("worth", [0.8, 1.0, 1.4])
def test_the_curve_that_is_drawn_is_the_one_that_multipliers_are_read_from(worth: float) -> None:
    at, losses = curve(LADDER)
    assert losses[0] == pytest.approx(LADDER[0].loss) and losses[-1] == pytest.approx(LADDER[-1].loss)
    loss = float(np.interp(np.log(worth * 3e14), np.log(at), losses))
    found = multiplier(LADDER, Point(3e14, loss, 3), Pooled(1e-8, 10), n_draws=50)
    assert found.value == pytest.approx(worth, rel=1e-4)


def test_a_page_of_nothing_is_a_page() -> None:
    missing = {"label": "gpt", "figures": {}, "n_planned": 2, "unfinished": {"1": "waiting", "2": "waiting"}}
    page = markdown(report(gpt=missing) | {"about": "Unknown words are <unk>."})
    assert "\nUnknown words are &lt;unk>.\n" in page
    assert "| row | val/loss |\n| --- | --- |\n| gpt | not run |\n" in page
    assert "**Not whole: 2 of 2 runs are not finished.**" in page


def test_a_page_says_what_its_numbers_were_made_with() -> None:
    data = {"source": "text", "train_sha256": "0" * 64, "val_sha256": "1" * 64, "train_tokens": 2000}
    origin = {"data": data, "device": "a GPU", "torch": "2.11.0", "path": "graph", "commit": "abc"}
    page = markdown(report(gpt=row("gpt", 1.5, made_with=[origin, origin | {"source_diff_sha256": "2"}])))
    assert "- data: text, 2,000 tokens to train on, SHA-256 000000000000 and 111111111111.\n" in page
    assert "- device: a GPU.\n- PyTorch: 2.11.0.\n- steps: graph.\n- commit: abc, abc, changed.\n" in page


@pytest.mark.parametrize(("flops", "loss", "said"), [(4e15, 1.0, "> 0.25"), (4e13, 3.0, "< 2.5")])
def test_beyond_the_ladder_nothing_is_told_from_one_by_where_it_ends(
    flops: float, loss: float, said: str
) -> None:
    found = multiplier(LADDER, Point(flops, loss, 3), Pooled(1e-8, 10), n_draws=50)
    assert (str(found), found.excludes_one) == (said, False)
    inside = Point(flops, loss, 3)._replace(flops=5e14)
    assert multiplier(LADDER, inside, Pooled(1e-8, 10), n_draws=50).excludes_one
