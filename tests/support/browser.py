"""A headless Chromium for tests, spoken to over a pipe in its own protocol: nothing else is needed."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.descriptors import has_something

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECONDS = 60.0
#: of every text that is seen: the least contrast to what is behind it, and the texts below 4.5
CONTRAST = """(() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.slice(0, 3).map((x) => x / 255).map((x) => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.99) return colour;
    }
    return matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), low = [];
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.textContent.trim() || element.closest("script, noscript, [aria-hidden]") || !element.getClientRects().length) continue;
    const a = luminance(parse(getComputedStyle(element)[element.closest("svg") ? "fill" : "color"])), b = luminance(behind(element));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push(ratio.toFixed(2) + ": " + node.textContent.trim().slice(0, 40));
  }
  return low;
})()"""


class Browser:
    """One process; a ``with`` block ends it."""

    def __init__(self, folder: Path):
        assert CHROMIUM is not None
        to_browser, ours_out = os.pipe()
        ours_in, from_browser = os.pipe()
        self._out, self._in = ours_out, ours_in
        self._rest = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

        def hand_over() -> None:
            # The browser reads descriptor 3 and writes descriptor 4.
            low, high = os.dup2(to_browser, 20), os.dup2(from_browser, 21)
            os.dup2(low, 3)
            os.dup2(high, 4)

        self._process = subprocess.Popen(
            [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe",
             "--disable-dev-shm-usage", f"--user-data-dir={folder}"],
            pass_fds=(3, 4), preexec_fn=hand_over, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def open(self, url: str, width: int, height: int = 900, is_dark: bool = False) -> "Page":
        """A page that has loaded."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = Page(self, session, target)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        page.call("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        page.call("Emulation.setEmulatedMedia", {"features": [scheme]})
        page.call("Page.navigate", {"url": url})
        page.wait_for("document.readyState === 'complete'")
        return page

    def call(self, method: str, options: dict[str, Any] | None = None, session: str | None = None) -> Any:
        """The answer to one command; what happens meanwhile is kept in ``events``."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": options or {}}
        message |= {"sessionId": session} if session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + SECONDS
        while True:
            answer = self._next(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self.events.append(answer)

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready = has_something(self._in, max(deadline - time.monotonic(), 0))
            assert ready, "the browser does not answer"
            read = os.read(self._in, 1 << 20)
            assert read, "the browser has ended"
            self._rest += read
        text, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        return found


class Page:
    """One page of a :class:`Browser`."""

    def __init__(self, browser: Browser, session: str, target: str):
        self._browser, self._session, self._target = browser, session, target

    def call(self, method: str, options: dict[str, Any] | None = None) -> Any:
        return self._browser.call(method, options, self._session)

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", {"expression": script, "returnByValue": True})
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, script: str) -> None:
        """Waits until an expression is true."""
        deadline = time.monotonic() + SECONDS
        while not self.evaluate(script):
            assert time.monotonic() < deadline, f"never: {script}"
            time.sleep(0.1)

    def press(self, key: str, modifiers: int = 0) -> None:
        """One key, as a person presses it, with others held down (2 is Ctrl)."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        codes = {
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
            "Tab": 9,
            "Enter": 13,
            "Escape": 27,
        }
        code = codes.get(key, ord(key[0].upper()))
        pressed = {"key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", {"type": "keyDown", **pressed, **text})
        self.call("Input.dispatchKeyEvent", {"type": "keyUp", **pressed})

    def require_readable(self, url: str, width: int) -> None:
        """Nothing is wider than the page, closed or opened, faint, wrong or fetched from elsewhere."""
        assert self.evaluate("document.documentElement.scrollWidth") <= width
        opened = "document.querySelectorAll('details').forEach((d) => { d.open = true; }), document.body.scrollWidth"
        assert self.evaluate(opened) <= width
        assert self.evaluate(CONTRAST) == []
        assert self.errors == []
        assert {address for address in self.requests if not address.startswith("data:")} == {url}

    def picture(self, path: Path) -> None:
        """What is seen, as a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        self._browser.call("Target.closeTarget", {"targetId": self._target})

    def _own(self, method: str) -> list[dict[str, Any]]:
        return [
            event["params"]
            for event in self._browser.events
            if event.get("method") == method and event.get("sessionId") == self._session
        ]

    @property
    def errors(self) -> list[Any]:
        """Whatever stands red in the console."""
        said = [event for event in self._own("Runtime.consoleAPICalled") if event["type"] == "error"]
        entries = [event for event in self._own("Log.entryAdded") if event["entry"]["level"] == "error"]
        return [*self._own("Runtime.exceptionThrown"), *said, *entries]

    @property
    def requests(self) -> list[str]:
        """Addresses that the page has asked for."""
        return [event["request"]["url"] for event in self._own("Network.requestWillBeSent")]
