/**
 * The page's state and how each message changes it. Pure but for `steps` and `times`, the same records along either axis,
 * whose columns grow in place (see steps.js): no DOM, no clock, no network.
 */

import { seconds } from "./format.js";
import { AXES, Steps, STEPS_HELD } from "./steps.js";
import { compareHealth } from "./words.js";

/** Events held and steps whose offending parameters are remembered, at most. */
export const EVENTS_HELD = 20_000;
export const OFFENDERS_HELD = 2_000;

/** Parameters that the stream's messages bring at most, the worst; a whole answer has all. */
export const PARAMETERS_STREAMED = 1_000;

/** How many of the latest steps the chart follows, unless the URL says otherwise. */
export const DEFAULT_WINDOW = 2_000;

export function initialState(wanted = {}) {
  return {
    /** phase: connecting, live or lost; since: when it became so. */
    connection: { phase: "connecting", since: null },
    /** Rows of /v1/runs; null before the first answer. */
    runs: null,
    selected: wanted.run ?? null,
    /** Whether the exporter said that it does not know the selected run. */
    missing: false,
    view: viewOf(wanted),
    /** What the address asked for in vain, in words. */
    notices: wanted.wrong ?? [],
    ...ofNoRun(wanted.process ?? null),
  };
}

/**
 * What is looked at: `axis` is step or time; `window` how many of the latest steps are followed; `range` the part of the
 * axis, in its own unit, at which the view stands still, or null; `step` the one that is pointed at, or null, and `at` when
 * it was lived, or null for the last time.
 */
export function viewOf({ axis = "step", window = DEFAULT_WINDOW, range = null, step = null, at = null }) {
  return { axis, window, range, step, at };
}

/** The records along the axis that is looked at. */
export function shownRecords(state) {
  return state.view.axis === "time" ? state.times : state.steps;
}

const noRecords = () => ({ steps: new Steps(), times: new Steps(STEPS_HELD, AXES.time) });

/**
 * `process`: whose steps are held; `wantedProcess`: the one that was asked for, null where the run's speaker will do;
 * `olderEvents`: the cursor of those before the oldest held, null where there are none.
 */
function ofNoRun(process = null) {
  const held = { ...noRecords(), version: 0, events: [], olderEvents: null, offenders: new Map(), parameters: [] };
  return { detail: null, process, wantedProcess: process, ...held };
}

/** The state after `action`; the same object where nothing changed. */
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
      const said = `Process ${state.wantedProcess} has not reported in this run: the steps are those of the process that speaks for it.`;
      return { ...state, wantedProcess: null, notices: [...state.notices, said] };
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

/** A whole answer replaces what was held: the exporter knows better what was committed while nobody listened. */
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

/** A stream's message about the run leaves out what is as it was: all but the worst parameters, processes without news. */
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

/** Rows by process, each as it was told last. */
export function mergeProcesses(held, fresh) {
  const rows = new Map([...held, ...fresh].map((row) => [row.process, row]));
  return [...rows.values()].sort((a, b) => a.process - b.process);
}

/** A stream's message has only the worst: those it leaves out are less bad, and stay as they were. */
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
  // In data-parallel training every process reports the same steps: one process's are shown. What several tell alike
  // the exporter sends as the event of the first.
  const next = { ...state, process: state.process ?? data.process };
  if (data.events.length) {
    next.events = mergeEvents(state.events, data.events);
    // What fell off the end is not asked for again in pieces.
    if (next.events.length === EVENTS_HELD) next.olderEvents = null;
  }
  if (next.process !== data.process) return next;
  if (addSteps(next, data.steps)) next.version += 1;
  if (data.offenders.length) next.offenders = withOffenders(state.offenders, data.offenders);
  return next;
}

/** The parameters that an event names, as the wire's offenders. */
function offendersOf({ step, detail }) {
  return step === null ? [] : (detail.parameters ?? []).map((offender) => ({ step, ...offender }));
}

function withOffenders(held, incoming) {
  const next = new Map(held);
  const fresh = new Map();
  for (const { step, ...offender } of incoming) {
    // Several events of one step may name the same: its skip, and the streak that it began.
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

/** Newest first, each id once, bounded. */
export function mergeEvents(held, incoming) {
  const fresh = [...incoming].sort((a, b) => b.id - a.id);
  if (!fresh.length) return held;
  // What nearly always happens: all of them are newer, or older.
  if (!held.length || fresh.at(-1).id > held[0].id) return [...fresh, ...held].slice(0, EVENTS_HELD);
  if (held.at(-1).id > fresh[0].id) return [...held, ...fresh].slice(0, EVENTS_HELD);
  const byId = new Map(held.map((event) => [event.id, event]));
  for (const event of incoming) byId.set(event.id, event);
  return [...byId.values()].sort((a, b) => b.id - a.id).slice(0, EVENTS_HELD);
}

function byHealthThenName(a, b) {
  return compareHealth(a.health, b.health) || a.run.localeCompare(b.run);
}

/** How many runs there are of each health, worst first: [["skipping", 1], ["ok", 2]]. */
export function healthCounts(runs) {
  const counts = new Map();
  for (const { health } of runs ?? []) counts.set(health, (counts.get(health) ?? 0) + 1);
  return [...counts].sort(([a], [b]) => compareHealth(a, b));
}

/** The newest report of the selected run, in seconds since 1970; null before the first. */
export function lastReport(state) {
  return seconds(state.detail?.last_report);
}

/**
 * The event with which the present trouble began, if that is a streak of gradients that are not finite: it names the
 * parameters that were the first of it. Null where there is none, or it is no longer held.
 */
export function beginning(state) {
  const { health, gauges } = state.detail;
  if (health !== "gave_up" && !(gauges?.not_finite_streak > 0)) return null;
  return state.events.find(({ kind }) => kind === "streak_started") ?? null;
}

/** The part of the axis that is looked at: the zoomed range, or that of the last `window` steps; null while there is none. */
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
 * First and last step of the records in a part of the axis that is looked at, and of those beside it, which the line goes
 * on to: what to ask the exporter for, to see all of that part. Null where no record is held.
 */
export function stepsAround(state, [min, max]) {
  if (state.view.axis === "step") return [Math.max(0, Math.floor(min)), Math.ceil(max)];
  const [first, end] = state.times.within(min, max);
  return extent(state.times.step.slice(Math.max(0, first - 1), end + 1));
}

/** What to ask the exporter for to get the steps that are in view, and no others: {since, until}, as far as there are bounds. */
export function stepsInView(state) {
  const range = visibleRange(state);
  const follows = state.view.range === null;
  if (!range || (follows && state.view.window === "all")) return {};
  const bounds = (first, last) => (follows ? { since: first } : { since: first, until: last });
  if (state.view.axis === "step") return bounds(Math.ceil(range[0]), Math.floor(range[1]));
  const [first, end] = state.times.within(...range);
  return bounds(...(extent(state.times.step.slice(first, end)) ?? []));
}

/** The view that shows along another axis what is in view now. */
function alongAxis(state, axis) {
  const { view } = state;
  const turned = { ...view, axis, range: null };
  if (view.range) {
    const [first, end] = shownRecords(state).within(...view.range);
    turned.range = extent((axis === "time" ? state.steps.time : state.times.step).slice(first, end));
    if (turned.range && turned.range[0] === turned.range[1]) turned.range[1] += 1;
  }
  return turned;
}

function extent(values) {
  if (!values.length) return null;
  return values.reduce(([min, max], value) => [Math.min(min, value), Math.max(max, value)], [Infinity, -Infinity]);
}
