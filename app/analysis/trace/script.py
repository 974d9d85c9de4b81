"""What makes a trace page answer to its reader."""

STYLE = """
#head { position: sticky; top: 0; background: var(--paper); z-index: 2; padding: .5rem 0 .4rem; }
#controls { display: flex; gap: .4rem 1.6rem; flex-wrap: wrap; align-items: center; }
#controls select { font: inherit; padding: .15rem .4rem; max-width: 100%; color: var(--ink); background: var(--card);
  border: 1px solid var(--soft); border-radius: 4px; }
#layer { vertical-align: middle; width: min(12rem, 60vw); }
#said { color: var(--soft); font-size: .92em; margin: .35rem 0 0; }
.legend { display: flex; gap: .1rem 1rem; flex-wrap: wrap; align-items: center; font-size: .92em;
  align-content: flex-start; margin: .3rem 0 .45rem; }
.legend bdi, .detail bdi { unicode-bidi: isolate; }
.swatch { display: inline-block; width: 1rem; height: 1rem; border-radius: 3px; vertical-align: -.15rem;
  margin-right: .35rem; }
.legend canvas { width: min(12rem, 40vw); height: .9rem; border-radius: 3px; vertical-align: -.1rem; margin: 0 .5rem; }
#runs { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem 1.6rem; }
#runs > section { min-width: 0; display: flex; flex-direction: column; } #runs h2 { margin: .3rem 0; }
.text { font: 15px/1.85 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  white-space: pre-wrap; direction: ltr;
  overflow-wrap: anywhere; border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem;
  outline-offset: 2px; }
.text span { border-radius: 3px; padding: .12em .05em; margin-right: 2px; cursor: default; unicode-bidi: isolate;
  scroll-margin: 8rem 0 12rem; }
/* The rest of a character stands close to its beginning and is smaller. */
.text span.rest { font-size: .75em; margin-left: -2px; border-radius: 0 3px 3px 0; }
.text span.none { background: transparent; color: var(--soft); }
.text span.window { margin-left: 9px; border-radius: 0 3px 3px 0;
  box-shadow: -3px 0 0 var(--paper), -6px 0 0 var(--ink); }
.text span.picked { outline: 2px solid var(--ink); outline-offset: 1px; position: relative; z-index: 1; }
.detail { position: sticky; bottom: 0; background: var(--paper); border-top: 1px solid var(--line); padding: .6rem 0;
  min-height: 4.4rem; max-height: 40vh; overflow-y: auto; font-size: .92em; margin-top: .6rem; z-index: 1; }
  .detail b { color: var(--ink); font-weight: 600; }
  .detail span { display: inline-block; margin-right: 1.3rem; }
  .detail .group { display: block; margin: .1rem 0 0; color: var(--soft); }
  .detail .layers { display: block; margin: .25rem 0; }
  .detail .layers i { display: inline-block; font-style: normal; border-radius: 3px; padding: 0 .35em;
  margin: 0 3px 3px 0; border: 1px solid transparent; } .detail .layers i.here { border-color: var(--ink); }
@media (max-width: 40rem) { .detail { max-height: 30vh; } }
kbd { font: inherit; font-size: .9em; border: 1px solid var(--soft); border-radius: 3px; padding: 0 .3em; }
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
  const select = get("measure"), layer = get("layer");
  const GROUPS = ["choices in each layer", "quantities of each layer", "of the whole network", "predictions"];
  const groupOf = (page) => ["loss", "entropy"].includes(page.name) ? 3
    : !page.layered ? 2 : page.labels.length ? 0 : 1;
  const named = new Map();
  data.runs.forEach((run) => run.measures.forEach((page) => {
    if (!named.has(page.name)) named.set(page.name, page);
  }));
  GROUPS.forEach((title, number) => {
    const own = [...named.values()].filter((page) => groupOf(page) === number);
    if (!own.length) return;
    const group = make("optgroup");
    group.label = title;
    own.forEach((page) => {
      const option = make("option", page.name + (page.unit ? ", " + page.unit : ""));
      option.value = page.name;
      group.append(option);
    });
    select.append(group);
  });
  const depthOf = (run) => Math.max(1, ...run.measures.map((page) => page.values.length));
  const depth = Math.max(...data.runs.map(depthOf));
  layer.max = depth - 1;

  const look = (page, value) => {
    if (value === null) return null;
    if (page.labels.length) return { paper: category(value), ink: "#111" };
    const [r, g, b] = ramp((value - page.low) / ((page.high - page.low) || 1));
    // Black or white, whichever stands out more: at least 4.58 to one on any colour.
    const linear = (x) => x <= 10 ? x / 3295 : ((x / 255 + 0.055) / 1.055) ** 2.4;
    const light = 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const ink = (light + 0.05) ** 2 > 1.05 * 0.05 ? "#000" : "#fff";
    return { paper: "rgb(" + r + "," + g + "," + b + ")", ink };
  };
  const said = (page, value) => value === null ? "–"
    : page.labels.length ? page.labels[value] : short(value) + (page.unit ? " " + page.unit : "");
  // Quantities of both runs have one scale of colours.
  named.forEach((_, name) => {
    const own = data.runs.map((run) => run.measures.find((page) => page.name === name)).filter(Boolean);
    if (own.length < 2 || own.some((page) => page.labels.length)) return;
    const low = Math.min(...own.map((page) => page.low)), high = Math.max(...own.map((page) => page.high));
    own.forEach((page) => Object.assign(page, { low, high }));
  });

  const views = data.runs.map((run, number) => makeView(run, number));

  function makeView(run, number) {
    const part = make("section"), legendBox = make("div", undefined, "legend");
    const text = make("div", undefined, "text"), box = make("div", undefined, "detail soft");
    const breaks = new Set(run.breaks), own = depthOf(run), starts = [];
    let picked = -1, length = 0;
    if (data.runs.length > 1) part.append(make("h2", run.title));
    Object.assign(text, { tabIndex: 0, id: number ? "" : "text" });
    text.setAttribute("role", "group");
    text.setAttribute("aria-label", "the text" + (data.runs.length > 1 ? " as " + run.title + " read it" : "")
      + "; arrow keys move from token to token, n and p from layer to layer");
    box.setAttribute("aria-live", "polite");
    legendBox.setAttribute("aria-live", "polite");
    part.append(legendBox, text, box);
    get("runs").append(part);

    const spans = run.tokens.map((token, index) => {
      const span = make("span", token);
      span.dataset.index = index;
      starts.push(length);
      length += run.lengths[index];
      if (run.parts[index]) span.classList.add(run.lengths[index] ? "first" : "rest");
      if (index && index % run.blockSize === 0) span.classList.add("window");
      // Lines break between words, whether the space belongs to the token before or to the one after.
      const before = run.tokens[index - 1] || "";
      if (before.endsWith("·") || (token.length > 1 && token.startsWith("·"))) text.append(make("wbr"));
      text.append(span);
      if (breaks.has(index)) text.append("\\n");
      return span;
    });
    const at = () => Math.min(Number(layer.value), own - 1);
    const chosen = () => run.measures.find((page) => page.name === select.value);
    const rowOf = (page) => page.values[page.layered ? Math.min(at(), page.values.length - 1) : 0];

    function legend(page, row) {
      legendBox.replaceChildren();
      if (page.labels.length) {
        page.labels.forEach((label, index) => {
          const share = row.filter((value) => value === index).length / row.length;
          const entry = make("span"), swatch = make("span", "", "swatch");
          swatch.style.background = category(index);
          entry.append(swatch, make("bdi", label), " " + (100 * share).toFixed(1) + " %");
          legendBox.append(entry);
        });
        const of = "of " + whole(row.length) + " tokens" + (page.layered ? " in layer " + at() : "");
        legendBox.append(make("span", of, "soft"));
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
        const of = "mean of these tokens " + short(mean) + (page.layered ? " in layer " + at() : "");
        legendBox.append(entry, make("span", of));
        if (known.length < row.length) legendBox.append(make("span", "without colour: not defined", "soft"));
      }
    }

    function draw() {
      const page = chosen(), row = page ? rowOf(page) : [];
      spans.forEach((span, index) => {
        const found = page ? look(page, row[index]) : null;
        span.classList.toggle("none", found === null);
        span.style.background = found ? found.paper : "";
        span.style.color = found ? found.ink : "";
      });
      if (page) legend(page, row);
      else legendBox.replaceChildren(make("span", "this network does not report " + select.value, "soft"));
      if (picked >= 0) detail();
    }

    function detail() {
      const page = chosen(), place = picked % run.blockSize, head = make("b");
      head.append("token " + whole(picked) + ": ", make("bdi", run.tokens[picked]));
      const many = run.tokens.length > run.blockSize;
      const where = "id " + run.ids[picked] + (many ? ", place " + whole(place) + " of its window" : "");
      const part = run.parts[picked] ? ", " + run.parts[picked] : "";
      box.replaceChildren(head, " (" + where + part + ")", make("br"));
      if (page && page.layered && own > 1) {
        const strip = make("span", page.name + " by layer: ", "layers");
        page.values.forEach((row, number) => {
          const chip = make("i", number + ": " + said(page, row[picked]), number === at() ? "here" : "");
          const found = look(page, row[picked]);
          if (found) Object.assign(chip.style, { background: found.paper, color: found.ink });
          strip.append(chip);
        });
        box.append(strip);
      }
      GROUPS.forEach((title, number) => {
        const members = run.measures.filter((page) => groupOf(page) === number);
        if (!members.length) return;
        box.append(make("div", number < 2 ? title.replace("each layer", "layer " + at()) : title, "group"));
        members.forEach((page) => {
          const entry = make("span", page.name + " ");
          entry.append(make("b", said(page, rowOf(page)[picked])));
          box.append(entry);
        });
      });
    }

    function pick(index, isFollowed) {
      if (spans[picked]) spans[picked].classList.remove("picked");
      picked = Math.min(Math.max(index, 0), spans.length - 1);
      spans[picked].classList.add("picked");
      detail();
      if (!isFollowed) views.forEach((view) => view !== self && view.follow(starts[picked]));
    }

    // The token of another run that holds the same character.
    function follow(start) {
      let index = starts.findIndex((from) => from > start) - 1;
      if (index < -1) index = spans.length - 1;
      pick(Math.max(index, 0), true);
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
      const targets = { ArrowRight: () => picked + 1, ArrowLeft: () => from - 1,
        ArrowDown: () => acrossLines(from, 1), ArrowUp: () => acrossLines(from, -1), Home: () => 0,
        End: () => spans.length - 1 };
      if (!targets[event.key] || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      pick(targets[event.key]());
      spans[picked].scrollIntoView({ block: "nearest" });
    });
    box.textContent = "Point at a token, or use the arrow keys in the text, to see all of its values.";
    const show = (index) => { pick(index); spans[picked].scrollIntoView({ block: "nearest" }); };
    const self = { draw, follow, show };
    return self;
  }

  function draw() {
    const page = named.get(select.value), at = Number(layer.value);
    get("depth").style.visibility = page.layered && depth > 1 ? "visible" : "hidden";
    const end = at === 0 ? " (next to the embedding)" : at === depth - 1 ? " (last)" : "";
    get("layer-name").textContent = at + " of 0–" + (depth - 1) + end;
    get("said").textContent = page.said;
    views.forEach((view) => view.draw());
  }

  // The next layer, or the one before, from anywhere but a control that takes the letter itself.
  document.addEventListener("keydown", (event) => {
    const step = { n: 1, p: -1 }[event.key];
    if (!step || event.ctrlKey || event.altKey || event.metaKey || event.target === select) return;
    layer.value = Math.min(Math.max(Number(layer.value) + step, 0), depth - 1);
    draw();
  });
  select.addEventListener("change", draw);
  layer.addEventListener("input", draw);
  const wanted = new URLSearchParams(location.hash.slice(1));
  // First what all of the runs report.
  const reports = (run, name) => run.measures.some((page) => page.name === name);
  const shared = [...named.keys()].filter((name) => data.runs.every((run) => reports(run, name)));
  if (data.runs.length > 1 && shared.length) select.value = shared[0];
  if (named.has(wanted.get("measure"))) select.value = wanted.get("measure");
  layer.value = Math.min(Number(wanted.get("layer")) || 0, depth - 1);
  draw();
  if (wanted.has("token")) views[0].show(Number(wanted.get("token")) || 0);
})();
"""
