/**
 * The page's state, and how each action changes it. No DOM, no clock, no network. The functions are pure, except that the
 * columns of `steps` and `times` grow in place (see steps.js). Both have the same records, each along one axis.
 */

import { plural, seconds } from "./format.js";
import { compareRuns } from "./runs.js";
import { AXES, Steps, STEPS_HELD } from "./steps.js";
import { alongAxis, viewOf } from "./view.js";
import { EVENTS } from "./vocabulary.js";

/** @import { View } from "./view.js" */

/** Maximum numbers of events, and of steps whose non-finite parameters are kept. */
export const EVENTS_HELD = 20_000;
export const OFFENDERS_HELD = 2_000;

/** Kinds of events that say what became of a single step. A run may have a million of them; incidents sum them up. */
const OF_STEPS = ["skipped", "accepted_not_finite"];

/** Kinds of all other events. */
export const LOGGED = Object.keys(EVENTS).filter((kind) => !OF_STEPS.includes(kind));

/**
 * The page's state. The exporter's answers are kept as they came; openapi.json describes them.
 *
 * @typedef {object} State
 * @property {{phase: "connecting" | "live" | "lost", since: number | null}} connection `since` is when the phase began.
 * @property {any} storeTrouble Why the exporter stores no reports, as /-/healthy returns it; null while it stores them.
 * @property {any[] | null} runs The rows of GET /v1/runs; null before the first answer.
 * @property {any[] | null} archived The rows of archived runs; null while they are not shown.
 * @property {string | null} selected The name of the selected run.
 * @property {boolean} missing Whether the exporter does not know the selected run.
 * @property {boolean} deleted Whether it knew the run before.
 * @property {View} view
 * @property {string[]} notices Messages about wrong values in the page's address.
 * @property {any} detail The selected run as GET /v1/runs/{run} returns it; null before the first answer.
 * @property {number | null} process The process whose steps are shown.
 * @property {number | null} wantedProcess The process that the user chose; null for the one that represents the run.
 * @property {Steps} steps The step records by step number.
 * @property {Steps} times The step records by time.
 * @property {number} version Changes whenever the step records do.
 * @property {boolean} hasArchived Whether any run is archived.
 * @property {any[]} incidents Open ones first, then the newest.
 * @property {any} olderIncidents The cursor of the incidents before the oldest one held; null if there are none.
 * @property {boolean} everyEvent Whether `events` has an event for each bad step, too.
 * @property {any[]} events Newest first.
 * @property {any} olderEvents The cursor of the events before the oldest one held; null if there are none.
 * @property {Map<number, any[]>} offenders By step its non-finite parameters, or those with the largest shares of its norm.
 * @property {any[]} parameters The parameters that were ever non-finite.
 * @property {import("./buckets.js").Held | null} buckets Many steps in buckets; null before they are asked for.
 */

/** @returns {State} */
export function initialState(/** @type {any} */ wanted = {}) {
  return {
    connection: { phase: "connecting", since: null },
    storeTrouble: null,
    runs: null,
    archived: null,
    hasArchived: false,
    everyEvent: false,
    selected: wanted.run ?? null,
    missing: false,
    deleted: false,
    view: viewOf(wanted),
    notices: wanted.wrong ?? [],
    ...ofNoRun(wanted.process ?? null),
  };
}

const noRecords = () => ({ steps: new Steps(), times: new Steps(STEPS_HELD, AXES.time) });

/** The part of the state that belongs to one run, empty. */
function ofNoRun(/** @type {number | null} */ process = null) {
  const lists = { incidents: [], olderIncidents: null, events: [], olderEvents: null, parameters: [] };
  const held = { ...noRecords(), version: 0, buckets: null, offenders: new Map(), ...lists };
  return { detail: null, process, wantedProcess: process, ...held };
}

/** How an action of each type changes the state. Each returns the same object if nothing changes. */
const CHANGES = {
  connection: withConnection,
  runs: withRuns,
  store: withStoreTrouble,
  select: withSelection,
  missing: withoutRun,
  process: (state, { process }) => ({ ...state, wantedProcess: process, notices: [] }),
  "no such process": withoutProcess,
  loaded: (state, action) => (action.run.run === state.selected ? loaded(state, action) : state),
  run: (state, { data }) => (data.run === state.selected ? streamed(state, data) : state),
  parameters: (state, { run, parameters }) => (run === state.selected ? { ...state, parameters } : state),
  report: (state, { data }) => (data.run === state.selected ? reported(state, data) : state),
  steps: (state, { run, columns, buckets }) => (run === state.selected ? withSteps(state, columns, buckets) : state),
  "older events": (state, action) => (action.run === state.selected ? withOlderEvents(state, action) : state),
  "every event": (state, { every }) => ({ ...state, everyEvent: every, events: [], olderEvents: null }),
  "older incidents": (state, action) => (action.run === state.selected ? withOlderIncidents(state, action) : state),
  "has archived": (state, { any }) => (any === state.hasArchived ? state : { ...state, hasArchived: any }),
  archived: (state, { items }) => ({ ...state, archived: items && [...items].sort(compareRuns) }),
  view: (state, { view }) => ({ ...state, view: { ...state.view, ...view } }),
  axis: (state, { axis }) => (state.view.axis === axis ? state : { ...state, view: alongAxis(state, axis) }),
};

/**
 * The state after `action`; the same object if nothing changed.
 * @returns {State}
 */
export function reduce(/** @type {State} */ state, action) {
  if (!Object.hasOwn(CHANGES, action.type)) throw new Error(`reduce: unknown action ${action.type}`);
  return CHANGES[action.type](state, action);
}

function withConnection(state, { phase, at }) {
  return state.connection.phase === phase ? state : { ...state, connection: { phase, since: at } };
}

function withRuns(state, { items }) {
  const runs = [...items].sort(compareRuns);
  return { ...state, runs, selected: state.selected ?? runs[0]?.run ?? null };
}

function withStoreTrouble(state, { trouble }) {
  const same = state.storeTrouble?.condition === trouble?.condition && state.storeTrouble?.since === trouble?.since;
  return same ? state : { ...state, storeTrouble: trouble };
}

function withSelection(state, { run }) {
  if (run === state.selected) return state;
  const view = { ...state.view, range: null, step: null, at: null, compare: null };
  return { ...state, ...ofNoRun(), selected: run, missing: false, deleted: false, notices: [], view };
}

function withoutRun(state, { run }) {
  if (run !== state.selected || state.missing) return state;
  return { ...state, missing: true, deleted: state.detail !== null, detail: null };
}

function withoutProcess(state) {
  const notice = `Process ${state.wantedProcess} has not reported in this run. The chart shows the steps of another process.`;
  return { ...state, wantedProcess: null, notices: [...state.notices, notice] };
}

function withSteps(state, columns, buckets) {
  addSteps(state, columns);
  return { ...state, buckets: buckets ?? state.buckets, version: state.version + 1 };
}

function withOlderEvents(state, { items, cursor }) {
  return { ...state, events: mergeEvents(state.events, items), olderEvents: cursor };
}

function withOlderIncidents(state, { items, cursor }) {
  return { ...state, incidents: mergeIncidents(state.incidents, items), olderIncidents: cursor };
}

/** A full answer replaces everything: reports may have been committed while the page was not connected. */
function loaded(state, { run, steps, events, incidents, bad }) {
  const held = noRecords();
  addSteps(held, steps.columns);
  return withDetail(
    {
      ...state,
      missing: false,
      ...held,
      version: state.version + 1,
      process: steps.process,
      incidents: mergeIncidents([], incidents.items),
      olderIncidents: incidents.cursor,
      events: mergeEvents([], events.items),
      olderEvents: events.cursor,
      offenders: withOffenders(new Map(), bad.items.flatMap(offendersOf)),
      parameters: run.parameters,
      buckets: steps.buckets ? { answer: steps.buckets, since: 0, open: true, steps: run.totals.steps } : null,
    },
    run,
  );
}

/** A message of the stream has only the worst parameters, and only the processes that changed. */
function streamed(state, data) {
  const parameters = mergeParameters(state.parameters, data);
  const held = state.detail?.processes ?? [];
  const processes = mergeProcesses(held, data.processes);
  // Processes that the full answer had no room for may come now.
  const before = state.detail?.left_out?.processes ?? data.left_out.processes;
  const left_out = { ...data.left_out, processes: Math.max(0, before - (processes.length - held.length)) };
  return withDetail({ ...state, missing: false, parameters }, { ...data, processes, left_out });
}

function addSteps({ steps, times }, columns) {
  times.add(columns);
  return steps.add(columns);
}

function withDetail(state, detail) {
  const runs = state.runs?.map((row) => (row.run === detail.run ? rowOf(row, detail) : row)).sort(compareRuns) ?? null;
  return { ...state, detail, runs, incidents: mergeIncidents(state.incidents, detail.incidents) };
}

/** The newest row of each process, sorted by process. */
export function mergeProcesses(held, fresh) {
  const rows = new Map([...held, ...fresh].map((row) => [row.process, row]));
  return [...rows.values()].sort((a, b) => a.process - b.process);
}

/** Parameters that a message of the stream leaves out stay unchanged. */
export function mergeParameters(held, { parameters: worst, left_out: { parameters: missing } }) {
  if (missing === 0) return worst;
  const fresh = new Set(worst.map(({ parameter }) => parameter));
  return [...worst, ...held.filter(({ parameter }) => !fresh.has(parameter))];
}

/** The row of a run in the list. What GET /v1/runs/{run} returns has all of its fields, but lists the processes. */
function rowOf(row, detail) {
  return { ...Object.fromEntries(Object.keys(row).map((key) => [key, detail[key]])), processes: row.processes };
}

/** Merges incidents: open ones first, then the newest; of those with one id, the incoming one. */
function mergeIncidents(held, incoming) {
  const byId = new Map([...held, ...incoming].map((incident) => [incident.id, incident]));
  const isOpen = ({ state }) => Number(state === "open");
  return [...byId.values()].sort((a, b) => isOpen(b) - isOpen(a) || b.id - a.id);
}

function reported(state, data) {
  // In data-parallel training every process reports the same steps, so the page shows those of one process. The exporter
  // sends an event that several processes report once only.
  const next = { ...state, process: state.process ?? data.process };
  const events = state.everyEvent ? data.events : data.events.filter(({ kind }) => !OF_STEPS.includes(kind));
  if (events.length) {
    next.events = mergeEvents(state.events, events);
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
  return step === null ? [] : (detail.parameters ?? detail.norm_shares ?? []).map((offender) => ({ step, ...offender }));
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

/** What the exporter's answers left out, as sentences: they are limited to 2 MiB. */
export function leftOut({ detail, parameters }) {
  const found = [];
  const { processes = 0 } = detail?.left_out ?? {};
  if (processes) found.push(`${plural(processes, "process", "processes")} without problems are not listed, because there are too many.`);
  const named = (detail?.left_out?.parameters ?? 0) + (detail?.parameters?.length ?? 0) - parameters.length;
  if (named > 0) found.push(`${plural(named, "non-finite parameter")} with the fewest steps are not listed, because there are too many.`);
  return found;
}

/**
 * What the page knows: whether the figures are those of now and, if not, until when they hold. The exporter may not answer, or
 * it may store no reports; then nothing is known about the training.
 *
 * @returns {{known: boolean, until: number | null}} `until` in seconds since 1970
 */
export function knowledge({ connection, storeTrouble }) {
  if (connection.phase === "lost") return { known: false, until: connection.since };
  return storeTrouble === null ? { known: true, until: null } : { known: false, until: storeTrouble.since };
}

/** How many processes of the selected run report. */
export function reporting({ processes, left_out: leftOutOfRun }) {
  return processes.length + leftOutOfRun.processes;
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
