"""What makes a trace page answer to its reader."""

STYLE = """
#head { position: sticky; top: 0; background: var(--paper); z-index: 1; padding: .5rem 0 .4rem; }
#controls { display: flex; gap: .4rem 1.6rem; flex-wrap: wrap; align-items: center; }
#controls select { font: inherit; padding: .15rem .4rem; } #layer { vertical-align: middle; width: 12rem; }
#legend { min-height: 3.4rem; display: flex; gap: .1rem 1rem; flex-wrap: wrap; align-items: center; font-size: .92em;
  align-content: flex-start; margin-top: .45rem; }
#legend .said { flex-basis: 100%; color: var(--soft); } #legend bdi, #detail bdi { unicode-bidi: isolate; }
.swatch { display: inline-block; width: 1rem; height: 1rem; border-radius: 3px; vertical-align: -.15rem;
  margin-right: .35rem; }
#legend canvas { width: 12rem; height: .9rem; border-radius: 3px; vertical-align: -.1rem; margin: 0 .5rem; }
#text { font: 15px/1.75 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  white-space: pre-wrap; direction: ltr;
  overflow-wrap: anywhere; border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem;
  outline-offset: 2px; }
#text span { border-radius: 3px; padding: .12em .03em; margin-right: 1px; cursor: default; unicode-bidi: isolate;
  scroll-margin: 8rem 0 12rem; }
#text span.none { background: transparent; color: var(--soft); }
  #text span.window { margin-left: 9px; border-radius: 0 3px 3px 0;
  box-shadow: -3px 0 0 var(--paper), -6px 0 0 var(--ink); }
#text span.picked { outline: 2px solid var(--ink); outline-offset: 1px; position: relative; }
#detail { position: sticky; bottom: 0; background: var(--paper); border-top: 1px solid var(--line); padding: .6rem 0;
  min-height: 4.4rem; max-height: 40vh; overflow-y: auto; font-size: .92em; }
  #detail b { color: var(--ink); font-weight: 600; }
  #detail span { display: inline-block; margin-right: 1.3rem; }
  #detail .layers { display: block; margin: .25rem 0; }
  #detail .layers i { display: inline-block; font-style: normal; border-radius: 3px; padding: 0 .35em;
  margin: 0 3px 3px 0; border: 1px solid transparent; } #detail .layers i.here { border-color: var(--ink); }
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
  const make = (name, text, type) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (type) made.className = type;
    return made;
  };
  const whole = (number) => number.toLocaleString("en");
  const short = (number) => number === null ? "–" : String(Number(number.toPrecision(3)));
  const ramp = (share) => {
    const at = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1), low = Math.min(Math.floor(at), RAMP.length - 2);
    return RAMP[low].map((from, i) => Math.round(from + (at - low) * (RAMP[low + 1][i] - from)));
  };
  // Further categories turn around the colour circle by the golden angle.
  const category = (index) => index < CATEGORIES.length ? CATEGORIES[index]
    : "hsl(" + (index * 137.5) % 360 + " 60% " + (index % 2 ? 68 : 78) + "%)";
  const pages = data.measures, text = get("text"), select = get("measure"), layer = get("layer");
  const breaks = new Set(data.breaks);
  const depth = Math.max(1, ...pages.map((page) => page.values.length));
  let picked = -1;

  const spans = data.tokens.map((token, index) => {
    const span = make("span", token);
    span.dataset.index = index;
    if (index && index % data.blockSize === 0) span.className = "window";
    // Lines break between words, whether the space belongs to the token before or to the one after.
    const before = data.tokens[index - 1] || "";
    if (before.endsWith("·") || (token.length > 1 && token.startsWith("·"))) text.append(make("wbr"));
    text.append(span);
    if (breaks.has(index)) text.append("\\n");
    return span;
  });
  layer.max = depth - 1;
  pages.forEach((page, index) => {
    const option = make("option", page.name + (page.unit ? ", " + page.unit : ""));
    option.value = index;
    select.append(option);
  });

  const look = (page, value) => {
    if (value === null) return null;
    if (page.labels.length) return { paper: category(value), ink: "#111" };
    const [r, g, b] = ramp((value - page.low) / ((page.high - page.low) || 1));
    const ink = 0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#111" : "#fff";
    return { paper: "rgb(" + r + "," + g + "," + b + ")", ink };
  };
  const chosen = () => pages[Number(select.value)];
  const rowOf = (page) => page.values[page.layered ? Number(layer.value) : 0];
  const said = (page, value) => value === null ? "–"
    : page.labels.length ? page.labels[value] : short(value) + (page.unit ? " " + page.unit : "");

  function legend(page, row) {
    const box = get("legend");
    box.replaceChildren();
    if (page.labels.length) {
      page.labels.forEach((label, index) => {
        const share = row.filter((value) => value === index).length / row.length;
        const entry = make("span"), swatch = make("span", "", "swatch");
        swatch.style.background = category(index);
        entry.append(swatch, make("bdi", label), " " + (100 * share).toFixed(1) + " %");
        box.append(entry);
      });
      box.append(make("span", "of " + whole(row.length) + " tokens" + (page.layered ? " in this layer" : ""), "soft"));
    } else {
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
      entry.append("≤ " + short(page.low), canvas, "≥ " + short(page.high) + (page.unit ? " " + page.unit : ""));
      box.append(entry, make("span", "mean of these tokens " + short(mean) + (page.layered ? " in this layer" : "")));
      if (known.length < row.length) box.append(make("span", "without colour: not defined", "soft"));
    }
    if (page.said) box.append(make("div", page.said, "said"));
  }

  function draw() {
    const page = chosen(), row = rowOf(page), at = Number(layer.value);
    get("depth").style.visibility = page.layered && depth > 1 ? "visible" : "hidden";
    const end = at === 0 ? " (next to the embedding)" : at === depth - 1 ? " (last)" : "";
    get("layer-name").textContent = at + " of 0–" + (depth - 1) + end;
    spans.forEach((span, index) => {
      const found = look(page, row[index]);
      span.classList.toggle("none", found === null);
      span.style.background = found ? found.paper : "";
      span.style.color = found ? found.ink : "";
    });
    legend(page, row);
    if (picked >= 0) detail();
  }

  function detail() {
    const box = get("detail"), page = chosen(), place = picked % data.blockSize;
    const head = make("b");
    head.append("token " + whole(picked) + ": ", make("bdi", data.tokens[picked]));
    const many = data.tokens.length > data.blockSize;
    const where = "id " + data.ids[picked] + (many ? ", place " + whole(place) + " of its window" : "");
    box.replaceChildren(head, " (" + where + ")", make("br"));
    if (page.layered && depth > 1) {
      const strip = make("span", page.name + " by layer: ", "layers");
      page.values.forEach((row, at) => {
        const chip = make("i", at + ": " + said(page, row[picked]), at === Number(layer.value) ? "here" : "");
        const found = look(page, row[picked]);
        if (found) Object.assign(chip.style, { background: found.paper, color: found.ink });
        strip.append(chip);
      });
      box.append(strip);
    }
    pages.forEach((page) => {
      const entry = make("span", page.name + " ");
      entry.append(make("b", said(page, rowOf(page)[picked])));
      box.append(entry);
    });
  }

  function pick(index) {
    if (spans[picked]) spans[picked].classList.remove("picked");
    picked = Math.min(Math.max(index, 0), spans.length - 1);
    spans[picked].classList.add("picked");
    detail();
  }

  // The token of the next line in this direction that stands closest below or above.
  function acrossLines(index, step) {
    const from = spans[index];
    let at = index + step;
    while (spans[at] && spans[at].offsetTop === from.offsetTop) at += step;
    if (!spans[at]) return index;
    let best = at;
    const line = spans[at].offsetTop, distance = (i) => Math.abs(spans[i].offsetLeft - from.offsetLeft);
    for (; spans[at] && spans[at].offsetTop === line; at += step) if (distance(at) < distance(best)) best = at;
    return best;
  }

  text.addEventListener("mouseover", (event) => {
    if (event.target.dataset.index !== undefined) pick(Number(event.target.dataset.index));
  });
  text.addEventListener("keydown", (event) => {
    const from = Math.max(picked, 0);
    const targets = { ArrowRight: () => picked + 1, ArrowLeft: () => from - 1, ArrowDown: () => acrossLines(from, 1),
      ArrowUp: () => acrossLines(from, -1), Home: () => 0, End: () => spans.length - 1 };
    if (!targets[event.key] || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    pick(targets[event.key]());
    spans[picked].scrollIntoView({ block: "nearest" });
  });
  select.addEventListener("change", draw);
  layer.addEventListener("input", draw);
  const wanted = new URLSearchParams(location.hash.slice(1));
  select.value = Math.max(pages.findIndex((page) => page.name === wanted.get("measure")), 0);
  layer.value = Math.min(Number(wanted.get("layer")) || 0, depth - 1);
  get("detail").textContent = "Point at a token, or use the arrow keys in the text, to see all of its values.";
  draw();
  if (wanted.has("token")) {
    pick(Number(wanted.get("token")) || 0);
    spans[picked].scrollIntoView({ block: "nearest" });
  }
})();
"""
