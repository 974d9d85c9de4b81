import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.analysis.comparison import Run, compare
from app.analysis.depth_time import DepthTime, Rows
from app.analysis.figures import draw_quantity
from app.analysis.html import Markup, element, escaped, table
from app.analysis.report import Material, read_lines, report
from app.analysis.report.chart import Line, Scale, key, line_chart
from app.analysis.report.findings import findings

HOSTILE = "</pre></script><script>alert('x')</script><img src=x onerror=alert(1)>\"'&"


class Reader(HTMLParser):
    """Elements that are open, those that came, and the text between them."""

    VOID = ("meta", "img", "input", "br", "wbr")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def is_self_contained(page: str) -> bool:
    reader = Reader(page)
    sources = [attributes.get("src") or attributes.get("href") for _, attributes in reader.elements]
    loads = re.search(r"url\(|@import|https?://|fetch\(|XMLHttpRequest", page)
    return not loads and all(source is None or source.startswith("data:") for source in sources)


def _material(path: str, seed: int = 1, d_model: int = 8, n: int = 20, **more: Any) -> Material:
    rows = []
    for step in range(1, n + 1):
        rows.append({"step": float(step), "tokens_seen": 64.0 * step, "speed/seconds": 0.5 * step,
                     "train/loss": 3 / step + 0.1 * seed})  # fmt: skip
        if step % 5 == 0:
            rows.append({"step": float(step), "val/loss": 4 / step + 0.1 * seed, "val/bpb": 1.0})
    configuration = {"seed": seed, "model.class_path": "a.TilelliModule", "model.init_args.d_model": d_model}
    return Material(Run(path, "finished", configuration, {}, rows, {"parameters": 1234}), **more)


def _report(*materials: Material, notes: tuple[str, ...] = ()) -> str:
    named = {material.run.path: material for material in materials}
    return report(compare([material.run for material in materials]), named, notes, "0.1")


def test_one_run() -> None:
    png = b"\x89PNG\r\n\x1a\n" + b"0" * 50
    samples = [{"step": step, "key": "samples/0", "text": f"text {step}"} for step in range(1, 9)]
    launches = [{"command": ["app", "fit"], "host": "h", "device": "cpu", "packages": {"torch": "2.11"}}]
    page = _report(_material("runs/a/1", samples=samples, launches=launches, figures={"depth-share": png}))
    assert is_self_contained(page)
    text = Reader(page).text
    for said in (
        "Tilelli: 1",
        "0.3000",
        "1,234",
        "text 8",
        "text 7",
        "text 6",
        "text 1",
        "app fit",
        "torch 2.11",
        "d_model",
    ):
        assert said in text, said
    assert "text 5" not in text
    charts = [attributes for tag, attributes in Reader(page).elements if attributes.get("class") == "chart"]
    assert [chart["aria-label"] for chart in charts] == [
        "Over tokens: loss, nats per token over tokens seen, thousands",
        "Over time: loss, nats per token over training time without validation, seconds",
    ]
    assert sum(tag == "img" for tag, _ in Reader(page).elements) == 1


def test_several_runs() -> None:
    page = _report(_material("r/a", 1), _material("r/b", 2), _material("r/c", 3, d_model=16))
    assert is_self_contained(page)
    text = Reader(page).text
    assert "Comparison of 3 runs in 2 groups" in text
    assert "Bold: the lowest val loss." in text
    assert "0.3500 ± 0.0707" in text, "mean and sample standard deviation over seeds"
    assert "model.init_args.d_model816" in text
    assert "<polygon" in page, "a band"


def test_nothing_logged() -> None:
    bare = Material(Run("r", "killed", {}))
    assert is_self_contained(_report(bare))
    text = Reader(_report(bare, notes=("r: nothing logged yet",))).text
    for said in (
        "killed at step 0",
        "Nothing logged",
        "No figures",
        "None: callbacks.TextSamples",
        "run.json does not say",
        "nothing logged yet",
    ):
        assert said in text, said


def test_hostile_texts_are_shown_and_not_run() -> None:
    material = _material(f"r/{HOSTILE}", samples=[{"step": 1, "key": HOSTILE, "text": HOSTILE}])
    material.run.configuration |= {HOSTILE: HOSTILE}
    material.status = {"reason": HOSTILE}
    material.launches = [
        {"command": [HOSTILE], "host": HOSTILE, "changes": [HOSTILE], "packages": {"torch": HOSTILE}}
    ]
    material.health = [
        {"step": 1, "key": "x", "state": "begins", "condition": HOSTILE, "place": HOSTILE, "what": HOSTILE}
    ]
    rows = Rows(HOSTILE, "share", (HOSTILE,), (HOSTILE, "b"), unit=HOSTILE, meaning=HOSTILE)
    kept = DepthTime(2)
    kept.add(1, [0.2, 0.8])
    material.figures = {HOSTILE: b"\x89PNG\r\n\x1a\n", "depth-x": draw_quantity(rows, kept, HOSTILE)}
    other = _material("r/other", d_model=16)
    for page in (_report(material, notes=(HOSTILE,)), _report(material, other)):
        assert is_self_contained(page)
        reader = Reader(page)
        assert reader.text.count("<script>alert('x')</script>") >= 9
        scripts = [attributes.get("type") for tag, attributes in reader.elements if tag == "script"]
        assert scripts == ["application/json", None], "the numbers of the figure, and what draws them"
        assert not any(name.startswith("on") for _, attributes in reader.elements for name in attributes)


@pytest.mark.stress
def test_size_is_bounded() -> None:
    materials = []
    for number in range(9):
        material = _material(f"r/{number}", d_model=number, n=3000)
        material.samples = [{"step": i, "key": "samples/0", "text": "x" * 100_000} for i in range(50)]
        material.figures = {f"depth-{i}": b"\x89PNG" + bytes(2**20) for i in range(5)}
        material.run.configuration["model.init_args.long"] = "y" * 10**6
        material.health = [
            {"step": i, "key": str(i), "state": "begins", "what": "w" * 5000} for i in range(5000)
        ]
        material.launches = [{"command": ["z" * 10**5]}] * 100
        materials.append(material)
    page = _report(*materials)
    assert len(page) < 20e6
    assert "more in the figures/" in page
    assert "more in health.jsonl" in page


def test_findings_have_a_beginning_and_an_end() -> None:
    lines = [
        {"step": 10, "key": "a", "state": "begins", "condition": "dead_bank", "place": "layer 1"},
        {"step": 20, "key": "b", "state": "begins", "condition": "low_entropy", "place": "layer 0"},
        {"step": 30, "key": "a", "state": "ends"},
        {"step": 40, "key": "a", "state": "begins", "condition": "dead_bank", "place": "layer 1"},
        {"step": 50, "key": "z", "state": "ends"},
    ]
    (shown,) = findings({"r": _material("r", health=lines)}, {"r": "A"})
    rows = re.findall(r"<tr><td[^>]*>([^<]*)</td><td>([^<]*)", shown)
    assert rows == [
        ("20 – still so", "low_entropy"),
        ("40 – still so", "dead_bank"),
        ("10–30", "dead_bank"),
    ]


def test_a_finding_of_several_places_is_one_row() -> None:
    lines = [
        {"step": 10, "key": key, "state": "begins", "condition": "one_sided", "place": f"layer {key}"}
        for key in "012"
    ]
    shown = "".join(findings({"r": _material("r", health=lines)}, {"r": "A"}))
    assert shown.count("one_sided") == 1 and "layer 0; layer 1; layer 2" in shown


def test_who_was_watched_is_said() -> None:
    watched, unwatched = _material("w"), _material("u")
    watched.run.configuration["trainer.callbacks.RunHealth"] = "yes"
    names = {"w": "A", "u": "B"}
    assert "watched and found nothing" in "".join(findings({"w": watched}, names))
    assert "Not watched" in "".join(findings({"u": unwatched}, names))
    both = "".join(findings({"w": watched, "u": unwatched}, names))
    assert "nothing found wrong: A." in both and "callbacks.RunHealth: B." in both


def test_what_decides_comes_first_and_the_rest_is_folded() -> None:
    one, other = _material("r/a"), _material("r/b", d_model=16)
    one.run.configuration |= {
        "trainer.callbacks.X.every": 1,
        "model.init_args.only": 1,
        "trainer.max_steps": 5,
    }
    other.run.configuration |= {"trainer.callbacks.X.every": 2, "model.class_path": "a.OtherModule"}
    one.run.context |= {"data.sha256": "a" * 64, "data.source": "stdlib"}
    other.run.context |= {"data.sha256": "b" * 64, "data.source": "stdlib"}
    page = _report(one, other)
    keys = re.findall(r"<code>(.*?)</code>", page[page.index("What differs") : page.index("Health")])
    assert [re.sub("<.*?>", "", key) for key in keys] == [
        "model.class_path",
        "model.init_args.d_model",
        "trainer.max_steps",
        "model.init_args.only",
        "trainer.callbacks.X.every",
        "data.sha256",
    ]
    text = Reader(page).text
    assert "a" * 12 + "…" in text and "a" * 13 not in text
    assert "Bold" not in text, "no loss is the lowest where the texts differ"


def test_what_would_steer_the_page_gets_a_sign() -> None:
    steering = "a\x00\x1b[31m\u202eb\ud800\u2066"
    page = _report(_material(f"r/{steering}", samples=[{"step": 1, "key": "k", "text": steering + "\n é🙂"}]))
    page.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page)
    assert Reader(page).text.count("a␀␛[31m⟨202E⟩b⟨D800⟩⟨2066⟩") >= 2
    assert "\n é🙂" in Reader(page).text


def test_lines_that_are_damaged_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    assert read_lines(path) == ([], 0)
    good = {"step": 3, "key": "samples/0", "text": "é"}
    path.write_text("\n".join([json.dumps(good), "{", "[]", '{"step": "3", "key": "a"}', '{"step": 4}']))
    assert read_lines(path) == ([good], 4)


def test_markup_is_escaped_once() -> None:
    assert escaped("<b>") == "&lt;b&gt;"
    assert escaped(escaped("<b>")) == "&lt;b&gt;"
    assert element("p", "<", Markup("<br>"), class_='"x"') == '<p class="&quot;x&quot;">&lt;<br></p>'
    assert table(["a"], [["<"]]).count("&lt;") == 1


def test_a_chart_leaves_out_what_is_not_finite() -> None:
    x = np.arange(1.0, 6.0)
    y = np.array([3.0, np.nan, 2.0, np.inf, 1.0])
    (points,) = re.findall(r'points="([^"]*)"', line_chart([Line(x, y, 0)], "steps", "loss"))
    assert len(points.split()) == 3
    assert "Nothing logged" in line_chart([Line(x, y * np.nan, 0)], "steps", "loss")
    assert "Nothing logged" in line_chart([], "steps", "loss")
    assert "<svg" in line_chart([Line(x[:1], y[:1], 0)], "steps", "loss")
    assert "<svg" in line_chart([Line(x, -x, 0, spread=x)], "steps", "loss")


def test_a_steep_start_leaves_the_chart() -> None:
    fast = _material("r/a", n=40)
    fast.run.rows[0]["train/loss"] = 1000.0
    page = _report(fast)
    assert "leave the frame: at the top" in page
    heights = [float(y) for y in re.findall(r'text-anchor="end">([\d.]+)<', page)]
    assert max(heights) < 20, "the scale is that of the rest"


def test_more_groups_than_colours_have_other_lines() -> None:
    looks = {str(key(number, "")) for number in range(20)}
    assert len(looks) == 20


@pytest.mark.parametrize(("low", "high"), [(0.0, 7.0), (1.2, 4.8), (4.99, 5.0), (-3.0, 2e8), (0.0, 2.048)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    scale = Scale(low, high, 0.0, 100.0)
    ticks = scale.ticks(7)
    assert 2 <= len(ticks) <= 8
    places = scale(np.array(ticks))
    assert (places >= -1e-6).all() and (places <= 100 + 1e-6).all() and (np.diff(places) > 0).all()
    step = f"{ticks[1] - ticks[0]:.3e}"
    assert step[:5] in ("1.000", "2.000", "5.000")
