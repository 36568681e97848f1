/**
 * The heatmap of parameters: in which part of the time in view the gradient of each was non-finite, or had a large share of a norm
 * that was skipped. It has a cell at the keyboard's cursor, in words, and a table of the same figures.
 */

import { clock, integer, percent, plural, visible } from "../format.js";
import { getJson, paths } from "../api.js";
import { queryOf, rowsOf, sorted, timesInView } from "../heat.js";
import { el, keyed, setAttribute, setText } from "../dom.js";

/** @import { Row } from "../heat.js" */
/** @import { State } from "../model.js" */

/** Height of a row (CSS pixels). */
const ROW = 18;
/** How often it is asked for again while the plot follows (ms). */
const PAUSE = 5_000;
const LEGEND = "Red: non-finite steps, darker is more. Orange, half as high: share of a skipped norm.";
const KEYS = "Arrow keys: move over the cells. Enter: show the cell's time in the chart.";

/**
 * Creates the heatmap.
 *
 * @param {object} callbacks
 * @param {(range: [number, number]) => void} callbacks.onTime called with the time of a chosen cell
 * @param {() => void} callbacks.onLoaded called when there is more to show
 */
export function createHeatmap({ onTime, onLoaded }) {
  const canvas = el("canvas", { "aria-hidden": "true" });
  const labels = el("ol", { class: "heat-labels", "aria-hidden": "true" });
  const plot = el("div", { class: "heat-plot", tabindex: 0, role: "group", "aria-describedby": "heat-cell" }, canvas);
  const cell = el("output", { class: "readout", id: "heat-cell", "aria-live": "polite" });
  const [from, to] = [el("span"), el("span")];
  const note = el("p", { class: "constants" });
  const orders = [["name", "by name"], ["first", "by first step"]].map(([value, text]) => {
    const node = el("button", { type: "button", text, on: { click: () => sortBy(value) } });
    return { value, node };
  });
  const group = el("span", { class: "group", role: "group", "aria-label": "Order of the heatmap" }, ...orders.map(({ node }) => node));
  const body = el("tbody");
  const headers = ["Parameter", "First step", "Non-finite steps", "Most in", "Largest norm share"];
  const table = el(
    "table",
    {},
    el("caption", { class: "visually-hidden", text: "Parameters in the time in view" }),
    el("thead", {}, el("tr", {}, ...headers.map((text, i) => el("th", { scope: "col", text, class: i ? "number" : null })))),
    body,
  );
  const details = el("details", {}, el("summary", { text: "As a table" }), el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of the heatmap" }, table));
  const figure = el("div", { class: "heat" }, labels, plot, el("span"), el("div", { class: "heat-axis" }, from, to));
  const node = el("div", { class: "heatmap" }, el("div", { class: "heat-head" }, cell, group), figure, note, details);
  details.addEventListener("toggle", () => showTable());
  node.hidden = true;

  let rows = /** @type {Row[]} */ ([]);
  let answer = /** @type {any} */ (null);
  let order = /** @type {"name" | "first"} */ ("name");
  /** Row and column of the cursor. */
  let cursor = /** @type {[number, number] | null} */ (null);
  let asked = { key: "", signature: "", at: 0 };

  function sortBy(value) {
    order = value;
    rows = sorted(rows, order);
    cursor = null;
    draw();
  }

  async function load(run, query, key, signature) {
    asked = { key, signature, at: performance.now() };
    try {
      const found = query && (await getJson(paths.series(run, query)));
      if (asked.key !== key) return;
      answer = found;
      rows = found ? sorted(rowsOf(found), order) : [];
      cursor = null;
      onLoaded();
      draw();
    } catch {
      // The last answer stays. A lost connection is shown elsewhere.
    }
  }

  const width = () => Math.max(100, plot.clientWidth);
  const columns = () => answer?.times.length ?? 0;

  function draw() {
    node.hidden = rows.length === 0;
    for (const { value, node: button } of orders) setAttribute(button, "aria-pressed", String(value === order));
    if (node.hidden) return;
    keyed(labels, rows, ({ parameter }) => parameter, ({ parameter }) => el("li", { title: visible(parameter) }, el("bdi", { text: visible(parameter) })));
    const times = answer.times.map(Number);
    setText(from, clock(Math.max(times[0], Number(answer.since))));
    setText(to, clock(Number(answer.until)));
    setText(note, noteOf(answer));
    setAttribute(plot, "aria-label", `Heatmap of ${plural(rows.length, "parameter")} over the time in view. ${KEYS}`);
    Object.assign(plot.dataset, { rows: rows.length, cells: rows.reduce((sum, { counts }) => sum + counts.filter(Boolean).length, 0) });
    setText(cell, cellInWords());
    showTable();
    paint();
  }

  function paint() {
    const ratio = devicePixelRatio;
    const context = canvas.getContext("2d");
    if (!context) return;
    canvas.width = width() * ratio;
    canvas.height = rows.length * ROW * ratio;
    canvas.style.height = `${rows.length * ROW}px`;
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const [bad, large, ground, ring] = ["--kind-skipped-not-finite", "--kind-skipped-large", "--sunken", "--focus"].map(colour);
    const step = canvas.width / Math.max(1, columns());
    const most = Math.log1p(Math.max(1, ...rows.flatMap(({ counts }) => counts)));
    rows.forEach((row, i) => {
      const y = i * ROW * ratio;
      const height = (ROW - 2) * ratio;
      context.globalAlpha = 1;
      context.fillStyle = ground;
      context.fillRect(0, y, canvas.width, height);
      for (let column = 0; column < columns(); column += 1) {
        const [x, next] = [Math.floor(column * step), Math.floor((column + 1) * step)];
        const share = row.shares?.[column] ?? null;
        if (row.counts[column]) {
          context.globalAlpha = 0.35 + (0.65 * Math.log1p(row.counts[column])) / most;
          context.fillStyle = bad;
          context.fillRect(x, y, Math.max(2 * ratio, next - x), height);
        }
        // A share of the norm is half as high, so that colour is not the only difference.
        if (share !== null) {
          context.globalAlpha = 0.35 + 0.65 * share;
          context.fillStyle = large;
          context.fillRect(x, y + height / 2, Math.max(2 * ratio, next - x), height / 2);
        }
      }
    });
    context.globalAlpha = 1;
    if (!cursor) return;
    context.strokeStyle = ring;
    context.lineWidth = 2 * ratio;
    context.strokeRect(cursor[1] * step, cursor[0] * ROW * ratio, Math.max(4 * ratio, step), (ROW - 2) * ratio);
  }

  /** The time of a column, within the answer's. @returns {[number, number]} */
  const timeOf = (column) => {
    const begin = Number(answer.times[column]);
    return [Math.max(begin, Number(answer.since)), Math.min(begin + answer.bucket, Number(answer.until))];
  };

  function cellInWords() {
    if (!cursor || !answer) return LEGEND;
    const { parameter, counts, shares } = rows[cursor[0]];
    const [begin, end] = timeOf(cursor[1]);
    const share = shares?.[cursor[1]] ?? null;
    const parts = [visible(parameter), `${clock(begin)} to ${clock(end)}`];
    parts.push(`non-finite in ${integer(counts[cursor[1]])} of ${plural(answer.steps[cursor[1]], "step")}`);
    if (share !== null) parts.push(`up to ${percent(share, 1)} of a norm that was skipped as too large`);
    return parts.join(" · ");
  }

  function move(row, column) {
    if (rows.length === 0) return;
    cursor = [Math.min(rows.length - 1, Math.max(0, row)), Math.min(columns() - 1, Math.max(0, column))];
    setText(cell, cellInWords());
    paint();
  }

  /** The cell under the pointer. */
  function under(event) {
    const box = canvas.getBoundingClientRect();
    return [Math.floor((event.clientY - box.top) / ROW), Math.floor(((event.clientX - box.left) / box.width) * columns())];
  }

  plot.addEventListener("pointermove", (event) => move(...under(event)));
  plot.addEventListener("click", () => cursor && onTime(timeOf(cursor[1])));
  plot.addEventListener("keydown", (event) => {
    const [row, column] = cursor ?? [0, -1];
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -column], End: [0, columns()] };
    if (event.key === "Enter" && cursor) onTime(timeOf(cursor[1]));
    else if (moves[event.key]) move(row + moves[event.key][0], column + moves[event.key][1]);
    else return;
    event.preventDefault();
  });
  new ResizeObserver(() => rows.length && paint()).observe(plot);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => rows.length && paint());

  function showTable() {
    if (!details.open || !answer) return;
    body.replaceChildren(...rows.map((row) => {
      const most = row.counts.indexOf(Math.max(...row.counts));
      const share = Math.max(...(row.shares ?? []).map((one) => one ?? 0), 0);
      const cells = [integer(row.firstStep), integer(row.total), row.total ? clock(timeOf(most)[0]) : "–", share ? percent(share, 1) : "–"];
      const path = el("td", {}, el("bdi", { class: "path", text: visible(row.parameter) }));
      return el("tr", {}, path, ...cells.map((text) => el("td", { class: "number", text })));
    }));
  }

  /** Shows the time in view, for the parameters that match `filter`. */
  function update(/** @type {State} */ state, /** @type {string} */ filter) {
    const times = timesInView(state);
    const { totals, run } = state.detail;
    const bad = totals.not_finite_steps + totals.skipped.large;
    if (!times || bad === 0) {
      rows = [];
      draw();
      return;
    }
    const { axis, window, range } = state.view;
    // While the plot follows, its range changes with each step: only bad steps cause another request.
    const key = JSON.stringify([run, state.process, filter, axis, range ?? window]);
    const signature = JSON.stringify([key, bad, state.version > 0]);
    const pause = asked.key === key ? PAUSE : 0;
    if (asked.signature === signature || performance.now() - asked.at < pause) return;
    if (asked.key.split(",")[0] !== key.split(",")[0]) rows = [];
    load(run, queryOf(state, times, filter), key, signature);
  }

  return { node, update };
}

/** What the answer leaves out. */
function noteOf({ left_out: left, sampled }) {
  const found = [];
  if (left) found.push(`${plural(left, "parameter")} with fewer steps are not drawn: filter to see them.`);
  if (sampled !== null) found.push(`Estimated from ${percent(sampled, 1)} of the bad steps. Zoom in for all.`);
  return found.join(" ");
}
