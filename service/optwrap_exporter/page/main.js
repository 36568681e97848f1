/** Puts the page together: one state, changed by messages, painted at most once a frame. */

import { exporterNow } from "./api.js";
import { byId } from "./dom.js";
import { updateTab } from "./favicon.js";
import { initialState, reduce } from "./model.js";
import { createSession } from "./session.js";
import { format, ofRun, parse } from "./url.js";
import { shownRecords, stepsAround, viewOf, visibleRange } from "./view.js";
import { loadChartLibrary } from "./chart.js";
import { createEmpty, createMissing } from "./panels/empty.js";
import { createEvents } from "./panels/events.js";
import { createNormPanel } from "./panels/norm.js";
import { createNotices } from "./panels/notices.js";
import { createParameters } from "./panels/parameters.js";
import { createPod } from "./panels/pod.js";
import { createProcesses } from "./panels/processes.js";
import { createRuns } from "./panels/runs.js";
import { createTiles } from "./panels/tiles.js";
import { createTop } from "./panels/top.js";
import { createVerdict } from "./panels/verdict.js";

const uPlot = await loadChartLibrary();

/** Records on either side of a step that is gone to, at most. */
const BESIDE = 100;

let state = initialState(parse(location.search));
let painting = false;

function dispatch(action) {
  const next = reduce(state, action);
  if (next === state) return;
  const selectionCame = next.selected !== state.selected;
  state = next;
  // A hidden page is not painted, but its tab is looked at.
  updateTab(state);
  if (selectionCame || action.type === "view" || action.type === "axis") history.replaceState(null, "", format(state));
  schedule();
}

function schedule() {
  if (painting) return;
  painting = true;
  requestAnimationFrame(() => {
    painting = false;
    paint();
  });
}

const session = createSession({ getState: () => state, dispatch, now: exporterNow });

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
 * A part of the axis that was zoomed into, or gone to: the view stands still there, with all the steps the exporter has of
 * it. `pointed`: the step that is pointed at, and when it was lived.
 */
function lookAt(range, pointed = {}) {
  const byTime = state.view.axis === "time";
  const [from, to] = byTime ? range : [Math.max(1, Math.floor(range[0])), Math.ceil(range[1])];
  view({ step: null, at: null, ...pointed, range: [from, Math.max(to, from + (byTime ? 0.001 : 1))] });
  askFor(state.view.range);
}

function askFor(range) {
  const asked = range && stepsAround(state, range);
  if (asked) session.range(...asked);
}

/** Along another axis, with all the steps that the exporter has for it of what is in view. */
function turn(axis) {
  dispatch({ type: "axis", axis });
  askFor(visibleRange(state));
}

/** The chart at a step that was named elsewhere on the page. */
async function jump(step) {
  byId("norm").scrollIntoView({ block: "nearest", behavior: "auto" });
  const [min, max] = visibleRange(state) ?? [step, step];
  if (state.view.axis === "step") {
    const half = Math.min(BESIDE, Math.max(20, (max - min) / 2));
    return lookAt([step - half, step + half], { step });
  }
  // When it was lived is known from its record only.
  await session.range(Math.max(0, step - BESIDE), step + BESIDE);
  const records = shownRecords(state);
  const i = records.indexOf(step);
  if (state.view.axis !== "time" || !Number.isInteger(i)) return view({ step, at: null });
  const { time: at } = records.at(i);
  const from = records.time[Math.max(0, i - BESIDE)];
  const to = records.time[Math.min(records.length - 1, i + BESIDE)];
  lookAt([Math.max(from, at - (max - min)), Math.min(to, at + (max - min))], { step, at });
}

/** The steps of one process from now on; of the one that speaks for the run where it is null. */
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
  const other = wanted.process !== state.wantedProcess;
  dispatch({ type: "process", process: wanted.process });
  session.selected();
  if (other) session.reload();
});

const panels = [
  createTop({ fleet: byId("fleet"), connection: byId("connection"), lost: byId("lost") }),
  createRuns(byId("runs"), byId("shell"), { onSelect: select }),
  createEmpty(byId("empty")),
  createMissing(byId("missing")),
  createNotices(byId("notices")),
  createVerdict(byId("verdict"), byId("announcer"), { onJump: jump }),
  createTiles(byId("tiles")),
  createNormPanel(byId("norm"), uPlot, {
    onView: view,
    onRange: lookAt,
    onAxis: turn,
  }),
  createPod(byId("pod"), { onProcess: showProcess }),
  createParameters(byId("parameters"), { onJump: jump }),
  createEvents(byId("events"), { onJump: jump, onOlder: session.older }),
  createProcesses(byId("processes")),
];

function paint() {
  const shown = { state, now: exporterNow() };
  byId("loading").hidden = state.runs !== null && (state.detail !== null || state.selected === null || state.missing);
  byId("run").hidden = state.detail === null;
  document.documentElement.dataset.connection = state.connection.phase;
  for (const update of panels) update(shown);
}

// Ages tick although nothing arrives.
setInterval(schedule, 1_000);
session.start();
schedule();
