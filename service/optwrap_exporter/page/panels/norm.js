/** The chart's panel: what is in view, what the crosshair is on, the way from one bad step to the next. */

import { clock, integer, norm, plural, visible } from "../format.js";
import { visibleRange } from "../model.js";
import { isBad, KINDS } from "../words.js";
import { paths } from "../api.js";
import { el, panelHead, setAttribute, setText, shape } from "../dom.js";
import { createChart } from "../chart.js";
import { badWithin } from "../marks.js";

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

export function createNormPanel(root, uPlot, { onView, onRange }) {
  const { head, aside, link } = panelHead("norm-title", "Gradient norm", "Global L2 norm of the incoming gradients, by step, logarithmic");
  const button = (text, title, onClick) => el("button", { type: "button", text, title, on: { click: onClick } });
  let hovered = null;
  let current = null;
  let pointed = null;
  const windows = WINDOWS.map(([value, text]) => {
    const node = button(text, `Follow the run: ${text} steps`, () => onView({ window: value, range: null, step: null }));
    return { value, node };
  });
  const previous = button("◂ bad step", "Go to the bad step before", () => walk(-1));
  const next = button("bad step ▸", "Go to the bad step after", () => walk(1));
  const resume = button("Follow", "The view stands still: follow the run again", () => onView({ range: null, step: null }));
  resume.className = "resume";
  aside.append(
    resume,
    el("span", { class: "group", role: "group", "aria-label": "Bad steps" }, previous, next),
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
      "aria-label": "Gradient norm over steps. Left and right: the bad step before and after. Escape: follow the run.",
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
        onFollow: () => onView({ range: null, step: null }),
        onHover: (index) => {
          hovered = index;
          say();
        },
      })
    : null;

  function walk(direction) {
    const from = current.view.step ?? (direction < 0 ? Infinity : -Infinity);
    const step = current.steps.badBeside(from, direction);
    if (step === undefined) return;
    const [min, max] = visibleRange(current);
    const inside = step >= min && step <= max;
    onView({ step, range: inside ? [min, max] : [Math.max(1, step - (max - min) / 2), step + (max - min) / 2] });
  }

  figure.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") walk(-1);
    else if (event.key === "ArrowRight") walk(1);
    else if (event.key === "Escape") onView({ range: null, step: null });
    else return;
    event.preventDefault();
  });

  /** What the crosshair is on, else the step that was gone to, else the last one. */
  function say() {
    if (!current) return;
    const { steps, offenders, view } = current;
    const index = hovered ?? (steps.length ? steps.nearest(view.step ?? steps.latest) : -1);
    if (index < 0 || index >= steps.length) return setText(readout, "No step yet.");
    if (hovered === null && view.range && (view.range[0] > steps.last || view.range[1] < steps.first)) {
      const [from, to] = view.range.map((step) => integer(Math.round(step)));
      return setText(readout, `No step from ${from} to ${to}: there are those from ${integer(steps.first)} to ${integer(steps.last)}.`);
    }
    const { step, time, kind, raw, mini } = steps.at(index);
    const window = mini === null || !current.detail?.gauges?.every_k ? "" : ` · window ${mini} of ${current.detail.gauges.every_k}`;
    const guilty = offenders.get(step);
    const where = guilty
      ? ` · ${guilty
          .slice(0, 2)
          .map(({ parameter, values }) => `${visible(parameter)} (${plural(values, "value")})`)
          .join(", ")}${guilty.length > 2 ? ` and ${guilty.length - 2} more` : ""}`
      : "";
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
    const { steps, view } = state;
    const range = visibleRange(state);
    const { gradient_norm_limit: limit = null, every_k: everyK = null } = run.gauges ?? {};
    setAttribute(link, "href", paths.steps(run.run, { process: state.process }));
    chart?.update({ key: [run.run, state.version], steps, visible: range, limit, everyK });
    if (view.step !== null && pointed !== view.step && steps.length) {
      pointed = view.step;
      // The chart takes its new range at the end of this turn; the crosshair goes where the step then is.
      setTimeout(() => chart?.point(pointed));
    }
    if (view.step === null) pointed = null;

    const paused = view.range !== null;
    resume.hidden = !paused;
    for (const { value, node } of windows) setAttribute(node, "aria-pressed", !paused && view.window === value ? "true" : "false");
    const bad = range ? badWithin(steps, range[0], range[1]) : [];
    previous.disabled = steps.badBeside(view.step ?? Infinity, -1) === undefined;
    next.disabled = steps.badBeside(view.step ?? -Infinity, 1) === undefined;

    const seen = new Set(bad.map((step) => steps.at(steps.nearest(step)).kind));
    const usual = new Set(["norm", "applied", "skipped_not_finite", "skipped_large"]);
    if (limit !== null) usual.add("limit");
    if (everyK !== null) usual.add("accumulated");
    if (host.dataset.thinned === "true") usual.add("thinned");
    for (const item of legend.children) item.hidden = !usual.has(item.dataset.key) && !seen.has(item.dataset.key);

    setText(summary, range ? summarize(steps, range, bad) : "No step yet.");
    say();
  };
}

function summarize(steps, [from, to], bad) {
  const counts = new Map();
  for (const step of bad) {
    const { kind } = steps.at(steps.nearest(step));
    counts.set(kind, (counts.get(kind) ?? 0) + 1);
  }
  const kinds = [...counts].map(([kind, count]) => `${count} ${KINDS[kind]?.word ?? kind}`).join("; ");
  const last = steps.at(steps.nearest(steps.latest));
  return `Steps ${integer(Math.ceil(from))} to ${integer(Math.floor(to))}: ${plural(bad.length, "bad step")}${kinds ? ` (${kinds})` : ""}. Last norm ${norm(last.raw)}.`;
}
