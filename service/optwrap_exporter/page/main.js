/** Assembles the page: one state, which actions change, and panels, which show it at most once per animation frame. */

import { exporterNow } from "./api.js";
import { byId } from "./dom.js";
import { knowledge } from "./model.js";
import { dispatch, session, state, whenChanged } from "./state.js";
import { format, ofRun, parse } from "./url.js";
import { shownRecords, stepsAround, viewOf, visibleRange } from "./view.js";
import { loadChartLibrary } from "./chart/chart.js";
import { createActions } from "./panels/actions.js";
import { createAttempts } from "./panels/attempts.js";
import { createEmpty, createMissing } from "./panels/empty.js";
import { createEvents } from "./panels/events.js";
import { createHealth } from "./panels/health.js";
import { createIncidents } from "./panels/incidents.js";
import { createNormPanel } from "./panels/norm.js";
import { createNotices } from "./panels/notices.js";
import { createParameters } from "./panels/parameters.js";
import { createPod } from "./panels/pod.js";
import { createProcesses } from "./panels/processes.js";
import { createReplicas } from "./panels/replicas.js";
import { createRuns } from "./panels/runs.js";
import { createScalars } from "./panels/scalars.js";
import { createTiles } from "./panels/tiles.js";
import { createTop } from "./panels/top.js";

const uPlot = await loadChartLibrary();

/** How many records the chart shows on either side of a selected step, at most. */
const NEIGHBOURS = 100;

let painting = false;

function schedule() {
  if (painting) return;
  painting = true;
  requestAnimationFrame(() => {
    painting = false;
    paint();
  });
}

function select(run) {
  history.pushState(null, "", ofRun(run));
  dispatch({ type: "select", run });
  session.selected();
  byId("main").focus({ preventScroll: true });
}

function view(change) {
  dispatch({ type: "view", view: change });
}

/**
 * Shows a range of the axis, with all steps that the exporter has for it. The view then no longer follows the run.
 *
 * @param {[number, number]} range
 * @param {{step?: number, at?: number}} selection the step to select, and when it was taken
 */
function showRange(range, selection = {}) {
  const byTime = state.view.axis === "time";
  const [from, to] = byTime ? range : [Math.max(1, Math.floor(range[0])), Math.ceil(range[1])];
  view({ step: null, at: null, ...selection, range: [from, Math.max(to, from + (byTime ? 0.001 : 1))] });
  loadRange(state.view.range);
}

function loadRange(range) {
  const steps = range && stepsAround(state, range);
  if (steps) session.range(...steps);
}

/** Shows the same steps along another axis. */
function changeAxis(axis) {
  dispatch({ type: "axis", axis });
  loadRange(visibleRange(state));
}

/** Shows a step in the chart. */
async function showStep(step) {
  byId("norm").scrollIntoView({ block: "nearest", behavior: "auto" });
  const [min, max] = visibleRange(state) ?? [step, step];
  if (state.view.axis === "step") {
    const half = Math.min(NEIGHBOURS, Math.max(20, (max - min) / 2));
    return showRange([step - half, step + half], { step });
  }
  // Its time is in its record, which may not be loaded yet.
  await session.range(Math.max(0, step - NEIGHBOURS), step + NEIGHBOURS);
  const records = shownRecords(state);
  const i = records.indexOf(step);
  if (state.view.axis !== "time" || !Number.isInteger(i)) return view({ step, at: null });
  const { time: at } = records.at(i);
  const from = records.time[Math.max(0, i - NEIGHBOURS)];
  const to = records.time[Math.min(records.length - 1, i + NEIGHBOURS)];
  showRange([Math.max(from, at - (max - min)), Math.min(to, at + (max - min))], { step, at });
}

/** Shows the steps of a part of the time, along the axis that is shown. */
function showTime(times) {
  if (state.view.axis === "time") return showRange(times);
  const [first, end] = state.times.within(...times);
  const steps = state.times.step.slice(first, end);
  if (steps.length) showRange([steps.reduce((a, b) => Math.min(a, b)), steps.reduce((a, b) => Math.max(a, b))]);
}

/** Shows the steps of one process from now on; null for the process that represents the run. */
function showProcess(process) {
  dispatch({ type: "process", process });
  history.pushState(null, "", format(state));
  session.reload();
  byId("norm").scrollIntoView({ block: "nearest", behavior: "auto" });
}

window.addEventListener("popstate", () => {
  const wanted = parse(location.search);
  const run = wanted.run ?? state.runs?.[0]?.run ?? null;
  dispatch({ type: "select", run });
  dispatch({ type: "view", view: viewOf(wanted) });
  const otherProcess = wanted.process !== state.wantedProcess;
  dispatch({ type: "process", process: wanted.process });
  session.selected();
  if (otherProcess) session.reload();
});

/** Shows another run after the selected one was deleted; without another, that it was. */
function deleted(run) {
  if (run !== state.selected) return;
  const other = state.runs?.find((row) => row.run !== run);
  if (other) return select(other.run);
  dispatch({ type: "missing", run });
  session.selected();
}

const actions = createActions({ root: document.body, onChanged: session.changed, onDeleted: deleted });

const panels = [
  createTop({ connection: byId("connection"), lost: byId("lost"), store: byId("store") }),
  createRuns(byId("runs"), { onSelect: select, onMenu: actions.open, onArchived: session.showArchived }),
  createEmpty(byId("empty")),
  createMissing(byId("missing")),
  createNotices(byId("notices")),
  createHealth(byId("health"), byId("announcer"), { onStep: showStep, onAcknowledge: actions.changes.acknowledgeRun, onMenu: actions.open }),
  createIncidents(byId("incidents"), { onStep: showStep, onOlder: session.olderIncidents, onAcknowledge: actions.changes.acknowledge }),
  createTiles(byId("tiles")),
  createNormPanel(byId("norm"), uPlot, {
    onView: view,
    onRange: showRange,
    onAxis: changeAxis,
    onMissing: loadRange,
    onLoaded: schedule,
  }),
  createScalars(byId("scalars"), uPlot, { onRange: showRange, onFollow: () => view({ range: null, step: null, at: null }) }),
  createPod(byId("pod"), { onProcess: showProcess }),
  createParameters(byId("parameters"), { onStep: showStep, onTime: showTime, onLoaded: schedule }),
  createReplicas(byId("replicas"), { onStep: showStep }),
  createAttempts(byId("attempts")),
  createEvents(byId("events"), { onStep: showStep, onOlder: session.older, onEvery: session.everyEvent }),
  createProcesses(byId("processes")),
];

function paint() {
  const shown = { state, now: exporterNow() };
  byId("loading").hidden = state.detail !== null || (state.runs !== null && (state.selected === null || state.missing));
  byId("run").hidden = state.detail === null;
  document.documentElement.dataset.connection = knowledge(state).known ? state.connection.phase : "lost";
  for (const update of panels) update(shown);
}

// Ages grow even when nothing arrives.
setInterval(schedule, 1_000);
whenChanged(schedule);
schedule();
