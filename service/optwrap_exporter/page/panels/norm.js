/** The chart's panel: what is in view, what the crosshair is on, the way from one bad step to the next. */

import { clock, integer, norm, parametersInWords, plural } from "../format.js";
import { shownRecords, stepsInView, visibleRange } from "../model.js";
import { STEPS_HELD } from "../steps.js";
import { isBad, KINDS } from "../words.js";
import { paths } from "../api.js";
import { el, panelHead, setAttribute, setText, shape } from "../dom.js";
import { createChart } from "../chart.js";

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
  let hovered = null;
  let current = null;
  let pointed = null;
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
  const readout = el("output", { class: "readout" });
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
  for (const [name, key, text, className] of LEGEND) {
    legend.append(el("li", { title: KINDS[key]?.what ?? null, "data-key": key }, shape(name, className), el("span", { text })));
  }
  root.append(head, readout, figure, summary, legend);
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
          say();
        },
      })
    : null;

  function walk(direction) {
    const records = shownRecords(current);
    const i = records.badBeside(from(records, direction), direction);
    if (i === undefined) return;
    const { step, time: at } = records.at(i);
    const x = records.x[i];
    const [min, max] = visibleRange(current);
    if (x >= min && x <= max) onView({ step, at, range: [min, max] });
    else onRange([x - (max - min) / 2, x + (max - min) / 2], { step, at });
  }

  /** Where in the records the way to the next bad step begins. */
  function from(records, direction) {
    const { step, at } = current.view;
    return step === null ? (direction < 0 ? Infinity : -Infinity) : records.indexOf(step, at);
  }

  figure.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") walk(-1);
    else if (event.key === "ArrowRight") walk(1);
    else if (event.key === "Escape") onView(FOLLOW);
    else return;
    event.preventDefault();
  });

  /** What the crosshair is on, else the step that was gone to, else the last one. */
  function say() {
    if (!current) return;
    const { offenders, view } = current;
    const records = shownRecords(current);
    if (records.length === 0) return setText(readout, "No step yet.");
    const pointedAt = view.step === null ? records.indexOf(records.latest, records.latestTime) : records.indexOf(view.step, view.at);
    const index = hovered ?? Math.min(records.length - 1, Math.max(0, Math.round(pointedAt)));
    if (index >= records.length) return;
    if (hovered === null && view.range && (view.range[0] > records.last || view.range[1] < records.first)) {
      const [from, to, first, last] = [...view.range, records.first, records.last].map(records.byTime ? (time) => clock(time) : integer);
      return setText(readout, `No step from ${from} to ${to}: there are those from ${first} to ${last}.`);
    }
    const { step, time, kind, raw, mini } = records.at(index);
    const window = mini === null || !current.detail?.gauges?.every_k ? "" : ` · window ${mini} of ${current.detail.gauges.every_k}`;
    const guilty = parametersInWords(offenders.get(step) ?? []);
    const where = guilty === null ? "" : ` · ${guilty}`;
    const label = hovered === null && view.step === null ? "Last step" : "Step";
    setText(readout, `${label} ${integer(step)} · ${clock(time)} · norm ${norm(raw)} · ${KINDS[kind]?.word ?? kind}${window}${where}`);
    // Read out where somebody went, not the step that came last.
    setAttribute(readout, "aria-live", view.step !== null && hovered === null ? "polite" : "off");
    setAttribute(readout, "class", isBad(kind) ? "readout bad" : "readout");
  }

  return ({ state }) => {
    current = state;
    const run = state.detail;
    if (!run) return;
    const { view } = state;
    const records = shownRecords(state);
    const range = visibleRange(state);
    const { gradient_norm_limit: limit = null, every_k: everyK = null } = run.gauges ?? {};
    setAttribute(link, "href", paths.steps(run.run, { process: state.process, ...stepsInView(state), points: STEPS_HELD }));
    setAttribute(figure, "aria-label", `Gradient norm over ${view.axis === "time" ? "time" : "steps"}. ${KEYS}`);
    chart?.update({ key: [run.run, state.version], records, visible: range, limit, everyK });
    const pointing = view.step === null ? null : `${view.axis} ${view.step} ${view.at}`;
    if (pointed !== pointing && pointing !== null && records.length) {
      const x = records.byTime ? records.time[Math.round(records.indexOf(view.step, view.at))] : view.step;
      // The chart takes its new range at the end of this turn; the crosshair goes where the step then is.
      setTimeout(() => chart?.point(x));
    }
    pointed = pointing;

    const paused = view.range !== null;
    resume.hidden = !paused;
    for (const { value, node } of axes) setAttribute(node, "aria-pressed", view.axis === value ? "true" : "false");
    for (const { value, node } of windows) setAttribute(node, "aria-pressed", !paused && view.window === value ? "true" : "false");
    const bad = range ? records.badWithin(...range) : [];
    previous.disabled = records.badBeside(from(records, -1), -1) === undefined;
    next.disabled = records.badBeside(from(records, 1), 1) === undefined;

    const seen = new Set(bad.map((i) => records.kind[i]));
    const usual = new Set(["norm", "applied", "skipped_not_finite", "skipped_large"]);
    if (limit !== null) usual.add("limit");
    if (everyK !== null) usual.add("accumulated");
    if (host.dataset.thinned === "true") usual.add("thinned");
    for (const item of legend.children) item.hidden = !usual.has(item.dataset.key) && !seen.has(item.dataset.key);

    setText(summary, range && records.length ? summarize(records, range, bad) : "No step yet.");
    say();
  };
}

function summarize(records, [from, to], bad) {
  const counts = new Map();
  for (const i of bad) counts.set(records.kind[i], (counts.get(records.kind[i]) ?? 0) + 1);
  const kinds = [...counts].map(([kind, count]) => `${count} ${KINDS[kind]?.word ?? kind}`).join("; ");
  const last = records.at(records.length - 1);
  const where = records.byTime ? `From ${clock(from)} to ${clock(to)}` : `Steps ${integer(Math.ceil(from))} to ${integer(Math.floor(to))}`;
  return `${where}: ${plural(bad.length, "bad step")}${kinds ? ` (${kinds})` : ""}. Last norm ${norm(last.raw)}.`;
}
