/**
 * The page's state, and how each action changes it. No DOM, no clock, no network. The functions are pure, except that the
 * columns of `steps` and `times` grow in place (see steps.js). Both have the same records, each along one axis.
 */

import { seconds } from "./format.js";
import { AXES, Steps, STEPS_HELD } from "./steps.js";
import { compareHealth } from "./words.js";

/** Maximum numbers of events, and of steps whose non-finite parameters are kept. */
export const EVENTS_HELD = 20_000;
export const OFFENDERS_HELD = 2_000;

/** A message of the stream has at most this many parameters, the worst. GET /v1/runs/{run} has all. */
export const PARAMETERS_STREAMED = 1_000;

/** How many of the newest steps the chart follows by default. */
export const DEFAULT_WINDOW = 2_000;

export function initialState(wanted = {}) {
  return {
    /** `phase` is connecting, live or lost; `since` is when it began. */
    connection: { phase: "connecting", since: null },
    /** The rows of GET /v1/runs; null before the first answer. */
    runs: null,
    selected: wanted.run ?? null,
    /** Whether the exporter does not know the selected run. */
    missing: false,
    view: viewOf(wanted),
    /** Messages about wrong values in the page's address. */
    notices: wanted.wrong ?? [],
    ...ofNoRun(wanted.process ?? null),
  };
}

/**
 * What the chart shows. `axis` is step or time. `window` is how many of the newest steps it follows. `range` is a fixed part
 * of the axis, in its unit, or null to follow. `step` is the selected step, or null. `at` is when that step was taken, or null
 * for the last time.
 */
export function viewOf({ axis = "step", window = DEFAULT_WINDOW, range = null, step = null, at = null }) {
  return { axis, window, range, step, at };
}

/** The records along the axis that the chart shows. */
export function shownRecords(state) {
  return state.view.axis === "time" ? state.times : state.steps;
}

const noRecords = () => ({ steps: new Steps(), times: new Steps(STEPS_HELD, AXES.time) });

/**
 * The part of the state that belongs to one run, empty. `process` is the process whose steps are shown. `wantedProcess` is the
 * one the user chose, or null for the process that represents the run. `olderEvents` is the cursor of the events before the
 * oldest one held, or null if there are none.
 */
function ofNoRun(process = null) {
  const held = { ...noRecords(), version: 0, events: [], olderEvents: null, offenders: new Map(), parameters: [] };
  return { detail: null, process, wantedProcess: process, ...held };
}

/** The state after `action`; the same object if nothing changed. */
export function reduce(state, action) {
  switch (action.type) {
    case "connection":
      if (state.connection.phase === action.phase) return state;
      return { ...state, connection: { phase: action.phase, since: action.at } };
    case "runs": {
      const runs = [...action.items].sort(byHealthThenName);
      return { ...state, runs, selected: state.selected ?? runs[0]?.run ?? null };
    }
    case "select":
      if (action.run === state.selected) return state;
      return {
        ...state,
        ...ofNoRun(),
        selected: action.run,
        missing: false,
        notices: [],
        view: { ...state.view, range: null, step: null, at: null },
      };
    case "missing":
      return action.run === state.selected ? { ...state, missing: true, detail: null } : state;
    case "process":
      return { ...state, wantedProcess: action.process, notices: [] };
    case "no such process": {
      const notice = `Process ${state.wantedProcess} has not reported in this run. The chart shows the steps of another process.`;
      return { ...state, wantedProcess: null, notices: [...state.notices, notice] };
    }
    case "loaded":
      return action.run.run === state.selected ? loaded(state, action) : state;
    case "run":
      return action.data.run === state.selected ? streamed(state, action.data) : state;
    case "parameters":
      return action.run === state.selected ? { ...state, parameters: action.parameters } : state;
    case "report":
      return action.data.run === state.selected ? reported(state, action.data) : state;
    case "steps":
      if (action.run !== state.selected) return state;
      addSteps(state, action.columns);
      return { ...state, version: state.version + 1 };
    case "older events":
      if (action.run !== state.selected) return state;
      return { ...state, events: mergeEvents(state.events, action.items), olderEvents: action.cursor };
    case "view":
      return { ...state, view: { ...state.view, ...action.view } };
    case "axis":
      return state.view.axis === action.axis ? state : { ...state, view: alongAxis(state, action.axis) };
    default:
      throw new Error(`reduce: unknown action ${action.type}`);
  }
}

/** A full answer replaces everything: reports may have been committed while the page was not connected. */
function loaded(state, { run, steps, events }) {
  const held = noRecords();
  addSteps(held, steps.columns);
  return withDetail(
    {
      ...state,
      missing: false,
      ...held,
      version: state.version + 1,
      process: steps.process,
      events: mergeEvents([], events.items),
      olderEvents: events.cursor,
      offenders: withOffenders(new Map(), events.items.flatMap(offendersOf)),
      parameters: run.parameters,
    },
    run,
  );
}

/** A message of the stream has only the worst parameters, and only the processes that changed. */
function streamed(state, data) {
  const parameters = mergeParameters(state.parameters, data.parameters);
  const processes = mergeProcesses(state.detail?.processes ?? [], data.processes);
  return withDetail({ ...state, missing: false, parameters }, { ...data, processes });
}

function addSteps({ steps, times }, columns) {
  times.add(columns);
  return steps.add(columns);
}

function withDetail(state, detail) {
  const runs = state.runs?.map((row) => (row.run === detail.run ? rowOf(row, detail) : row)).sort(byHealthThenName) ?? null;
  return { ...state, detail, runs };
}

/** The newest row of each process, sorted by process. */
export function mergeProcesses(held, fresh) {
  const rows = new Map([...held, ...fresh].map((row) => [row.process, row]));
  return [...rows.values()].sort((a, b) => a.process - b.process);
}

/** Parameters that a message of the stream leaves out stay unchanged. */
export function mergeParameters(held, worst) {
  if (worst.length < PARAMETERS_STREAMED) return worst;
  const fresh = new Set(worst.map(({ parameter }) => parameter));
  return [...worst, ...held.filter(({ parameter }) => !fresh.has(parameter))];
}

function rowOf(row, detail) {
  const { health, since, last_report: last, totals } = detail;
  return { ...row, health, since, last_report: last, totals };
}

function reported(state, data) {
  // In data-parallel training every process reports the same steps, so the page shows those of one process. The exporter
  // sends an event that several processes report once only.
  const next = { ...state, process: state.process ?? data.process };
  if (data.events.length) {
    next.events = mergeEvents(state.events, data.events);
    // The list is full: older events cannot be added any more.
    if (next.events.length === EVENTS_HELD) next.olderEvents = null;
  }
  if (next.process !== data.process) return next;
  if (addSteps(next, data.steps)) next.version += 1;
  if (data.offenders.length) next.offenders = withOffenders(state.offenders, data.offenders);
  return next;
}

/** The parameters that an event names, in the form of a report's offenders. */
function offendersOf({ step, detail }) {
  return step === null ? [] : (detail.parameters ?? []).map((offender) => ({ step, ...offender }));
}

function withOffenders(held, incoming) {
  const next = new Map(held);
  const fresh = new Map();
  for (const { step, ...offender } of incoming) {
    // Several events of one step may name the same parameter: its skip, and the streak that it started.
    if (!fresh.has(step)) fresh.set(step, new Map());
    fresh.get(step).set(offender.parameter, offender);
  }
  for (const [step, named] of fresh) next.set(step, [...named.values()]);
  for (const step of next.keys()) {
    if (next.size <= OFFENDERS_HELD) break;
    next.delete(step);
  }
  return next;
}

/** Merges events: newest first, each id once, at most EVENTS_HELD. */
export function mergeEvents(held, incoming) {
  const fresh = [...incoming].sort((a, b) => b.id - a.id);
  if (!fresh.length) return held;
  // The usual case: all incoming events are newer, or all are older.
  if (!held.length || fresh.at(-1).id > held[0].id) return [...fresh, ...held].slice(0, EVENTS_HELD);
  if (held.at(-1).id > fresh[0].id) return [...held, ...fresh].slice(0, EVENTS_HELD);
  const byId = new Map(held.map((event) => [event.id, event]));
  for (const event of incoming) byId.set(event.id, event);
  return [...byId.values()].sort((a, b) => b.id - a.id).slice(0, EVENTS_HELD);
}

function byHealthThenName(a, b) {
  return compareHealth(a.health, b.health) || a.run.localeCompare(b.run);
}

/** The number of runs of each health, worst first: [["skipping", 1], ["ok", 2]]. */
export function healthCounts(runs) {
  const counts = new Map();
  for (const { health } of runs ?? []) counts.set(health, (counts.get(health) ?? 0) + 1);
  return [...counts].sort(([a], [b]) => compareHealth(a, b));
}

/** When the newest report of the selected run came, in seconds since 1970; null before the first. */
export function lastReport(state) {
  return seconds(state.detail?.last_report);
}

/**
 * The event that started the current streak of non-finite gradients; it names the first non-finite parameters. Null if there
 * is no streak, or if the event is no longer held.
 */
export function streakStart(state) {
  const { health, gauges } = state.detail;
  if (health !== "gave_up" && !(gauges?.not_finite_streak > 0)) return null;
  return state.events.find(({ kind }) => kind === "streak_started") ?? null;
}

/** The range that the chart shows: the fixed range, or that of the last `window` steps; null if there are no steps. */
export function visibleRange(state) {
  const { axis, window, range } = state.view;
  if (range) return range;
  const records = shownRecords(state);
  const { first, last } = records;
  if (first === undefined) return null;
  if (window === "all") return [first, last];
  return [axis === "time" ? records.x[records.back(window)] : Math.max(first, last - window + 1), last];
}

/**
 * The first and last step to request from the exporter, to see all of a range of the shown axis. On the time axis they include
 * the records next to the range, as the line goes on to them. Null if no record is held.
 */
export function stepsAround(state, [min, max]) {
  if (state.view.axis === "step") return [Math.max(0, Math.floor(min)), Math.ceil(max)];
  const [first, end] = state.times.within(min, max);
  return extent(state.times.step.slice(Math.max(0, first - 1), end + 1));
}

/** The query parameters, {since, until}, that request exactly the steps in view. A bound that does not exist is left out. */
export function stepsInView(state) {
  const range = visibleRange(state);
  const follows = state.view.range === null;
  if (!range || (follows && state.view.window === "all")) return {};
  const bounds = (first, last) => (follows ? { since: first } : { since: first, until: last });
  if (state.view.axis === "step") return bounds(Math.ceil(range[0]), Math.floor(range[1]));
  const [first, end] = state.times.within(...range);
  return bounds(...(extent(state.times.step.slice(first, end)) ?? []));
}

/** The view that shows the same steps along another axis. */
function alongAxis(state, axis) {
  const { view } = state;
  const changed = { ...view, axis, range: null };
  if (view.range) {
    const [first, end] = shownRecords(state).within(...view.range);
    changed.range = extent((axis === "time" ? state.steps.time : state.times.step).slice(first, end));
    if (changed.range && changed.range[0] === changed.range[1]) changed.range[1] += 1;
  }
  return changed;
}

function extent(values) {
  if (!values.length) return null;
  return values.reduce(([min, max], value) => [Math.min(min, value), Math.max(max, value)], [Infinity, -Infinity]);
}
