import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.analysis.comparison import Run, compare
from app.analysis.html import Markup, element, escaped, table
from app.analysis.report import Material, read_lines, report
from app.analysis.report.chart import Line, Scale, line_chart
from app.analysis.report.findings import findings

HOSTILE = "</pre></script><script>alert('x')</script><img src=x onerror=alert(1)>\"'&"


class Reader(HTMLParser):
    """Elements that are open, those that came, and the text between them."""

    VOID = ("meta", "img", "input", "br")

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
        "Tilelli",
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
    assert sum(tag == "svg" for tag, _ in Reader(page).elements) == 2
    assert sum(tag == "img" for tag, _ in Reader(page).elements) == 1


def test_several_runs() -> None:
    page = _report(_material("r/a", 1), _material("r/b", 2), _material("r/c", 3, d_model=16))
    assert is_self_contained(page)
    text = Reader(page).text
    assert "3 runs in 2 groups" in text
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
    material.figures = {HOSTILE: b"\x89PNG\r\n\x1a\n"}
    other = _material("r/other", d_model=16)
    for page in (_report(material, notes=(HOSTILE,)), _report(material, other)):
        assert is_self_contained(page)
        reader = Reader(page)
        assert reader.text.count("<script>alert('x')</script>") >= 9
        assert not any(tag == "script" for tag, _ in reader.elements)
        assert not any(name.startswith("on") for _, attributes in reader.elements for name in attributes)


def test_size_is_bounded() -> None:
    materials = []
    for number in range(9):
        material = _material(f"r/{number}", d_model=number, n=3000)
        material.samples = [{"step": i, "key": "samples/0", "text": "x" * 100_000} for i in range(50)]
        material.figures = {f"depth-{i}": b"\x89PNG" + bytes(2**20) for i in range(5)}
        material.run.configuration["model.init_args.long"] = "y" * 10**6
        material.health = [{"step": i, "key": str(i), "state": "begins"} for i in range(5000)]
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
    (shown,) = findings({"r": _material("r", health=lines)})
    rows = re.findall(r"<tr><td>([^<]*)</td><td>([^<]*)", shown)
    assert rows == [
        ("20 – still so", "low_entropy"),
        ("40 – still so", "dead_bank"),
        ("10 – 30", "dead_bank"),
    ]


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
    (points,) = re.findall(r'points="([^"]*)"', line_chart([Line(x, y, 0)], "steps", "loss", log_x=True))
    assert len(points.split()) == 3
    assert "Nothing logged" in line_chart([Line(x, y * np.nan, 0)], "steps", "loss")
    assert "Nothing logged" in line_chart([], "steps", "loss")
    assert "<svg" in line_chart([Line(x[:1], y[:1], 0)], "steps", "loss")
    assert "<svg" in line_chart([Line(x, -x, 0, spread=x)], "steps", "loss")


@pytest.mark.parametrize(
    ("low", "high", "logarithmic"), [(0.0, 7.0, False), (1.2, 4.8, True), (1e3, 1e8, True), (64, 2e4, True)]
)
def test_ticks_are_inside(low: float, high: float, logarithmic: bool) -> None:
    scale = Scale(low, high, 0.0, 100.0, logarithmic)
    ticks = scale.ticks(6)
    assert 2 <= len(ticks) <= 10
    places = scale(np.array(ticks))
    assert (places >= -1e-6).all() and (places <= 100 + 1e-6).all() and (np.diff(places) > 0).all()
