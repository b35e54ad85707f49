// Draws the figures with plotly, and the token view. Data: the JSON of page.py. Texts reach the page as text nodes, or
// escaped where plotly would read them as markup.
"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const RUN_COLORS = 8;
const narrow = window.matchMedia("(max-width: 720px)");

const cssVariable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const runColor = (index) => (index === null ? cssVariable("--soft") : cssVariable(`--c${index % RUN_COLORS}`));
const plotlyText = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const fade = (color, alpha) => color + Math.round(alpha * 255).toString(16).padStart(2, "0");

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, attributes);
  made.append(...children);
  return made;
}

// ---- figures -------------------------------------------------------------------------------------------------------

function seriesTraces(series) {
  const color = runColor(series.color);
  const name = plotlyText(series.label);
  const marker = { color: series.mark === "points" ? fade(color, 0.55) : color, size: 5 };
  const many = series.x.length > 40;
  const line = {
    x: series.x, y: series.y, name, type: "scatter", marker,
    mode: series.mark === "points" ? "markers" : many || series.dash ? "lines" : "lines+markers",
    line: { color, width: 2, dash: series.dash ? "dash" : "solid" },
    hovertemplate: series.mark === "points" ? `%{x:.3g}, %{y:.3g}<extra>${name}</extra>` : undefined,
    yhoverformat: ".4~g",
  };
  if (!series.low) return [line];
  const edge = { x: series.x, type: "scatter", mode: "lines", line: { width: 0 }, hoverinfo: "skip", };
  return [
    { ...edge, y: series.low },
    { ...edge, y: series.high, fill: "tonexty", fillcolor: fade(color, 0.16) },
    line,
  ];
}

function heatTrace(heat) {
  return {
    type: "heatmap", z: heat.values, x: heat.columns.map(plotlyText), y: heat.rows.map(plotlyText), zmin: 0, zmax: 1,
    colorscale: [[0, `rgba(${cssVariable("--high")}, 0)`], [1, `rgba(${cssVariable("--high")}, 1)`]],
    colorbar: { thickness: 10, outlinewidth: 0, len: 0.95, tickfont: { color: cssVariable("--soft") } },
    hoverongaps: false, xgap: 2, ygap: 2, hovertemplate: "%{x}, epoch %{y}: %{z:.2f}<extra></extra>",
  };
}

function layout(figure) {
  const grid = cssVariable("--grid"), soft = cssVariable("--soft");
  const isHeat = figure.heat !== null;
  const axis = (title, range) => ({
    title: { text: plotlyText(title), font: { size: 12, color: soft }, standoff: 8 }, gridcolor: grid, zeroline: false,
    linecolor: grid, tickfont: { size: 11, color: soft }, fixedrange: narrow.matches,
    ...(isHeat ? { type: "category", showgrid: false } : {}), ...(range ? { range } : {}),
  });
  const points = figure.series.some((series) => series.mark === "points");
  const named = figure.series.some((series) => typeof series.x[0] === "string"); // "1" too is a name, not a number
  return {
    margin: { l: 60, r: 10, t: 8, b: 42 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", color: cssVariable("--ink"), size: 12 },
    xaxis: { ...axis(figure.x, figure.x_range), ...(named ? { type: "category" } : {}) },
    yaxis: { ...axis(figure.y, figure.y_range), ...(isHeat ? { autorange: "reversed" } : {}) },
    hovermode: points || isHeat ? "closest" : "x unified",
    hoverlabel: { bgcolor: cssVariable("--panel"), bordercolor: cssVariable("--line"), font: { color: cssVariable("--ink") } },
    showlegend: false,
    dragmode: narrow.matches ? false : "zoom",
  };
}

const hidden = new Map(); // figure -> labels of the series that were switched off

function drawFigure(plot) {
  const figure = DATA.figures[plot.dataset.figure];
  const off = hidden.get(figure) ?? new Set();
  const series = figure.series.filter(({ label }) => !off.has(label));
  const traces = figure.heat ? [heatTrace(figure.heat)] : series.flatMap(seriesTraces);
  Plotly.react(plot, traces, layout(figure), { responsive: true, displayModeBar: false });
}

// A legend of our own: one line of small print that wraps, the same colours in all figures; a click hides a series.
function addLegend(plot) {
  const figure = DATA.figures[plot.dataset.figure];
  if (figure.series.length < 2) return;
  const off = new Set();
  hidden.set(figure, off);
  const buttons = figure.series.map(({ label, color, dash, mark }) => {
    const swatch = element("i", { className: `swatch ${mark} ${dash ? "dash" : ""}` });
    swatch.style.color = color === null ? "var(--soft)" : `var(--c${color % RUN_COLORS})`;
    const button = element("button", { type: "button" }, swatch, label);
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      if (!off.delete(label)) off.add(label);
      button.setAttribute("aria-pressed", String(!off.has(label)));
      drawFigure(plot);
    });
    return button;
  });
  plot.before(element("div", { className: "legend" }, ...buttons));
}

function drawFigures() {
  const plots = [...document.querySelectorAll(".plot")];
  plots.forEach(addLegend);
  const drawn = new Set();
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      seen.unobserve(entry.target);
      drawn.add(entry.target);
      drawFigure(entry.target);
    }
  }, { rootMargin: "600px" });
  plots.forEach((plot) => seen.observe(plot));
  const again = () => drawn.forEach(drawFigure);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  narrow.addEventListener("change", again);
  window.addEventListener("beforeprint", () => plots.forEach(drawFigure));
}

// ---- tokens --------------------------------------------------------------------------------------------------------

const ENTRY = 4; // numbers of an entry in `tops`: token, q, p, w
const CHOICES = 5; // shown of each model
const byId = (id) => document.getElementById(id);

// Spaces and line ends of a token, made visible.
const shown = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
const compact = (value) => (value === null ? "–" : Math.abs(value) >= 100 ? value.toFixed(0) : String(+value.toPrecision(3)));

class TokenView {
  constructor(data) {
    this.data = data;
    this.chosen = null;
    this.run = byId("token-run"); this.row = byId("token-row");
    this.measure = byId("token-measure"); this.epoch = byId("token-epoch");
    this.run.append(...data.runs.map((run, index) => new Option(run.label, index)));
    this.measure.append(...data.measures.map((measure, index) => new Option(measure.label, index)));
    this.run.addEventListener("change", () => this.openRun());
    this.row.addEventListener("change", () => this.openRow());
    this.measure.addEventListener("change", () => this.paint());
    this.epoch.addEventListener("input", () => this.paint());
    byId("token-text").addEventListener("keydown", (event) => this.move(event));
    // The last run is the one with most to see: baselines come first.
    this.run.value = data.runs.length - 1;
    this.openRun();
  }

  get ofRun() { return this.data.runs[this.run.value]; }
  get ofRow() { return this.ofRun.rows[this.row.value]; }
  get ofEpoch() { return this.ofRow.epochs[this.epoch.value]; }
  word(number) { return this.data.vocabulary[number]; }

  openRun() {
    const lengths = this.ofRun.rows.map((row) => row.tokens.length);
    const before = this.row.value || lengths.indexOf(Math.max(...lengths));
    this.row.replaceChildren(...this.ofRun.rows.map((row, index) => new Option(`${index + 1}. ${row.title.slice(0, 120)}`, index)));
    this.row.value = Math.min(before, this.ofRun.rows.length - 1);
    const known = this.ofRun.rows[0].epochs[0].values;
    [...this.measure.options].forEach((option, index) => { option.disabled = !(this.data.measures[index].field in known); });
    if (this.measure.selectedOptions[0]?.disabled) {
      this.measure.value = [...this.measure.options].findIndex((option) => !option.disabled);
    }
    this.openRow(true);
  }

  openRow(keep = false) {
    this.epoch.max = this.ofRow.epochs.length - 1;
    this.epoch.value = this.epoch.max;
    if (!keep || this.chosen >= this.ofRow.tokens.length) this.chosen = null;
    byId("token-place").textContent = `Prompt (${this.ofRow.place})`;
    byId("token-prompt").textContent = this.ofRow.prompt;
    this.spans = this.ofRow.tokens.map((number, index) => {
      const span = element("span", { className: "token", textContent: this.word(number).replace(/\n/g, "↵\n"), tabIndex: -1 });
      span.setAttribute("role", "option");
      span.addEventListener("click", () => this.choose(index));
      return span;
    });
    this.spans[0].tabIndex = 0;
    byId("token-text").replaceChildren(...this.spans);
    if (this.chosen === null) this.chosen = this.mostStriking();
    this.paint();
  }

  // The token that the current colour shows strongest: something to look at before the first click.
  mostStriking() {
    const values = this.ofEpoch.values.forward_kl ?? this.ofEpoch.values.nll ?? [];
    return values.indexOf(Math.max(...values));
  }

  choose(index) { this.chosen = this.chosen === index ? null : index; this.paint(); }

  move(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const from = this.chosen ?? -1;
    if (event.key === "Enter" || event.key === " ") this.choose(this.spans.indexOf(document.activeElement));
    else if (step) { this.chosen = Math.max(0, Math.min(this.spans.length - 1, from + step)); this.paint(); this.spans[this.chosen].focus(); }
    else return;
    event.preventDefault();
  }

  color(measure, value) {
    if (value === null) return "transparent";
    if (measure.kind === "yes") return value ? "rgba(var(--high), .38)" : "transparent";
    const half = measure.kind === "around" ? measure.middle : measure.low;
    const strength = Math.min(1, Math.abs(value - half) / (measure.high - half));
    const name = measure.kind !== "around" ? "--heat" : value > half ? "--high" : "--low";
    return `rgba(var(${name}), ${(0.75 * strength).toFixed(3)})`;
  }

  paint() {
    const measure = this.data.measures[this.measure.value];
    const epoch = this.ofEpoch;
    const values = (epoch.values[measure.field] ?? []).map((value) => (value === null ? null : value / this.data.scale));
    this.spans.forEach((span, index) => {
      const value = values[index] ?? null;
      span.style.background = this.color(measure, value);
      span.title = `${measure.label} ${measure.kind === "yes" ? (value ? "yes" : "no") : compact(value)}`;
      span.classList.toggle("chosen", index === this.chosen);
      span.setAttribute("aria-selected", index === this.chosen);
    });
    byId("token-epoch-text").textContent = epoch.epoch === 0 ? "0 (before training)" : `${epoch.epoch} (step ${epoch.step})`;
    const ends = measure.kind === "yes" ? ["no", "yes"] : [compact(measure.low), `${compact(measure.high)}${measure.kind === "amount" ? "+" : ""}`];
    const names = measure.field === "todi_weight" ? ["reverse KL ", " forward KL"] : ["", ""];
    byId("scale-low").textContent = names[0] + ends[0];
    byId("scale-high").textContent = ends[1] + names[1];
    const stops = measure.kind === "around" ? [measure.low, measure.middle, measure.high] : [measure.low, measure.high];
    byId("scale-bar").style.background = `linear-gradient(to right, ${stops.map((stop) => this.color(measure, stop)).join(", ")})`;
    this.showDetail();
  }

  showDetail() {
    const detail = byId("token-detail");
    if (this.chosen === null) return detail.replaceChildren();
    const { values, tops } = this.ofEpoch;
    const reference = this.word(this.ofRow.tokens[this.chosen]);
    const numbers = element("div", { className: "numbers" }, element("span", {}, "token", element("b", { textContent: shown(reference) })));
    for (const measure of this.data.measures) {
      const value = values[measure.field]?.[this.chosen] ?? null;
      if (value === null) continue;
      const text = measure.kind === "yes" ? (value ? "yes" : "no") : compact(value / this.data.scale);
      numbers.append(element("span", {}, measure.label, element("b", { textContent: text })));
    }
    const flat = tops[this.chosen], entries = [];
    for (let i = 0; i < flat.length; i += ENTRY) {
      const [token, q, p, w] = flat.slice(i, i + ENTRY);
      entries.push({ text: this.word(token), q, p, w });
    }
    const tables = [["Student", "q", "p"], ["Teacher", "p", "q"]]
      .filter(([, first]) => entries.some((entry) => entry[first] !== null))
      .map(([title, first, other]) => this.table(title, first, other, entries, reference));
    detail.replaceChildren(numbers, element("div", { className: "tops" }, ...tables));
  }

  table(title, first, other, entries, reference) {
    const best = [...entries].sort((a, b) => (b[first] ?? -1) - (a[first] ?? -1)).slice(0, CHOICES);
    const share = (value) => (value === null ? "–" : (value / this.data.probability).toFixed(3));
    const rows = best.map((entry) => {
      const meter = element("i", {}, element("i", { className: "meter" }));
      meter.firstChild.style.width = `${(100 * entry[first]) / this.data.probability}%`;
      return element("tr", {},
        element("td", { textContent: shown(entry.text), className: entry.text === reference ? "reference" : "" }),
        element("td", { className: "wide" }, meter), element("td", { textContent: share(entry[first]) }),
        element("td", { textContent: share(entry[other]) }),
        element("td", { textContent: entry.w === null ? "–" : (entry.w / this.data.weight).toFixed(2) }));
    });
    const head = [title, "", first, other, "w"].map((text) => element("th", { textContent: text }));
    return element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
  }
}

if (DATA.tokens) new TokenView(DATA.tokens);
drawFigures();
