/** The gradient norm panel: the chart, the controls of its view, and a line of text about one step. */

import { clock, integer, norm, plural } from "../format.js";
import { shownRecords, stepsInView, visibleRange } from "../view.js";
import { STEPS_HELD } from "../steps.js";
import { KINDS } from "../words.js";
import { paths } from "../api.js";
import { el, panelHead, setAttribute, setText, shape } from "../dom.js";
import { createChart } from "../chart/chart.js";
import { createReadout } from "./readout.js";

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
  ["dash", "limit", "limit", "kind-skipped_large"],
  ...["skipped_not_finite", "skipped_large", "skipped_other", "accumulated_not_finite", "accepted_not_finite", "accumulated", "applied"].map(
    (kind) => [KINDS[kind].shape, kind, KINDS[kind].word, `kind-${kind}`],
  ),
  ["low", "thinned", "not all good steps shown, zoom in", "thinned"],
];

const KEYS = "Left and right arrow keys: previous and next bad step. Escape: follow the newest steps.";

/** The part of a view that makes it follow the newest steps. */
const FOLLOW = { range: null, step: null, at: null };

export function createNormPanel(root, uPlot, { onView, onRange, onAxis }) {
  const { head, aside, link } = panelHead("norm-title", "Gradient norm", "Global L2 norm of the gradients of each step, on a logarithmic axis");
  const button = (text, title, onClick) => el("button", { type: "button", text, title, on: { click: onClick } });
  let hovered = /** @type {number | null} */ (null);
  let current = /** @type {State | null} */ (null);
  /** The selection that the crosshair was last put on. */
  let shownSelection = /** @type {string | null} */ (null);
  const windows = WINDOWS.map(([value, text]) => {
    const node = button(text, `Follow the newest steps: show ${text}`, () => onView({ window: value, ...FOLLOW }));
    return { value, node };
  });
  const axes = AXES.map(([value, text, tooltip]) => ({ value, node: button(text, tooltip, () => onAxis(value)) }));
  const previous = button("◂ bad step", "Go to the previous bad step", () => walk(-1));
  const next = button("bad step ▸", "Go to the next bad step", () => walk(1));
  const follow = button("Follow", "Follow the newest steps again", () => onView(FOLLOW));
  follow.className = "follow";
  aside.append(
    follow,
    el("span", { class: "group", role: "group", "aria-label": "Bad steps" }, previous, next),
    el("span", { class: "group", role: "group", "aria-label": "Axis" }, ...axes.map(({ node }) => node)),
    el("span", { class: "group", role: "group", "aria-label": "Steps in view" }, ...windows.map(({ node }) => node)),
  );
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
          if (current) readout.update(current, hovered);
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
    const { step, time: at } = records.at(i);
    const x = records.x[i];
    const [min, max] = range;
    if (x >= min && x <= max) onView({ step, at, range });
    else onRange([x - (max - min) / 2, x + (max - min) / 2], { step, at });
  }

  figure.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") walk(-1);
    else if (event.key === "ArrowRight") walk(1);
    else if (event.key === "Escape") onView(FOLLOW);
    else return;
    event.preventDefault();
  });

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
  function showLegend(kinds, limit, everyK) {
    const shown = new Set(["norm", "applied", "skipped_not_finite", "skipped_large", ...kinds]);
    if (limit !== null) shown.add("limit");
    if (everyK !== null) shown.add("accumulated");
    if (host.dataset.thinned === "true") shown.add("thinned");
    for (const [key, item] of entries) item.hidden = !shown.has(key);
  }

  return (/** @type {{state: State}} */ { state }) => {
    current = state;
    const run = state.detail;
    if (!run) return;
    const { view } = state;
    const records = shownRecords(state);
    const range = visibleRange(state);
    const bad = range ? records.badWithin(...range) : [];
    const { gradient_norm_limit: limit = null, every_k: everyK = null } = run.gauges ?? {};
    setAttribute(link, "href", paths.steps(run.run, { process: state.process, ...stepsInView(state), points: STEPS_HELD }));
    setAttribute(figure, "aria-label", `Gradient norm over ${view.axis === "time" ? "time" : "steps"}. ${KEYS}`);
    chart?.update({ key: [run.run, state.version], records, visible: range, limit, everyK });
    showCrosshair(view, records);
    showButtons(view, records);
    showLegend(bad.map((i) => records.kind[i]), limit, everyK);
    setText(summary, range && records.length ? summarize(records, range, bad) : "No steps yet.");
    readout.update(state, hovered);
  };
}

/** The index of the bad record before (-1) or after (+1) the selected step; undefined if there is none. */
function badBeside({ step, at }, records, direction) {
  const index = step === null ? -direction * Infinity : records.indexOf(step, at);
  return records.badBeside(index, direction);
}

function summarize(records, [from, to], bad) {
  const counts = new Map();
  for (const i of bad) counts.set(records.kind[i], (counts.get(records.kind[i]) ?? 0) + 1);
  const kinds = [...counts].map(([kind, count]) => `${count} ${KINDS[kind]?.word ?? kind}`).join("; ");
  const last = records.at(records.length - 1);
  const where = records.byTime ? `From ${clock(from)} to ${clock(to)}` : `Steps ${integer(Math.ceil(from))} to ${integer(Math.floor(to))}`;
  return `${where}: ${plural(bad.length, "bad step")}${kinds ? ` (${kinds})` : ""}. Last norm ${norm(last.raw)}.`;
}
