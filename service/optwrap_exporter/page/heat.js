/** The rows of the heatmap of parameters, from GET /v1/runs/{run}/series?by=parameter. No DOM. */

import { seconds } from "./format.js";
import { shownRecords, visibleRange } from "./view.js";

/** @import { State } from "./model.js" */

/** How many columns and rows the heatmap has at most. */
export const COLUMNS = 120;
export const ROWS = 60;
/** Paths that match the filter are named in the request, until they have so many characters. */
const NAMED = 4_000;

/**
 * A parameter, and in which columns it has something.
 *
 * @typedef {object} Row
 * @property {string} parameter
 * @property {number} total Steps in which its gradient was non-finite.
 * @property {number | null} firstTime The first step that names it.
 * @property {number | null} firstStep
 * @property {number[]} counts By column, the steps in which its gradient was non-finite.
 * @property {(number | null)[] | null} shares By column, the largest share of the squared norm in a step that was skipped as too large.
 */

/**
 * The time in view, in seconds since 1970; null without steps.
 *
 * @param {State} state
 * @returns {[number, number] | null}
 */
export function timesInView(state) {
  const range = visibleRange(state);
  if (!range) return null;
  if (state.view.axis === "time") return range;
  const records = shownRecords(state);
  const [first, end] = records.within(...range);
  if (end <= first) return null;
  const times = records.time.slice(first, end);
  return times.reduce(([min, max], time) => [Math.min(min, time), Math.max(max, time)], [Infinity, -Infinity]);
}

/** The query that asks for the heatmap of a time; null if no parameter matches the filter. */
export function queryOf({ process, parameters }, [since, until], filter) {
  const width = Math.max((until - since) / (COLUMNS - 1), 1e-3);
  const query = { by: "parameter", process, since, until: until + 1e-3, bucket: width.toFixed(3), limit: ROWS };
  if (filter === "") return query;
  const named = [];
  let room = NAMED;
  for (const { parameter } of parameters) {
    if (!parameter.toLowerCase().includes(filter)) continue;
    room -= parameter.length;
    if (room < 0 || named.length === ROWS) break;
    named.push(parameter);
  }
  return named.length ? { ...query, parameter: named } : null;
}

/** The rows of an answer. @returns {Row[]} */
export function rowsOf({ lines }) {
  return lines.map(({ of, total, counts, norm_share: shares, first_time: time, first_step: step }) => ({
    parameter: of.parameter,
    total,
    counts,
    shares,
    firstTime: seconds(time),
    firstStep: step,
  }));
}

const names = new Intl.Collator("en", { numeric: true });

/** Sorts rows by name, so that layer_2 is before layer_10, or by the first step that names them. */
export function sorted(/** @type {Row[]} */ rows, /** @type {"name" | "first"} */ order) {
  const byName = (a, b) => names.compare(a.parameter, b.parameter);
  if (order === "name") return [...rows].sort(byName);
  return [...rows].sort((a, b) => (a.firstTime ?? Infinity) - (b.firstTime ?? Infinity) || byName(a, b));
}
