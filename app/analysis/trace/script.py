"""What makes a trace page answer to its reader."""

STYLE = """
#controls { display: flex; gap: 1.6rem; flex-wrap: wrap; align-items: center; margin: .6rem 0; }
#controls select { font: inherit; padding: .15rem .4rem; } #layer { vertical-align: middle; width: 12rem; }
#legend { min-height: 1.9rem; display: flex; gap: 1rem; flex-wrap: wrap; align-items: center; font-size: .92em;
  margin-bottom: .6rem; }
#legend .swatch { display: inline-block; width: 1rem; height: 1rem; border-radius: 3px;
  vertical-align: -.15rem; margin-right: .35rem; }
#legend canvas { width: 12rem; height: .9rem; border-radius: 3px; vertical-align: -.1rem; margin: 0 .5rem; }
#text { font: 15px/1.75 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  white-space: pre-wrap;
  overflow-wrap: anywhere; border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem;
  outline-offset: 2px; }
#text span { border-radius: 3px; padding: .12em .03em; margin-right: 1px; cursor: default; }
#text span.none { background: transparent; color: var(--soft); }
  #text span.window { border-left: 3px solid var(--ink); }
#text span.picked { outline: 2px solid var(--ink); outline-offset: 1px; position: relative; }
#detail { position: sticky; bottom: 0; background: var(--paper); border-top: 1px solid var(--line); padding: .6rem 0;
  min-height: 4.4rem; font-size: .92em; } #detail b { color: var(--ink); }
  #detail span { display: inline-block; margin-right: 1.3rem; }
"""

# Plain texts enter the page as textContent alone.
SCRIPT = """
"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const CATEGORIES = ["#56B4E9", "#E69F00", "#33B98A", "#E58BBF", "#F0E442", "#5C86D6", "#E0743A", "#B9B9B9",
    "#8FD175", "#C7A26B", "#A98BE0", "#78C9C4"];
  const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  const get = (id) => document.getElementById(id);
  const make = (name, text, style) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (style) Object.assign(made.style, style);
    return made;
  };
  const short = (number) => number === null ? "–" : String(Number(number.toPrecision(3)));
  const ramp = (share) => {
    const at = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1), low = Math.min(Math.floor(at), RAMP.length - 2);
    return RAMP[low].map((from, i) => Math.round(from + (at - low) * (RAMP[low + 1][i] - from)));
  };
  const ink = ([r, g, b]) => 0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#111" : "#fff";
  const hex = (text) => [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));
  const pages = data.measures, text = get("text"), select = get("measure"), layer = get("layer");
  const breaks = new Set(data.breaks);
  let picked = -1;

  const spans = data.tokens.map((token, index) => {
    const span = make("span", token);
    span.dataset.index = index;
    if (index && index % data.blockSize === 0) span.className = "window";
    text.append(span);
    if (breaks.has(index)) text.append("\\n");
    return span;
  });
  const depth = Math.max(1, ...pages.map((page) => page.values.length));
  layer.max = depth - 1;
  pages.forEach((page, index) => {
    const option = make("option", page.name + (page.unit ? ", " + page.unit : ""));
    option.value = index;
    select.append(option);
  });

  const colours = (page, value) => {
    if (value === null) return null;
    if (page.labels.length) return hex(CATEGORIES[value % CATEGORIES.length]);
    return ramp((value - page.low) / ((page.high - page.low) || 1));
  };
  const rowOf = (page) => page.values[page.layered ? Number(layer.value) : 0];

  function legend(page, row) {
    const box = get("legend");
    box.replaceChildren();
    if (page.labels.length) {
      page.labels.forEach((label, index) => {
        const share = row.filter((value) => value === index).length / row.length;
        const entry = make("span"), swatch = make("span");
        swatch.className = "swatch";
        swatch.style.background = CATEGORIES[index % CATEGORIES.length];
        entry.append(swatch, label + " " + (100 * share).toFixed(1) + " %");
        box.append(entry);
      });
      box.append(make("span", "of " + row.length.toLocaleString("en") + " tokens", { opacity: 0.7 }));
      return;
    }
    const known = row.filter((value) => value !== null);
    const mean = known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
    const canvas = make("canvas"), entry = make("span");
    canvas.width = 128;
    canvas.height = 1;
    const paint = canvas.getContext("2d");
    for (let x = 0; x < 128; x++) {
      paint.fillStyle = "rgb(" + ramp(x / 127) + ")";
      paint.fillRect(x, 0, 1, 1);
    }
    entry.append(short(page.low), canvas, short(page.high) + (page.unit ? " " + page.unit : ""));
    box.append(entry, make("span", "mean of these tokens " + short(mean)));
  }

  function draw() {
    const page = pages[Number(select.value)], row = rowOf(page);
    get("depth").style.visibility = page.layered && depth > 1 ? "visible" : "hidden";
    get("layer-name").textContent = layer.value + " (of 0 to " + (depth - 1) + ")";
    spans.forEach((span, index) => {
      const colour = colours(page, row[index]);
      span.classList.toggle("none", colour === null);
      span.style.background = colour ? "rgb(" + colour + ")" : "";
      span.style.color = !colour ? "" : page.labels.length ? "#111" : ink(colour);
    });
    legend(page, row);
    if (picked >= 0) detail(picked);
  }

  function detail(index) {
    const box = get("detail");
    spans.forEach((span, at) => span.classList.toggle("picked", at === index));
    box.replaceChildren(make("b", "token " + index.toLocaleString("en") + ": " + data.tokens[index]), make("br"));
    pages.forEach((page) => {
      const value = rowOf(page)[index];
      const said = page.labels.length && value !== null ? page.labels[value] : short(value);
      const entry = make("span", page.name + " ");
      entry.append(make("b", said + (page.unit && value !== null ? " " + page.unit : "")));
      box.append(entry);
    });
  }

  text.addEventListener("mouseover", (event) => {
    if (event.target.dataset.index !== undefined) { picked = Number(event.target.dataset.index); detail(picked); }
  });
  text.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !spans.length) return;
    event.preventDefault();
    picked = Math.min(Math.max(picked + step, 0), spans.length - 1);
    detail(picked);
  });
  select.addEventListener("change", draw);
  layer.addEventListener("input", draw);
  const wanted = new URLSearchParams(location.hash.slice(1));
  const chosen = pages.findIndex((page) => page.name === wanted.get("measure"));
  select.value = Math.max(chosen, 0);
  layer.value = Math.min(Number(wanted.get("layer")) || 0, depth - 1);
  get("detail").textContent = "Point at a token, or use the arrow keys in the text, to see all of its values.";
  if (wanted.has("token")) picked = Math.min(Math.max(Number(wanted.get("token")) || 0, 0), spans.length - 1);
  draw();
})();
"""
