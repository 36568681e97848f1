/**
 * The page's state and how each message changes it. Pure but for `steps`, whose columns grow in place (see steps.js): no
 * DOM, no clock, no network.
 */

import { seconds } from "./format.js";
import { Steps } from "./steps.js";
import { compareHealth } from "./words.js";

/** Events held and steps whose offending parameters are remembered, at most. */
export const EVENTS_HELD = 500;
export const OFFENDERS_HELD = 2_000;

/** Kinds of events that every process of a run reports alike: they are taken from the process that is shown. */
const ALIKE = new Set(["skipped", "accepted_not_finite", "streak_started", "streak_ended"]);

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
    view: { window: wanted.window ?? DEFAULT_WINDOW, range: wanted.range ?? null, step: wanted.step ?? null },
    ...ofNoRun(wanted.process ?? null),
  };
}

function ofNoRun(process = null) {
  return { detail: null, process, wantedProcess: process, steps: new Steps(), version: 0, events: [], offenders: new Map() };
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
        view: { ...state.view, range: null, step: null },
      };
    case "missing":
      return action.run === state.selected ? { ...state, missing: true, detail: null } : state;
    case "any process":
      return { ...state, wantedProcess: null };
    case "loaded":
      return action.run.run === state.selected ? loaded(state, action) : state;
    case "run":
      return action.data.run === state.selected ? withDetail({ ...state, missing: false }, action.data) : state;
    case "report":
      return action.data.run === state.selected ? reported(state, action.data) : state;
    case "steps":
      if (action.run !== state.selected) return state;
      state.steps.add(action.columns);
      return { ...state, version: state.version + 1 };
    case "view":
      return { ...state, view: { ...state.view, ...action.view } };
    default:
      throw new Error(`reduce: unknown action ${action.type}`);
  }
}

/** A whole answer replaces what was held: the exporter knows better what was committed while nobody listened. */
function loaded(state, { run, steps, events }) {
  const held = new Steps();
  held.add(steps.columns);
  return withDetail(
    {
      ...state,
      missing: false,
      steps: held,
      version: state.version + 1,
      process: steps.process,
      events: mergeEvents([], events.items),
      offenders: withOffenders(new Map(), events.items.flatMap(offendersOf)),
    },
    run,
  );
}

function withDetail(state, detail) {
  const runs = state.runs?.map((row) => (row.run === detail.run ? rowOf(row, detail) : row)).sort(byHealthThenName) ?? null;
  return { ...state, detail, runs };
}

function rowOf(row, detail) {
  const { health, since, last_report: last, totals } = detail;
  return { ...row, health, since, last_report: last, totals };
}

function reported(state, data) {
  // In data-parallel training every process reports the same steps: one process's are shown.
  const next = { ...state, process: state.process ?? data.process };
  const shown = next.process === data.process;
  const events = data.events.filter(({ kind }) => shown || !ALIKE.has(kind));
  if (events.length) next.events = mergeEvents(state.events, events);
  if (!shown) return next;
  if (next.steps.add(data.steps)) next.version += 1;
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
  for (const { step, parameter, not_finite: values } of incoming) {
    if (!fresh.has(step)) fresh.set(step, []);
    fresh.get(step).push({ parameter, values });
  }
  for (const [step, list] of fresh) next.set(step, list);
  for (const step of next.keys()) {
    if (next.size <= OFFENDERS_HELD) break;
    next.delete(step);
  }
  return next;
}

/** Newest first, each id once, bounded. */
export function mergeEvents(held, incoming) {
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

/** The part of the step axis that is looked at: the zoomed range, or the last `window` steps. */
export function visibleRange(state) {
  const { window, range } = state.view;
  if (range) return range;
  const { first, last } = state.steps;
  if (first === undefined) return null;
  return [window === "all" ? first : Math.max(first, last - window + 1), last];
}
