/** Which part of which axis the chart shows, and which steps to request for it. Pure: no DOM, no clock, no network. */

/** @import { State } from "./model.js" */

/** How many of the newest steps the chart follows by default. */
export const DEFAULT_WINDOW = 2_000;

/**
 * What the chart shows.
 *
 * @typedef {object} View
 * @property {"step" | "time"} axis
 * @property {number | "all"} window How many of the newest steps it follows.
 * @property {[number, number] | null} range A fixed part of the axis, in its unit; null to follow.
 * @property {number | null} step The selected step.
 * @property {number | null} at When that step was taken; null for the last time.
 * @property {string | null} compare What is drawn beside the run: `run:` and a run's name, or `attempt:` and an attempt's.
 */

/** @returns {View} */
export function viewOf(wanted) {
  const { axis = "step", window = DEFAULT_WINDOW, range = null, step = null, at = null, compare = null } = wanted;
  return { axis, window, range, step, at, compare };
}

/** The records along the axis that the chart shows. */
export function shownRecords(/** @type {State} */ state) {
  return state.view.axis === "time" ? state.times : state.steps;
}

/**
 * The range that the chart shows: the fixed range, or that of the last `window` steps; null if there are no steps.
 * @returns {[number, number] | null}
 */
export function visibleRange(/** @type {State} */ state) {
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
export function alongAxis(state, axis) {
  const { view } = state;
  const changed = { ...view, axis, range: null };
  if (view.range) {
    const [first, end] = shownRecords(state).within(...view.range);
    changed.range = extent((axis === "time" ? state.steps.time : state.times.step).slice(first, end));
    if (changed.range && changed.range[0] === changed.range[1]) changed.range[1] += 1;
  }
  return changed;
}

/** @returns {[number, number] | null} */
function extent(values) {
  if (!values.length) return null;
  return values.reduce(([min, max], value) => [Math.min(min, value), Math.max(max, value)], [Infinity, -Infinity]);
}
