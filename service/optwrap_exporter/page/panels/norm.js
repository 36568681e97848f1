/** The gradient norm panel: the chart, the controls of its view, and a line of text about one step. */

import { clock, integer, norm, parametersInWords, plural } from "../format.js";
import { shownRecords, stepsInView, visibleRange } from "../model.js";
import { STEPS_HELD } from "../steps.js";
import { isBad, KINDS } from "../words.js";
import { paths } from "../api.js";
import { el, panelHead, setAttribute, setText, shape } from "../dom.js";
import { createChart } from "../chart/chart.js";

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
  let hovered = null;
  let current = null;
  let shownSelection = null;
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
      "There is no chart: this installation lacks the chart library. In a checkout, “make setup” fetches it. " +
      "The rest of the page works. The bad steps are in the list of events below.";
  }
  const chart = uPlot
    ? createChart(uPlot, host, {
        onRange: (range) => onRange(range),
        onFollow: () => onView(FOLLOW),
        onHover: (index) => {
          hovered = index;
          describe();
        },
      })
    : null;

  function walk(direction) {
    const records = shownRecords(current);
    const i = records.badBeside(searchFrom(records, direction), direction);
    if (i === undefined) return;
    const { step, time: at } = records.at(i);
    const x = records.x[i];
    const [min, max] = visibleRange(current);
    if (x >= min && x <= max) onView({ step, at, range: [min, max] });
    else onRange([x - (max - min) / 2, x + (max - min) / 2], { step, at });
  }

  /** The index from which to search for the next bad step. */
  function searchFrom(records, direction) {
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

  /** Describes the step under the crosshair, else the selected step, else the last one. */
  function describe() {
    if (!current) return;
    const { offenders, view } = current;
    const records = shownRecords(current);
    if (records.length === 0) return setText(readout, "No steps yet.");
    const selected = view.step === null ? records.indexOf(records.latest, records.latestTime) : records.indexOf(view.step, view.at);
    const index = hovered ?? Math.min(records.length - 1, Math.max(0, Math.round(selected)));
    if (index >= records.length) return;
    if (hovered === null && view.range && (view.range[0] > records.last || view.range[1] < records.first)) {
      const [from, to, first, last] = [...view.range, records.first, records.last].map(records.byTime ? (time) => clock(time) : integer);
      return setText(readout, `No steps from ${from} to ${to}. The recorded steps go from ${first} to ${last}.`);
    }
    const { step, time, kind, raw, mini } = records.at(index);
    const window = mini === null || !current.detail?.gauges?.every_k ? "" : ` · window ${mini} of ${current.detail.gauges.every_k}`;
    const names = parametersInWords(offenders.get(step) ?? []);
    const parameters = names === null ? "" : ` · ${names}`;
    const label = hovered === null && view.step === null ? "Last step" : "Step";
    setText(readout, `${label} ${integer(step)} · ${clock(time)} · norm ${norm(raw)} · ${KINDS[kind]?.word ?? kind}${window}${parameters}`);
    // Screen readers read a step that the user selected, but not each new step.
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
    const selection = view.step === null ? null : `${view.axis} ${view.step} ${view.at}`;
    if (selection !== shownSelection && selection !== null && records.length) {
      const x = records.byTime ? records.time[Math.round(records.indexOf(view.step, view.at))] : view.step;
      // The chart applies its new range after this function returns, so the crosshair moves later.
      setTimeout(() => chart?.point(x));
    }
    shownSelection = selection;

    const fixed = view.range !== null;
    follow.hidden = !fixed;
    for (const { value, node } of axes) setAttribute(node, "aria-pressed", view.axis === value ? "true" : "false");
    for (const { value, node } of windows) setAttribute(node, "aria-pressed", !fixed && view.window === value ? "true" : "false");
    const bad = range ? records.badWithin(...range) : [];
    previous.disabled = records.badBeside(searchFrom(records, -1), -1) === undefined;
    next.disabled = records.badBeside(searchFrom(records, 1), 1) === undefined;

    const present = new Set(bad.map((i) => records.kind[i]));
    const always = new Set(["norm", "applied", "skipped_not_finite", "skipped_large"]);
    if (limit !== null) always.add("limit");
    if (everyK !== null) always.add("accumulated");
    if (host.dataset.thinned === "true") always.add("thinned");
    for (const item of legend.children) item.hidden = !always.has(item.dataset.key) && !present.has(item.dataset.key);

    setText(summary, range && records.length ? summarize(records, range, bad) : "No steps yet.");
    describe();
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
