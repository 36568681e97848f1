/** The chart's panel: what is in view, what the crosshair is on, the way from one bad step to the next. */

import { clock, integer, norm, plural } from "../format.js";
import { shownRecords, stepsInView, visibleRange } from "../view.js";
import { STEPS_HELD } from "../steps.js";
import { KINDS } from "../words.js";
import { paths } from "../api.js";
import { el, panelHead, setAttribute, setText, shape } from "../dom.js";
import { createChart } from "../chart.js";
import { createReadout } from "./readout.js";

/** @import { State } from "../model.js" */

const AXES = [
  ["step", "by step", "Along the numbers of the steps"],
  ["time", "by time", "Along the time at which each step was taken, by the training process's clock"],
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
  ["low", "thinned", "good steps, thinned out: zoom in", "thinned"],
];

const KEYS = "Left and right: the bad step before and after. Escape: follow the run.";

/** Follows the run again. */
const FOLLOW = { range: null, step: null, at: null };

export function createNormPanel(root, uPlot, { onView, onRange, onAxis }) {
  const { head, aside, link } = panelHead("norm-title", "Gradient norm", "Global L2 norm of the incoming gradients, logarithmic");
  const button = (text, title, onClick) => el("button", { type: "button", text, title, on: { click: onClick } });
  let hovered = /** @type {number | null} */ (null);
  let current = /** @type {State | null} */ (null);
  /** The step that the crosshair was put on last. */
  let pointed = /** @type {string | null} */ (null);
  const windows = WINDOWS.map(([value, text]) => {
    const node = button(text, `Follow the run: ${text} steps`, () => onView({ window: value, ...FOLLOW }));
    return { value, node };
  });
  const axes = AXES.map(([value, text, what]) => ({ value, node: button(text, what, () => onAxis(value)) }));
  const previous = button("◂ bad step", "Go to the bad step before", () => walk(-1));
  const next = button("bad step ▸", "Go to the bad step after", () => walk(1));
  const resume = button("Follow", "The view stands still: follow the run again", () => onView(FOLLOW));
  resume.className = "resume";
  aside.append(
    resume,
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
      "No charts: the chart library was not packed into this installation (in a checkout, “make setup” fetches it). " +
      "Everything else on this page works; the bad steps are among the events below.";
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

  /** Goes to the bad step before (-1) or after (+1) the one that is pointed at. */
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

  function updateButtons(view, records) {
    const paused = view.range !== null;
    resume.hidden = !paused;
    for (const { value, node } of axes) setAttribute(node, "aria-pressed", String(view.axis === value));
    for (const { value, node } of windows) setAttribute(node, "aria-pressed", String(!paused && view.window === value));
    previous.disabled = badBeside(view, records, -1) === undefined;
    next.disabled = badBeside(view, records, 1) === undefined;
  }

  /** Puts the crosshair on a step that was gone to. */
  function updateCrosshair(view, records) {
    const pointing = view.step === null ? null : `${view.axis} ${view.step} ${view.at}`;
    if (pointed !== pointing && pointing !== null && records.length) {
      const x = records.byTime ? records.time[Math.round(records.indexOf(view.step, view.at))] : view.step;
      // The chart takes its new range at the end of this turn; the crosshair goes where the step then is.
      setTimeout(() => chart?.point(x));
    }
    pointed = pointing;
  }

  /** Shows the entries of what is in view, and of what nearly always is. */
  function updateLegend(kinds, limit, everyK) {
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
    updateCrosshair(view, records);
    updateButtons(view, records);
    updateLegend(bad.map((i) => records.kind[i]), limit, everyK);
    setText(summary, range && records.length ? summarize(records, range, bad) : "No step yet.");
    readout.update(state, hovered);
  };
}

/** Index of the bad record before (-1) or after (+1) the step that is pointed at; undefined where there is none. */
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
