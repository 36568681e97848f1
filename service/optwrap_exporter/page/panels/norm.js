/** The gradient norm panel: the chart, the controls of its view, and a line of text about one step. */

import { clock, integer, norm, plural, visible } from "../format.js";
import { bucketsOf, bucketsWithin, countsWithin, covers, stepsWithin, wantsBuckets } from "../buckets.js";
import { shownRecords, stepsInView, visibleRange } from "../view.js";
import { STEPS_HELD } from "../steps.js";
import { isBad, KINDS } from "../words.js";
import { paths } from "../api.js";
import { el, panelHead, setAttribute, setText, shape } from "../dom.js";
import { createChart } from "../chart/chart.js";
import { fileName, saveCsv, savePicture } from "../chart/export.js";
import { happenedWithin } from "../chart/happened.js";
import { createOverlay } from "../chart/overlay.js";
import { createComparison } from "./comparison.js";
import { createReadout } from "./readout.js";

/** @import { Buckets } from "../buckets.js" */
/** @import { State } from "../model.js" */

const AXES = [
  ["step", "by step", "The x axis is the step number"],
  ["time", "by time", "The x axis is the time of each step, by the clock of the training process"],
];
const WINDOWS = [
  [200, "last 200"],
  [2000, "last 2,000"],
  ["all", "all"],
];
const LEGEND = [
  ["line", "norm", "gradient norm", "norm-line"],
  ["line", "median", "median norm", "norm-line"],
  ["block", "band", "smallest to largest norm", "norm-band"],
  ["line", "overlay", "compared", "overlay-line"],
  ["dash", "limit", "limit", "kind-skipped_large"],
  ...["skipped_not_finite", "skipped_large", "skipped_other", "accumulated_not_finite", "accepted_not_finite", "accumulated", "applied"].map(
    (kind) => [KINDS[kind].shape, kind, KINDS[kind].word, `kind-${kind}`],
  ),
];

const KEYS =
  "Left and right arrow keys: previous and next bad step. With Shift: the step beside. Home and End: first and last step in view. " +
  "Escape: follow the newest steps.";

/** How often missing steps are asked for while the plot follows (ms). */
const PAUSE = 3_000;

/** The part of a view that makes it follow the newest steps. */
const FOLLOW = { range: null, step: null, at: null };

/**
 * Creates the panel.
 *
 * @param {HTMLElement} root
 * @param {any} uPlot null if it is missing
 * @param {object} callbacks
 * @param {(view: any) => void} callbacks.onView changes the view
 * @param {(range: [number, number], selection?: any) => void} callbacks.onRange shows a range
 * @param {(axis: string) => void} callbacks.onAxis shows the same steps along another axis
 * @param {(range: [number, number]) => void} callbacks.onMissing called if steps of a range are not held
 * @param {() => void} callbacks.onLoaded called when the panel has more to show
 */
export function createNormPanel(root, uPlot, { onView, onRange, onAxis, onMissing, onLoaded }) {
  const { head, aside, link } = panelHead("norm-title", "Gradient norm", "Global L2 norm of the gradients of each step, on a logarithmic axis");
  const button = (text, title, onClick) => el("button", { type: "button", text, title, on: { click: onClick } });
  let hovered = /** @type {number | null} */ (null);
  let current = /** @type {State | null} */ (null);
  /** The selection that the crosshair was last put on. */
  let shownSelection = /** @type {string | null} */ (null);
  /** The buckets that are shown; null if each step is. */
  let buckets = /** @type {Buckets | null} */ (null);
  /** The buckets that were built last, and from what. */
  let built = /** @type {{held: any, version: number, buckets: Buckets | null}} */ ({ held: null, version: -1, buckets: null });
  /** What was missing last, and when it was asked for. */
  let missing = { key: "", at: 0, steps: /** @type {any} */ (null) };
  const windows = WINDOWS.map(([value, text]) => {
    const node = button(text, `Follow the newest steps: show ${text}`, () => onView({ window: value, ...FOLLOW }));
    return { value, node };
  });
  const axes = AXES.map(([value, text, tooltip]) => ({ value, node: button(text, tooltip, () => onAxis(value)) }));
  const previous = button("◂ bad step", "Go to the previous bad step", () => walk(-1));
  const next = button("bad step ▸", "Go to the next bad step", () => walk(1));
  const follow = button("Follow", "Follow the newest steps again", () => onView(FOLLOW));
  follow.className = "follow";
  const png = button("PNG", "Save the charts as a picture", saveAsPicture);
  const csv = button("CSV", "Save the step records in view as comma-separated values", saveAsCsv);
  const comparison = createComparison({ onChoose: (compare) => onView({ compare }) });
  const overlays = createOverlay({ onLoaded });
  aside.append(
    follow,
    comparison.node,
    el("span", { class: "group", role: "group", "aria-label": "Bad steps" }, previous, next),
    el("span", { class: "group", role: "group", "aria-label": "Axis" }, ...axes.map(({ node }) => node)),
    el("span", { class: "group", role: "group", "aria-label": "Steps in view" }, ...windows.map(({ node }) => node)),
    el("span", { class: "group", role: "group", "aria-label": "Save" }, png, csv),
  );
  png.hidden = !uPlot;
  const readout = createReadout();
  const host = el("div", { class: "chart" });
  const figure = el(
    "div",
    {
      class: "figure-box",
      role: "group",
      tabindex: 0,
      "aria-describedby": "norm-summary",
    },
    host,
  );
  const summary = el("p", { class: "visually-hidden", id: "norm-summary" });
  const legend = el("ul", { class: "legend", "aria-label": "Legend" });
  const entries = LEGEND.map(([name, key, text, className]) => {
    const item = el("li", { title: KINDS[key]?.what ?? null, "data-key": key }, shape(name, className), el("span", { text }));
    legend.append(item);
    return /** @type {[string, HTMLElement]} */ ([key, item]);
  });
  root.append(head, readout.node, figure, summary, legend);
  if (!uPlot) {
    host.classList.add("notice");
    host.textContent =
      "There is no chart: this installation lacks the chart library. In a checkout, “make setup” fetches it. " +
      "The rest of the page works. The bad steps are in the list of events below.";
  }
  const chart = uPlot
    ? createChart(uPlot, host, {
        onRange: (range) => onRange(range),
        onFollow: () => onView(FOLLOW),
        onHover: (index) => {
          hovered = index;
          if (current) readout.update(current, { index: hovered, buckets });
        },
      })
    : null;

  /** Goes to the bad step before (-1) or after (+1) the selected step. */
  function walk(direction) {
    const range = current && visibleRange(current);
    if (!current || !range) return;
    const records = shownRecords(current);
    const i = badBeside(current.view, records, direction);
    if (i === undefined) return;
    select(current, records, i, range);
  }

  /** Goes to the step before (-1) or after (+1) the selected one. */
  function walkSteps(direction) {
    if (!current) return;
    const records = shownRecords(current);
    const { step, at } = current.view;
    const from = step === null ? (direction < 0 ? records.length - 1 : 0) : records.indexOf(step, at) + direction;
    selectRecord(Math.round(from));
  }

  /** Goes to the first (-1) or the last (+1) step in view. */
  function walkToEnd(direction) {
    const range = current && visibleRange(current);
    if (!current || !range) return;
    const [first, end] = shownRecords(current).within(...range);
    selectRecord(direction < 0 ? first : end - 1);
  }

  function selectRecord(i) {
    const range = current && visibleRange(current);
    if (!current || !range) return;
    const records = shownRecords(current);
    if (i < 0 || i >= records.length) return;
    select(current, records, i, range);
  }

  /** Selects a record, and moves the range in view if it is not in it. */
  function select(state, records, i, range) {
    const { step, time: at } = records.at(i);
    const x = records.x[i];
    const half = (range[1] - range[0]) / 2;
    const shown = x >= range[0] && x <= range[1] ? range : [x - half, x + half];
    // The next key may come before the page is drawn again, and goes on from here.
    current = { ...state, view: { ...state.view, step, at, range: shown } };
    if (shown === range) onView({ step, at, range });
    else onRange(shown, { step, at });
  }

  figure.addEventListener("keydown", (event) => {
    const direction = { ArrowLeft: -1, ArrowRight: 1, Home: -1, End: 1 }[event.key];
    if (event.key === "Escape") onView(FOLLOW);
    else if (direction === undefined) return;
    else if (event.key.startsWith("Arrow")) (event.shiftKey ? walkSteps : walk)(direction);
    else walkToEnd(direction);
    event.preventDefault();
  });

  function saveAsPicture() {
    const range = current && visibleRange(current);
    if (!current || !range) return;
    const records = shownRecords(current);
    const canvas = /** @type {HTMLCanvasElement} */ (host.querySelector("canvas"));
    const scalars = [...document.querySelectorAll("#scalars figure")].map((one) => ({
      canvas: /** @type {HTMLCanvasElement} */ (one.querySelector("canvas")),
      title: one.querySelector("figcaption")?.textContent ?? "",
    }));
    const lines = [`${visible(current.selected)}, process ${current.process}: gradient norm`, summarize(records, range, buckets)];
    savePicture(`${fileName(current.selected ?? "run")}.png`, lines, [{ canvas, title: "" }, ...scalars.filter((one) => one.canvas)]);
  }

  async function saveAsCsv() {
    if (!current?.selected) return;
    const saved = await saveCsv(`${fileName(current.selected)}-steps.csv`, stepsPath(current));
    setText(csv, saved ? "CSV" : "No CSV");
  }

  /** Asks for what the view needs and the page does not hold: each record of few steps, or buckets of many. */
  function askForMissing(state, records, range) {
    const many = wantsBuckets(records, range);
    const [first, end] = records.within(...range);
    const complete = many ? covers(state.buckets, records, range, state.detail.totals.steps) : end - first >= stepsWithin(records, range);
    if (complete || records.length === 0) return;
    const { axis, window, range: fixed } = state.view;
    const key = JSON.stringify([state.selected, state.process, axis, window, fixed, many]);
    const again = many && performance.now() - missing.at > PAUSE;
    if (key === missing.key && state.steps === missing.steps && !again) return;
    missing = { key, at: performance.now(), steps: state.steps };
    onMissing(range);
  }

  /** The buckets to show; null if each step is shown. */
  function bucketsToShow(state, records, range) {
    const { buckets: held } = state;
    if (!wantsBuckets(records, range) || held?.answer.axis !== state.view.axis) return null;
    const { version } = state;
    if (built.held !== held || built.version !== version) built = { held, version, buckets: bucketsOf(held, records) };
    return built.buckets;
  }

  function showButtons(view, records) {
    const fixed = view.range !== null;
    follow.hidden = !fixed;
    for (const { value, node } of axes) setAttribute(node, "aria-pressed", String(view.axis === value));
    for (const { value, node } of windows) setAttribute(node, "aria-pressed", String(!fixed && view.window === value));
    previous.disabled = badBeside(view, records, -1) === undefined;
    next.disabled = badBeside(view, records, 1) === undefined;
  }

  /** Puts the crosshair on a newly selected step. */
  function showCrosshair(view, records) {
    const selection = view.step === null ? null : `${view.axis} ${view.step} ${view.at}`;
    if (selection !== shownSelection && selection !== null && records.length) {
      const x = records.byTime ? records.time[Math.round(records.indexOf(view.step, view.at))] : view.step;
      // The chart applies its new range after this function returns, so the crosshair moves later.
      setTimeout(() => chart?.point(x));
    }
    shownSelection = selection;
  }

  /** Shows the entries of what is in view, and of the most common kinds. */
  function showLegend(kinds, { limit, everyK, overlay, compared }) {
    const shown = new Set([buckets ? "median" : "norm", "applied", "skipped_not_finite", "skipped_large", ...kinds]);
    if (buckets) shown.add("band");
    if (overlay) shown.add("overlay");
    if (limit !== null) shown.add("limit");
    if (everyK !== null) shown.add("accumulated");
    for (const [key, item] of entries) {
      item.hidden = !shown.has(key);
      if (key === "overlay") setText(item.lastChild, compared);
    }
  }

  return (/** @type {{state: State}} */ { state }) => {
    current = state;
    const run = state.detail;
    if (!run) return;
    const { view } = state;
    const records = shownRecords(state);
    const range = visibleRange(state);
    const { gradient_norm_limit: limit = null, every_k: everyK = null } = run.gauges ?? {};
    if (range) askForMissing(state, records, range);
    buckets = range && bucketsToShow(state, records, range);
    const { overlay, failed } = overlays(state, range);
    setAttribute(link, "href", stepsPath(state));
    setAttribute(figure, "aria-label", `Gradient norm over ${view.axis === "time" ? "time" : "steps"}. ${KEYS}`);
    const happened = range ? happenedWithin(state, range) : [];
    const key = [run.run, state.version, buckets && state.buckets?.steps];
    chart?.update({ key, records, buckets, visible: range, limit, everyK, happened, overlay });
    showCrosshair(view, records);
    showButtons(view, records);
    const compared = comparison.update(state, failed);
    showLegend(range ? kindsInView(records, range, buckets) : [], { limit, everyK, overlay, compared });
    setText(summary, range && records.length ? summarize(records, range, buckets) : "No steps yet.");
    readout.update(state, { index: hovered, buckets });
  };
}

/** The path of the steps in view. */
function stepsPath(state) {
  return paths.steps(state.selected, { process: state.process, ...stepsInView(state), points: STEPS_HELD });
}

/** The index of the bad record before (-1) or after (+1) the selected step; undefined if there is none. */
function badBeside({ step, at }, records, direction) {
  const index = step === null ? -direction * Infinity : records.indexOf(step, at);
  return records.badBeside(index, direction);
}

/** How many steps of each kind are in view. */
function countsInView(records, range, buckets) {
  if (buckets) return countsWithin(buckets, bucketsWithin(buckets, range));
  const [first, end] = records.within(...range);
  const counts = /** @type {Record<string, number>} */ ({});
  for (const kind of records.kind.slice(first, end)) counts[kind] = (counts[kind] ?? 0) + 1;
  return counts;
}

const kindsInView = (...shown) => Object.entries(countsInView(...shown)).flatMap(([kind, count]) => (count ? [kind] : []));

function summarize(records, range, buckets) {
  const bad = Object.entries(countsInView(records, range, buckets)).filter(([kind, count]) => isBad(kind) && count > 0);
  const total = bad.reduce((sum, [, count]) => sum + count, 0);
  const kinds = bad.map(([kind, count]) => `${integer(count)} ${KINDS[kind]?.word ?? kind}`).join("; ");
  const last = records.at(records.length - 1);
  const [from, to] = range;
  const where = records.byTime ? `From ${clock(from)} to ${clock(to)}` : `Steps ${integer(Math.ceil(from))} to ${integer(Math.floor(to))}`;
  return `${where}: ${plural(total, "bad step")}${kinds ? ` (${kinds})` : ""}. Last norm ${norm(last.raw)}.`;
}
