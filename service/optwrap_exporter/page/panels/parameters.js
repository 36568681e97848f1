/**
 * The parameters panel: a heatmap of the time in view, and a table of the parameters whose gradients were non-finite in the whole
 * run: the first and last step, how many steps, and how many values.
 */

import { compact, integer, plural, visible } from "../format.js";
import { streakStart } from "../model.js";
import { paths } from "../api.js";
import { el, keyed, panelHead, setAttribute, setText } from "../dom.js";
import { createHeatmap } from "./heatmap.js";

/** Number of rows at first, and how many a click on "Show more" adds. The filter searches all rows. */
const ROWS = 100;
const MORE = 1_000;
/** The filter is shown from this number of parameters on. */
const FILTER_FROM = 8;
/** If more parameters than this were non-finite in the first step, none of them is marked "first". */
const MAX_FIRST = 3;

const COLUMNS = [
  { key: "parameter", label: "Parameter", what: "Path of the parameter in the model's tree" },
  { key: "first_step", label: "First", what: "First step in which its gradient was non-finite" },
  { key: "last_step", label: "Last", what: "Last step in which its gradient was non-finite" },
  { key: "steps", label: "Steps", what: "Number of steps in which its gradient was non-finite" },
  { key: "values", label: "Values", what: "Number of non-finite values in its gradients, over these steps" },
];

/**
 * Creates the panel.
 *
 * @param {HTMLElement} root
 * @param {object} callbacks
 * @param {(step: number) => void} callbacks.onStep shows a step in the chart
 * @param {(range: [number, number]) => void} callbacks.onTime shows a time in the chart
 * @param {() => void} callbacks.onLoaded called when the panel has more to show
 */
export function createParameters(root, { onStep, onTime, onLoaded }) {
  const { head, aside, link } = panelHead(
    "parameters-title",
    "Parameters",
    "Parameters whose gradients had NaN or Inf values, or a large share of a norm that was skipped as too large",
  );
  const filter = el("input", { type: "search", placeholder: "Filter", "aria-label": "Filter parameters by path" });
  const count = el("span", { class: "count" });
  const copy = el("button", { type: "button", text: "Copy", title: "Copy the filtered rows as tab-separated values" });
  aside.append(count, filter, copy);
  const headers = COLUMNS.map(({ key, label, what }) => {
    const button = el("button", { type: "button", text: label, title: what });
    button.addEventListener("click", () => {
      order = order?.key === key ? { key, down: !order.down } : { key, down: key !== "parameter" && key !== "first_step" };
      draw();
    });
    return { key, cell: el("th", { scope: "col", class: key === "parameter" ? null : "number" }, button) };
  });
  const body = el("tbody");
  const table = el("table", { "aria-labelledby": "parameters-title" }, el("thead", {}, el("tr", {}, ...headers.map(({ cell }) => cell))), body);
  const none = el("p", { class: "notice", text: "None. All gradients so far were finite." });
  const rest = el("span");
  const grow = el("button", { type: "button", text: "Show more" });
  const more = el("p", { class: "more" }, rest, grow);
  const heatmap = createHeatmap({ onTime, onLoaded });
  root.append(head, heatmap.node, none, el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of parameters" }, table), more);

  /** The column to sort by; null for the exporter's order, worst first. */
  let order = /** @type {{key: string, down: boolean} | null} */ (null);
  let parameters = [];
  /** The parameters that are marked "first". */
  let firsts = new Set();
  let shown = null;
  let shownStreak;
  let shownRun = null;
  let limit = ROWS;
  let current = /** @type {any} */ (null);
  filter.addEventListener("input", () => {
    draw();
    if (current) heatmap.update(current, wantedPath());
  });
  grow.addEventListener("click", () => {
    limit += MORE;
    draw();
  });
  copy.addEventListener("click", async () => {
    const lines = [COLUMNS.map(({ key }) => key), ...filteredRows().map((row) => COLUMNS.map(({ key }) => cellText(row[key])))];
    const done = await copyText(lines.map((cells) => cells.join("\t")).join("\n"));
    setText(copy, done ? "Copied" : "Not copied");
    setTimeout(() => setText(copy, "Copy"), 2_000);
  });

  const wantedPath = () => filter.value.trim().toLowerCase();

  /** The filtered rows, in the order of the table. */
  function filteredRows() {
    const wanted = wantedPath();
    const rows = wanted ? parameters.filter(({ parameter }) => parameter.toLowerCase().includes(wanted)) : [...parameters];
    if (!order) return rows;
    const { key, down } = order;
    return rows.sort((a, b) => (down ? -1 : 1) * compare(a[key], b[key]));
  }

  function create({ parameter }) {
    const first = el("button", { type: "button", class: "jump" });
    const last = el("button", { type: "button", class: "jump" });
    for (const button of [first, last]) button.addEventListener("click", () => onStep(Number(button.value)));
    const badge = el("span", { class: "badge", text: "first", title: "Non-finite before all others, in the current streak or, without one, in the whole run. Begin your search here" });
    return el(
      "tr",
      { "data-parameter": parameter },
      el("td", { title: visible(parameter) }, el("span", { class: "path" }, badge, el("bdi", { text: visible(parameter) }))),
      el("td", { class: "number" }, first),
      el("td", { class: "number" }, last),
      el("td", { class: "number" }),
      el("td", { class: "number" }),
    );
  }

  function update(row, item) {
    const [path, first, last, steps, values] = row.children;
    path.firstChild.firstChild.hidden = !firsts.has(item.parameter);
    for (const [cell, step] of [[first, item.first_step], [last, item.last_step]]) {
      setText(cell.firstChild, integer(step));
      setAttribute(cell.firstChild, "value", step);
      setAttribute(cell.firstChild, "title", `Show step ${integer(step)} in the chart`);
    }
    setText(steps, integer(item.steps));
    setText(values, compact(item.values));
    setAttribute(values, "title", integer(item.values));
  }

  function draw() {
    const filtered = filter.value.trim() !== "";
    const all = filteredRows();
    const rows = all.slice(0, limit);
    for (const { key, cell } of headers) setAttribute(cell, "aria-sort", order?.key === key ? (order.down ? "descending" : "ascending") : null);
    keyed(body, rows, ({ parameter }) => parameter, create, update);
    none.hidden = parameters.length > 0;
    table.parentNode.hidden = parameters.length === 0;
    filter.hidden = parameters.length < FILTER_FROM && !filtered;
    copy.hidden = parameters.length === 0;
    setText(count, parameters.length ? plural(parameters.length, "parameter") : "");
    grow.hidden = all.length <= limit;
    more.hidden = grow.hidden && !(filtered && all.length === 0);
    setText(rest, grow.hidden ? "No parameter matches the filter." : `${integer(all.length - limit)} more.`);
  }

  return ({ state }) => {
    if (!state.detail) return;
    current = state;
    heatmap.update(state, wantedPath());
    const streak = streakStart(state);
    if (state.parameters === shown && streak?.id === shownStreak) return;
    shown = parameters = state.parameters;
    shownStreak = streak?.id;
    if (state.detail.run !== shownRun) limit = ROWS;
    shownRun = state.detail.run;
    firsts = new Set(firstOf(parameters, streak));
    setAttribute(link, "href", paths.parameters(state.detail.run));
    draw();
  };
}

/** The paths to mark "first": of the current streak or, without one, of the whole run. Empty if too many share the first step. */
function firstOf(parameters, streak) {
  const least = parameters.reduce((step, item) => Math.min(step, item.first_step ?? Infinity), Infinity);
  const candidates = streak ? (streak.detail.parameters ?? []) : parameters.filter((item) => item.first_step === least);
  const count = streak?.detail.parameter_count ?? candidates.length;
  return count < parameters.length && count <= MAX_FIRST ? candidates.map(({ parameter }) => parameter) : [];
}

/** A value as a cell of tab-separated text. A path may contain any character, so tabs and newlines are written out. */
function cellText(value) {
  return visible(value ?? "");
}

/** Copies text to the clipboard, and returns whether it worked. */
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Browsers offer navigator.clipboard on secure origins only.
    const area = el("textarea", { readonly: true, class: "visually-hidden", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

function compare(a, b) {
  return typeof a === "string" ? a.localeCompare(b) : (a ?? 0) - (b ?? 0);
}
