"""Pages as a person has them, in a headless Chromium: widths, light and dark, keys, contrast, no network."""

import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.app.conftest import Reference
from tests.support import runs
from tests.support.application import Application, environment
from tests.support.browser import CHROMIUM, Browser

pytestmark = [
    pytest.mark.process,
    pytest.mark.stress,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here"),
]
WIDTHS = (360, 1280, 1920)
PAGES = ("one.html", "several.html", "trace.html", "two.html")


@pytest.fixture(scope="module")
def pages(application: Application, reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Report and trace of one run, report and trace of several."""
    folder = tmp_path_factory.mktemp("pages")
    other = runs.copied(reference.clean, folder / f"a_{'long' * 20}_name")  # wider than a phone, and one word
    config = other / "config.yaml"
    config.write_text(
        re.sub(r"^( *)learning_rate: .*", r"\1learning_rate: 0.5", config.read_text(), flags=re.MULTILINE)
    )
    text = ("--text", "the quick brown fox jumps over the lazy dog\n" * 9)
    for words in (
        ("report", reference.clean, "--output", "one.html"),
        ("report", reference.clean, other, reference.baseline, "--output", "several.html"),
        ("trace", reference.clean, *text, "--output", "trace.html"),
        ("trace", reference.clean, reference.baseline, *text, "--output", "two.html"),
    ):
        ended = application.run(*words, cwd=folder)
        assert ended.code == 0, ended
    return folder


@pytest.mark.parametrize("is_dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_is_readable_and_asks_for_nothing(
    name: str, width: int, is_dark: bool, pages: Path, browser: Browser
) -> None:
    url = (pages / name).as_uri()
    page = browser.open(url, width, is_dark=is_dark)
    page.require_readable(url, width)
    page.close()


@pytest.mark.parametrize("name", ["one.html", "several.html"])
def test_heat_maps_answer_to_keys(name: str, pages: Path, browser: Browser) -> None:
    page = browser.open((pages / name).as_uri(), 1280)
    said = "document.activeElement.parentElement.querySelector('.map-read').textContent"
    page.evaluate("document.querySelector('#maps canvas[tabindex]').focus()")
    page.press("ArrowLeft")
    first = page.evaluate(said)
    assert re.search(r"step .*\d: \S", first), first
    page.press("ArrowLeft")
    assert page.evaluate(said) not in ("", first)
    tops = "[...document.querySelectorAll('.map-scale')].map((s) => [...s.children].map((c) => c.getBoundingClientRect()).filter((b) => b.top >= b.bottom || Math.abs(b.top + b.bottom - 2 * s.getBoundingClientRect().top - s.clientHeight) > 4).length)"
    assert set(page.evaluate(tops)) == {0}, "both ends of a scale stand beside it"
    n_painted = "(() => { const c = document.querySelector('#maps canvas[tabindex]'); return new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size; })()"
    assert page.evaluate(n_painted) > 10
    page.close()


def test_several_runs_stand_beside_each_other_in_a_chosen_layer(pages: Path, browser: Browser) -> None:
    page = browser.open((pages / "several.html").as_uri(), 1280)
    boxes = page.evaluate(
        "[...document.querySelectorAll('.map-figure')].map((f) => { const b = f.getBoundingClientRect(); return [b.left, b.top]; })"
    )
    assert page.evaluate("document.querySelector('#map-layer select').selectedOptions[0].text").endswith(
        "(last)"
    )
    assert page.evaluate("document.querySelector('#map-quantity select').options.length") >= 4
    assert len(boxes) >= 2 and boxes[0][1] == boxes[1][1] and boxes[0][0] < boxes[1][0], boxes
    page.close()


@pytest.mark.parametrize("name", ["trace.html", "two.html"])
def test_a_trace_answers_to_keys(name: str, pages: Path, browser: Browser) -> None:
    page = browser.open((pages / name).as_uri(), 1280)
    page.evaluate("document.getElementById('text').focus()")
    for _ in range(3):
        page.press("ArrowRight")
    details = page.evaluate("[...document.querySelectorAll('.detail')].map((d) => d.textContent)")
    assert all(detail.startswith("token 2: ") for detail in details), "the same character in both runs"
    layer = "document.getElementById('layer').value"
    before = page.evaluate(layer)
    page.press("n")
    assert int(page.evaluate(layer)) == int(before) + 1
    page.press("p")
    assert page.evaluate(layer) == before
    seen = """(() => {
      const measure = document.getElementById("measure"), shown = (id) => getComputedStyle(document.querySelector(id)).visibility;
      return [...measure.options].map((option) => {
        measure.value = option.value;
        measure.dispatchEvent(new Event("change"));
        return [shown("#layer"), shown("kbd")].join(" ");
      });
    })()"""
    assert set(page.evaluate(seen)) == {"hidden hidden", "visible visible"}, (
        "keys are named where they do something"
    )
    groups = page.evaluate("[...document.querySelectorAll('#measure optgroup')].map((g) => g.label)")
    assert "predictions" in groups and len(groups) >= 2
    page.close()


def test_tensorboard_begins_with_the_objectives(reference: Reference, browser: Browser) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", reference.clean, "--host", "127.0.0.1", "--port", str(port)],
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}/"
        deadline = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(f"{address}data/plugin/scalars/tags") as answer:
                    if b"train/loss" in answer.read():
                        break
            except OSError:
                pass
            assert time.monotonic() < deadline, "TensorBoard did not start"
            time.sleep(0.5)
        page = browser.open(f"{address}#timeseries", 1280)
        page.wait_for("/^train[0-9]+ card/m.test(document.body.innerText)")
        groups = re.findall(r"^(\S.*?)(\d+) cards?$", page.evaluate("document.body.innerText"), re.MULTILINE)
        names = [name for name, _ in groups]
        assert names[:2] == ["train", "val"], groups
        assert all(name.startswith("watched ") for name in names[2:]), groups
        assert all(int(n_cards) <= 12 for name, n_cards in groups if "in parts" not in name), groups
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280
        assert page.errors == []
        page.close()
    finally:
        server.kill()
        server.wait()
