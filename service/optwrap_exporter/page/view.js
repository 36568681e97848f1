/** What part of which axis the chart shows, and what to ask the exporter for to fill it. Pure: no DOM, no clock, no network. */

/** @import { State } from "./model.js" */

/** How many of the latest steps the chart follows, unless the URL says otherwise. */
export const DEFAULT_WINDOW = 2_000;

/**
 * What is in view.
 *
 * @typedef {object} View
 * @property {"step" | "time"} axis
 * @property {number | "all"} window How many of the latest steps are followed.
 * @property {[number, number] | null} range The part of the axis, in the axis's unit, at which the view stands still.
 * @property {number | null} step The step that is pointed at.
 * @property {number | null} at When that step was taken; null for the last time.
 */

/** @returns {View} */
export function viewOf(wanted) {
  const { axis = "step", window = DEFAULT_WINDOW, range = null, step = null, at = null } = wanted;
  return { axis, window, range, step, at };
}

/** The records along the axis in view. */
export function shownRecords(/** @type {State} */ state) {
  return state.view.axis === "time" ? state.times : state.steps;
}

/**
 * The part of the axis in view: the zoomed range, or that of the last `window` steps; null while there is none.
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
export function alongAxis(state, axis) {
  const { view } = state;
  const turned = { ...view, axis, range: null };
  if (view.range) {
    const [first, end] = shownRecords(state).within(...view.range);
    turned.range = extent((axis === "time" ? state.steps.time : state.times.step).slice(first, end));
    if (turned.range && turned.range[0] === turned.range[1]) turned.range[1] += 1;
  }
  return turned;
}

/** @returns {[number, number] | null} */
function extent(values) {
  if (!values.length) return null;
  return values.reduce(([min, max], value) => [Math.min(min, value), Math.max(max, value)], [Infinity, -Infinity]);
}
