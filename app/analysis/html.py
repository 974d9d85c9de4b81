"""Pages that are one file: no script, style, font or picture from anywhere else, in the reader's light or dark."""

import base64
import html
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

# Whatever a page quotes, it can neither load nor send anything.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --card: #f6f7f8; --ink: #1c1e21; --soft: #5c6470; --line: #d9dde2;
  --good: #0a7a53; --bad: #b3410b; --s0: #0072B2; --s1: #D55E00; --s2: #009E73; --s3: #B0558C; --s4: #B87A00;
  --s5: #3C8FC4; }
@media (prefers-color-scheme: dark) { :root { --paper: #17191c; --card: #202327; --ink: #e8eaed; --soft: #a0a8b3;
  --line: #3a3f46; --good: #4cc79a; --bad: #ff9a5c; --s0: #5AB4F0; --s1: #FF8A3D; --s2: #2FC79A; --s3: #E79ACB;
  --s4: #F5B942;
  --s5: #A5D8F8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.6rem 1.4rem 4rem; max-width: 74rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: break-word; /* a path is a single word, and may be wider than a phone */ }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; } p { margin: .3rem 0 .8rem; } .soft { color: var(--soft); }
code, pre, .mono { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: .9em; }
table { border-collapse: collapse; font-size: .92em; } th, td { padding: .28rem 1.1rem .28rem 0; text-align: left;
  vertical-align: top; border-bottom: 1px solid var(--line); } th { font-weight: 600; vertical-align: bottom; }
  td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; } td.number { white-space: nowrap; }
  td.long { overflow-wrap: anywhere; min-width: 14rem; } .scroll { overflow-x: auto; }
  /* A shade at the edge where a table goes on; what moves with the table covers it at the table's end. */
  .scroll { background: linear-gradient(to right, var(--paper) 1.2rem, transparent 2.4rem) local,
  linear-gradient(to left, var(--paper) 1.2rem, transparent 2.4rem) local,
  linear-gradient(to right, var(--soft), transparent .7rem), linear-gradient(to left, var(--soft), transparent .7rem);
  scrollbar-width: thin; }
@media (min-width: 45rem) { .scroll th:first-child, .scroll td:first-child { position: sticky; left: 0;
  background: var(--paper); } }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem;
  margin: .3rem 0 1rem;
  white-space: pre-wrap; overflow-wrap: anywhere; max-height: 26rem; overflow-y: auto; }
summary { cursor: pointer; font-weight: 600; padding: .2rem 0; } details { margin: .4rem 0; }
img { max-width: 100%; height: auto; border-radius: 6px; }
figure { margin: .4rem 0 1.2rem; } figcaption { margin-bottom: .2rem; font-weight: 600; }
"""


#: control characters, marks that turn the direction of what follows, halves of surrogate pairs
STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
#: letters of a word beyond which a cell of a table may break it anywhere
LONG_WORD = 28


class Markup(str):
    """Text that is HTML already; every other text is escaped where it enters a page."""


def escaped(value: object) -> Markup:
    """Any value as HTML text, with signs for what would steer the page in place of being read; markup stays."""
    return value if isinstance(value, Markup) else Markup(_quoted(value))


def sign(character: str) -> str:
    """What is shown in place of a character that would not be seen: a control picture, or its code point."""
    return chr(0x2400 + ord(character)) if ord(character) < 0x20 else f"⟨{ord(character):X}⟩"


def breakable(name: str) -> Markup:
    """A dotted name or a path that a line may break between its parts."""
    return Markup("".join(f"{escaped(part)}<wbr>" for part in re.split(r"(?<=[./])", name) if part))


def _quoted(value: object) -> str:
    return html.escape(STEERING.sub(lambda found: sign(found[0]), str(value)), quote=True)


def element(name: str, *children: object, **attributes: object) -> Markup:
    """``<name attributes>children</name>``, everything that is no markup escaped.

    Args:
        name: of the element.
        children: markup or texts.
        attributes: a trailing underscore is dropped (``class_``), the others become hyphens; None leaves one out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_quoted(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>{''.join(map(escaped, children))}</{name}>")


def table(header: Sequence[object], rows: Iterable[Sequence[object]], numbers: Iterable[int] = ()) -> Markup:
    """A table that scrolls where it does not fit; numbers and words stay whole, what is longer than a word breaks.

    Args:
        header: titles.
        rows: as many cells each.
        numbers: columns that are set to the right.
    """
    right = set(numbers)
    kinds = ["number" if column in right else None for column in range(len(header))]

    def row(name: str, cells: Sequence[object]) -> Markup:
        classes = (
            kind or ("long" if _is_long(cell) else None) for cell, kind in zip(cells, kinds, strict=True)
        )
        return element(
            "tr", *(element(name, cell, class_=kind) for cell, kind in zip(cells, classes, strict=True))
        )

    head = element("thead", row("th", header)) if any(header) else Markup("")
    body = element("tbody", *(row("td", cells) for cells in rows))
    return element("div", element("table", head, body), class_="scroll")


def _is_long(cell: object) -> bool:
    return not isinstance(cell, Markup) and any(len(word) > LONG_WORD for word in str(cell).split())


def png_image(content: bytes, description: str) -> Markup:
    """A picture inside the page."""
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return Markup(f'<img src="{source}" alt="{_quoted(description)}">')


def data(name: str, values: Any) -> Markup:
    """Plain values as JSON for a script of the page, which finds them as the text of the element ``name``."""
    content = json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    # Inside of a script element only the end of the element itself could be misread.
    content = content.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Markup(f'<script id="{name}" type="application/json">{content}</script>')


def page(title: str, body: Iterable[Markup], style: str = "", script: str = "") -> str:
    """The whole file.

    Args:
        title: of the page.
        body: its parts.
        style: further rules.
        script: of our own, run at the end.
    """
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_quoted(title)}</title><style>{STYLE}{style}</style></head><body>",
        *body,
        *([f"<script>{script}</script>"] if script else []),
        "</body></html>\n",
    ]
    return "\n".join(parts)
