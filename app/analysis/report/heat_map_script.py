"""What draws heat-maps and lines over training steps, and answers to their reader."""

STYLE = """
#map-controls { display: flex; gap: .4rem 1.6rem; flex-wrap: wrap; margin: .4rem 0 .8rem; }
#map-controls label { max-width: 100%; }
#map-controls select { font: inherit; padding: .15rem .4rem; max-width: min(100%, 20rem); color: var(--ink);
  background: var(--card); border: 1px solid var(--soft); border-radius: 4px; }
#map-controls label[hidden] { display: none; }
.map-figure { margin: 1.6rem 0; } .map-figure h3 { margin: 0; } .map-figure .soft { margin: .1rem 0 .5rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 12.5rem), 1fr)); gap: .9rem 1.2rem; }
.panels h4 { margin: 0 0 .2rem; font-size: .95em; font-weight: 600; overflow-wrap: anywhere; }
.panels canvas { display: block; width: 100%; outline-offset: 2px; }
.map-key { display: flex; flex-wrap: wrap; gap: .1rem .6rem; align-items: center; font-size: .9em; margin: .3rem 0; }
.map-scale { display: flex; flex: 0 1 auto; gap: .6rem; align-items: center; white-space: nowrap; min-width: 0; }
.map-scale canvas { width: 10rem; min-width: 2rem; flex-shrink: 1; height: .8rem; border-radius: 3px; }
#maps.beside { display: grid; gap: 1rem 1.6rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
#maps.beside .map-figure { margin: .4rem 0; } #maps.beside .map-meaning { grid-column: 1 / -1; }
.map-read { min-height: 1.5em; font-size: .92em; font-variant-numeric: tabular-nums; }
"""

# Plain texts enter the page as textContent alone.
SCRIPT = """
"use strict";
(function () {
  const holder = document.getElementById("map-data");
  if (!holder) return;
  const data = JSON.parse(holder.textContent), box = document.getElementById("maps");
  const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  const PARTED = [[5, 48, 97], [67, 147, 195], [247, 247, 247], [214, 96, 77], [103, 0, 31]];
  const make = (name, text, type) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (type) made.className = type;
    return made;
  };
  const mark = () => {
    const made = make("span", "■ ");
    made.setAttribute("aria-hidden", "true");
    return made;
  };
  const whole = (number) => number.toLocaleString("en");
  const short = (number) => number === null ? "no number" : String(Number(number.toPrecision(3)));
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colours = (panel) => panel.diverging ? PARTED : RAMP;
  const mix = (ramp, share) => {
    const at = Math.min(Math.max(share, 0), 1) * (ramp.length - 1), low = Math.min(Math.floor(at), ramp.length - 2);
    return "rgb(" + ramp[low].map((from, i) => Math.round(from + (at - low) * (ramp[low + 1][i] - from))) + ")";
  };
  const place = (panel, value) => {
    const [low, middle, high] = panel.marks;
    return value < middle ? 0.5 * (value - low) / (middle - low || 1)
      : 0.5 + 0.5 * (value - middle) / (high - middle || 1);
  };
  const unit = (panel) => panel.unit ? " " + panel.unit : "";

  // Rows of one panel in drawing order, the deepest layer at the top: label, text for a reader, values.
  function rowsOf(figure, panel, layer) {
    const n = panel.entries.length, rows = [];
    figure.layers.forEach((name, at) => {
      if (layer !== null && layer !== at) return;
      panel.entries.forEach((entry, inner) => {
        const said = "layer " + name + (entry ? ", " + entry : "");
        rows.push({ layer: at, inner, n, name, entry, said, values: panel.values[at * n + inner] });
      });
    });
    return rows.reverse();
  }

  function ticks(steps, width) {
    const last = steps[steps.length - 1], wanted = Math.max(Math.floor(width / 80), 1), found = new Set([0, last]);
    for (let i = 1; i < wanted; i++) {
      const aim = last * i / wanted;
      found.add(steps.reduce((best, step) => Math.abs(step - aim) < Math.abs(best - aim) ? step : best));
    }
    return [...found].sort((a, b) => a - b).filter((tick, i, all) =>
      tick === 0 || tick === last || (last - tick) / last * width > 55 && tick / last * width > 25);
  }

  function frame(canvas, height) {
    const scale = window.devicePixelRatio || 1, width = canvas.clientWidth || 300;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.height = height + "px";
    const paint = canvas.getContext("2d");
    paint.scale(scale, scale);
    paint.font = "12px system-ui, sans-serif";
    paint.textBaseline = "middle";
    paint.fillStyle = css("--soft");
    return [paint, width];
  }

  function axis(paint, steps, left, right, y) {
    const last = steps[steps.length - 1];
    ticks(steps, right - left).forEach((tick) => {
      const x = left + (right - left) * tick / last;
      paint.textAlign = tick === 0 ? "left" : tick === last ? "right" : "center";
      paint.fillRect(Math.min(x, right - 1), y, 1, 4);
      paint.fillText(whole(tick), x, y + 13);
    });
    paint.textAlign = "left";
  }

  function drawMap(view) {
    const { canvas, figure, panel, rows } = view, steps = figure.steps, last = steps[steps.length - 1];
    const names = rows.map((row) => row.n > 1 && view.layer !== null ? row.entry : row.name);
    const room = Math.max(14, Math.min(26, Math.floor(240 / rows.length)));
    const height = rows.length * Math.max(room * (rows.length > 24 ? 0.5 : 1), 5);
    const [paint, width] = frame(canvas, height + 26);
    const left = Math.min(Math.max(...names.map((name) => paint.measureText(name).width)) + 8, width * 0.4);
    const x = (step) => left + (width - left) * step / last, tall = height / rows.length;
    Object.assign(view, { left, tall, x, height });
    let before = -Infinity;
    rows.forEach((row, at) => {
      row.values.forEach((value, column) => {
        paint.fillStyle = value === null ? "#8a8a8a" : mix(colours(panel), place(panel, value));
        paint.fillRect(x(steps[column]), at * tall, x(steps[column + 1]) - x(steps[column]) + 0.6, tall + 0.6);
      });
    });
    paint.fillStyle = css("--soft");
    rows.forEach((row, at) => {
      const many = row.n > 1 && view.layer === null, middle = many ? (at + row.n / 2) * tall : (at + 0.5) * tall;
      if (many && at && row.inner === row.n - 1) {
        paint.fillStyle = css("--paper");
        paint.fillRect(left, at * tall - 1, width - left, 2);
        paint.fillStyle = css("--soft");
      }
      if (many ? row.inner === row.n - 1 : true) {
        if (middle - before >= 13) {
          paint.fillText(names[at], 0, middle, left - 6);
          before = middle;
        }
      }
    });
    axis(paint, steps, left, width, height);
    if (view.at) {
      const [row, column] = view.at;
      paint.strokeStyle = css("--ink");
      paint.lineWidth = 2;
      paint.strokeRect(x(steps[column]), row * tall, x(steps[column + 1]) - x(steps[column]), tall);
    }
  }

  function drawLines(view) {
    const { canvas, figure } = view, steps = figure.steps, last = steps[steps.length - 1];
    const height = 190, [paint, width] = frame(canvas, height + 26), [low, , high] = figure.panels[0].marks;
    const margin = 0.08 * (high - low) || 0.5, top = high + margin, bottom = low - margin;
    const left = 44, x = (step) => left + (width - left) * step / last;
    const y = (value) => height * (top - value) / (top - bottom);
    Object.assign(view, { left, x, height, tall: height });
    paint.fillStyle = css("--line");
    [low, (low + high) / 2, high].forEach((value) => paint.fillRect(left, y(value), width - left, 1));
    paint.fillStyle = css("--soft");
    [low, (low + high) / 2, high].forEach((value) =>
      paint.fillText(short(value), 0, Math.min(Math.max(y(value), 7), height - 7), left - 6));
    paint.save();
    paint.beginPath();
    paint.rect(left, 0, width - left, height);
    paint.clip();
    figure.panels.forEach((panel, number) => {
      const chosen = panel.values.filter((row, at) => view.layer === null || at === view.layer);
      const over = (column) => chosen.map((row) => row[column]).filter((value) => value !== null);
      const mean = (column) => over(column).reduce((sum, value) => sum + value, 0) / over(column).length;
      paint.strokeStyle = paint.fillStyle = css("--s" + number % 6);
      const columns = [...Array(steps.length - 1).keys()].filter((column) => over(column).length);
      if (chosen.length > 1) {
        paint.globalAlpha = 0.2;
        paint.beginPath();
        columns.forEach((column) => paint.lineTo(x(steps[column + 1]), y(Math.max(...over(column)))));
        [...columns].reverse().forEach((column) =>
          paint.lineTo(x(steps[column + 1]), y(Math.min(...over(column)))));
        paint.fill();
        paint.globalAlpha = 1;
      }
      paint.lineWidth = 2;
      paint.beginPath();
      columns.forEach((column) => paint.lineTo(x(steps[column + 1]), y(mean(column))));
      paint.stroke();
      view.means = view.means || [];
      view.means[number] = (column) => over(column).length ? mean(column) : null;
    });
    paint.restore();
    paint.fillStyle = css("--soft");
    axis(paint, steps, left, width, height);
    if (view.at) {
      paint.fillStyle = css("--ink");
      paint.fillRect(x(steps[view.at[1] + 1]), 0, 1, height);
    }
  }

  function read(view) {
    const [row, column] = view.at, { figure, panel } = view, from = figure.steps[column], to = figure.steps[column + 1];
    const when = "step " + (to - from > 1 && from ? whole(from + 1) + " to " : "") + whole(to) + ": ";
    view.read.textContent = view.rows
      ? view.rows[row].said + ", " + when + short(view.rows[row].values[column]) + unit(panel)
      : when + figure.panels.map((panel, i) => panel.title + " " + short(view.means[i](column))).join(", ");
  }

  function listen(view) {
    const canvas = view.canvas, n = view.figure.steps.length - 1, n_rows = view.rows ? view.rows.length : 1;
    const move = (row, column) => {
      view.at = [Math.min(Math.max(row, 0), n_rows - 1), Math.min(Math.max(column, 0), n - 1)];
      view.draw(view);
      read(view);
    };
    const point = (event) => {
      const area = canvas.getBoundingClientRect(), across = event.clientX - area.left;
      let column = 0;
      while (column < n - 1 && view.x(view.figure.steps[column + 1]) < across) column++;
      move(Math.floor((event.clientY - area.top) / view.tall), column);
    };
    canvas.addEventListener("pointermove", point);
    canvas.addEventListener("pointerdown", point);
    canvas.addEventListener("keydown", (event) => {
      const [row, column] = view.at || [0, n - 1];
      const targets = { ArrowRight: [row, column + 1], ArrowLeft: [row, column - 1], ArrowUp: [row - 1, column],
        ArrowDown: [row + 1, column], Home: [row, 0], End: [row, n - 1] };
      if (!targets[event.key] || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      if (view.at) move(...targets[event.key]); else move(row, column);
    });
  }

  function keyOf(panel) {
    const key = make("div", undefined, "map-key"), bar = make("canvas");
    bar.width = 100;
    bar.height = 1;
    const paint = bar.getContext("2d");
    for (let x = 0; x < 100; x++) {
      paint.fillStyle = mix(colours(panel), x / 99);
      paint.fillRect(x, 0, 1, 1);
    }
    const scale = make("div", undefined, "map-scale");
    scale.append(make("span", panel.labels[0]), bar, make("span", panel.labels[2] + unit(panel)));
    key.append(scale);
    if (panel.diverging) key.append(make("span", "white: " + panel.white, "soft"));
    return key;
  }

  const views = [];
  function add(parent, figure, panel, layer, title, rows) {
    const holder = make("div"), canvas = make("canvas"), view = { figure, panel, layer, canvas };
    const isMap = figure.kind === "maps";
    view.rows = isMap ? rows || rowsOf(figure, panel, layer) : null;
    view.draw = isMap ? drawMap : drawLines;
    view.read = make("div", "", "map-read");
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    const about = [figure.subject, title, figure.run].filter(Boolean).join(", ");
    canvas.setAttribute("aria-label", about + ": over optimizer steps; arrow keys read values");
    view.read.setAttribute("aria-live", "polite");
    if (title) holder.append(make("h4", title));
    holder.append(canvas, view.read);
    parent.append(holder);
    views.push(view);
    listen(view);
    return holder;
  }

  function show(figure, layer) {
    const part = make("section", undefined, "map-figure"), panels = make("div", undefined, "panels");
    if (data.compared) {
      const name = make("h3"), swatch = mark();
      swatch.style.color = "var(--s" + figure.colour % 6 + ")";
      name.append(swatch, figure.run);
      part.append(name);
    } else part.append(make("h3", figure.subject));
    const rows = figure.kind === "lines"
      ? "line: mean of layers; band: smallest to largest" + (figure.inner ? "; " + figure.inner : "")
      : layer === null ? "rows: layers, 0 next to the embedding" + (figure.inner ? "; " + figure.inner : "") : "";
    if (!data.compared) {
      part.append(make("div", [figure.meaning, rows].filter(Boolean).join("; "), "soft"));
    }
    part.append(panels);
    box.append(part);
    if (figure.kind === "lines") {
      const holder = add(panels, figure, figure.panels[0], layer, ""), key = make("div", undefined, "map-key");
      figure.panels.forEach((panel, number) => {
        const swatch = mark();
        swatch.style.color = "var(--s" + number % 6 + ")";
        key.append(swatch, make("span", panel.title));
      });
      holder.append(key);
      panels.style.gridTemplateColumns = "minmax(0, 44rem)";
    } else {
      const scales = figure.panels.map((panel) => JSON.stringify([panel.marks, panel.unit, panel.diverging]));
      const isAlike = scales.every((scale) => scale === scales[0]);
      // Of one layer all panels of one scale are one map, a row for each entry.
      const isMerged = isAlike && layer !== null && figure.panels.length > 1;
      if (isMerged) {
        const rows = [...figure.panels].reverse().flatMap((panel) => rowsOf(figure, panel, layer).map((row) => {
          const entry = panel.title + (row.entry ? ", " + row.entry : "");
          return { ...row, n: 2, entry, said: "layer " + row.name + ", " + entry };
        }));
        add(panels, figure, figure.panels[0], layer, "", rows);
        panels.style.gridTemplateColumns = "minmax(0, 44rem)";
      } else figure.panels.forEach((panel) => {
        const holder = add(panels, figure, panel, layer, panel.title);
        if (!isAlike) holder.insertBefore(keyOf(panel), holder.lastChild);
      });
      if (isAlike) part.insertBefore(keyOf(figure.panels[0]), panels);
    }
    return part;
  }

  const drawAll = () => views.forEach((view) => view.draw(view));
  const quantity = document.querySelector("#map-quantity select"), layer = document.querySelector("#map-layer select");
  const names = [...new Set(data.figures.map((figure) => figure.name))];
  const count = (name) => data.figures.filter((figure) => figure.name === name).length;
  const option = (select, value, text) => {
    const made = make("option", text);
    made.value = value;
    select.append(made);
  };
  document.getElementById("map-quantity").hidden = !data.compared;
  if (data.compared) {
    names.sort((a, b) => count(b) - count(a));
    names.forEach((name) => {
      const figure = data.figures.find((figure) => figure.name === name), n = count(name);
      option(quantity, name, figure.subject + (n > 1 ? " (" + n + " runs)" : " (" + figure.run + " alone)"));
    });
  }

  function layers() {
    const shown = data.figures.filter((figure) => !data.compared || figure.name === quantity.value);
    const numbered = shown.filter((figure) => figure.layers.every((name) => /^[0-9]+$/.test(name)));
    const deepest = Math.max(0, ...numbered.map((figure) => figure.layers.length)), before = layer.value;
    layer.replaceChildren();
    option(layer, "", "all");
    for (let i = 0; i < deepest; i++) {
      option(layer, i, i + (i === 0 ? " (next to the embedding)" : i === deepest - 1 ? " (last)" : ""));
    }
    document.getElementById("map-layer").hidden = deepest < 2;
    const first = data.compared && deepest > 1 && !views.length ? String(deepest - 1) : "";
    layer.value = before !== "" && Number(before) < deepest ? before : first;
    return shown;
  }

  // What is compared is coloured alike: from the smallest to the largest of all.
  function oneScale(figures) {
    const groups = {};
    figures.forEach((figure) => figure.panels.forEach((panel) => {
      const kind = JSON.stringify([panel.unit, panel.diverging, panel.diverging ? panel.marks[1] : 0,
        panel.unit ? "" : panel.title, figure.kind]);
      (groups[kind] = groups[kind] || []).push(panel);
    }));
    Object.values(groups).forEach((panels) => {
      const least = panels.reduce((a, b) => b.marks[0] < a.marks[0] ? b : a);
      const most = panels.reduce((a, b) => b.marks[2] > a.marks[2] ? b : a);
      const low = least.marks[0], high = most.marks[2], labels = [least.labels[0], "", most.labels[2]];
      const middle = panels[0].diverging ? panels[0].marks[1] : (low + high) / 2;
      panels.forEach((panel) => Object.assign(panel, { marks: [low, middle, high], labels }));
    });
  }

  function build() {
    const shown = layers(), chosen = layer.value === "" ? null : Number(layer.value);
    views.length = 0;
    box.replaceChildren();
    box.className = data.compared ? "beside" : "";
    if (data.compared && shown.length) {
      box.append(make("div", shown[0].meaning || "", "soft map-meaning"));
    }
    if (data.compared) oneScale(shown);
    shown.forEach((figure) => {
      const named = !figure.layers.every((name) => /^[0-9]+$/.test(name));
      const own = named || chosen === null ? null : chosen < figure.layers.length ? chosen : figure.layers.length - 1;
      show(figure, own);
    });
    drawAll();
  }

  quantity.addEventListener("change", build);
  layer.addEventListener("change", build);
  build();
  let waits = 0;
  addEventListener("resize", () => { cancelAnimationFrame(waits); waits = requestAnimationFrame(drawAll); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
})();
"""
