/**
 * Steps in buckets, as GET /v1/runs/{run}/steps?buckets= returns them: for each bucket its steps by kind, and the smallest, the
 * median and the largest norm. The steps that came after the answer are added from the held records. No DOM.
 */

import { wireNumber } from "./format.js";
import { lowerBound } from "./steps.js";

/** @import { Steps } from "./steps.js" */

/** How many buckets are asked for. */
export const BUCKETS = 600;
/** From more steps in view on, the chart shows buckets. */
export const MOST_SINGLE = 2_000;
/** The most records that are added to an answer; it is then asked for again. */
const MOST_ADDED = 2_000;

/**
 * Buckets along an axis, as columns of one length, sorted.
 *
 * @typedef {object} Buckets
 * @property {number[]} from Where each begins on the axis.
 * @property {number[]} to Where it ends.
 * @property {number[]} x Its middle.
 * @property {(number | null)[]} low The smallest finite norm; null if it has none.
 * @property {(number | null)[]} middle The median of these norms: of an even number of them the lower one.
 * @property {(number | null)[]} high
 * @property {number[]} count All steps of each bucket.
 * @property {Record<string, number[]>} kinds Steps of each bucket by kind.
 * @property {number[]} firstTime
 * @property {number[]} lastTime
 * @property {number} width Length of a bucket, in the axis' unit.
 */

/**
 * An answer that the page holds.
 *
 * @typedef {object} Held
 * @property {any} answer The field `buckets`.
 * @property {boolean} open Whether it was asked for up to the newest step.
 * @property {number} steps How many steps the run had taken by then.
 */

/** @returns {Buckets} */
function ofAnswer(answer) {
  const byStep = answer.axis === "step";
  // A step number is drawn around its position on the axis.
  const from = byStep ? answer.since.map((step) => step - 0.5) : answer.first_time;
  const to = byStep ? answer.until.map((step) => step + 0.5) : answer.last_time;
  const columns = Object.values(answer.kinds);
  return {
    from: [...from],
    to: [...to],
    x: from.map((start, i) => (start + to[i]) / 2),
    low: answer.norm_min.map(wireNumber),
    middle: answer.norm_median.map(wireNumber),
    high: answer.norm_max.map(wireNumber),
    count: from.map((_, i) => columns.reduce((sum, column) => sum + column[i], 0)),
    kinds: Object.fromEntries(Object.entries(answer.kinds).map(([kind, column]) => [kind, [...column]])),
    firstTime: [...answer.first_time],
    lastTime: [...answer.last_time],
    width: answer.width,
  };
}

/** Appends a bucket of the records `first` to `end`. */
function append(buckets, records, [first, end], [from, to]) {
  const norms = records.norm.slice(first, end).filter((norm) => norm !== null).sort((a, b) => a - b);
  const times = records.time.slice(first, end);
  buckets.from.push(from);
  buckets.to.push(to);
  buckets.x.push((from + to) / 2);
  buckets.low.push(norms[0] ?? null);
  buckets.middle.push(norms[(norms.length - 1) >> 1] ?? null);
  buckets.high.push(norms.at(-1) ?? null);
  buckets.count.push(end - first);
  buckets.firstTime.push(Math.min(...times));
  buckets.lastTime.push(Math.max(...times));
  for (let i = first; i < end; i += 1) {
    const column = (buckets.kinds[records.kind[i]] ??= []);
    column[buckets.from.length - 1] = (column[buckets.from.length - 1] ?? 0) + 1;
  }
}

/** Index of the first record after the last bucket. */
function firstAfter(buckets, records) {
  const last = buckets.to.at(-1);
  if (last === undefined) return 0;
  const i = lowerBound(records.x, last);
  return records.x[i] === last ? i + 1 : i;
}

/**
 * The buckets of an answer, and of the records that came after it.
 *
 * @param {Held} held
 * @param {Steps} records along the answer's axis
 * @returns {Buckets}
 */
export function bucketsOf(held, records) {
  const buckets = ofAnswer(held.answer);
  if (held.open) {
    const { byTime, x } = records;
    const width = Math.max(buckets.width, byTime ? 1e-6 : 1);
    for (let first = firstAfter(buckets, records); first < records.length; ) {
      const from = byTime ? x[first] : x[first] - 0.5;
      const end = lowerBound(x, from + width);
      append(buckets, records, [first, Math.max(first + 1, end)], [from, byTime ? x[Math.max(first, end - 1)] : from + width]);
      first = Math.max(first + 1, end);
    }
  }
  for (const column of Object.values(buckets.kinds)) for (let i = 0; i < buckets.from.length; i += 1) column[i] ??= 0;
  return buckets;
}

/** The buckets within a range of the axis; the ones that reach into it are whole. */
export function bucketsWithin(/** @type {Buckets} */ buckets, [min, max]) {
  const first = lowerBound(buckets.to, min);
  const end = lowerBound(buckets.from, max);
  return /** @type {[number, number]} */ ([first, Math.max(first, end)]);
}

/** How many steps are in a range of the axis; of thinned records, those that are missing count. */
export function stepsWithin(/** @type {Steps} */ records, [min, max]) {
  if (!records.byTime) return Math.max(0, Math.min(max, records.last) - Math.max(min, records.first) + 1);
  const [first, end] = records.within(min, max);
  let count = end > first ? 1 : 0;
  for (let i = first + 1; i < end; i += 1) count += Math.max(1, records.step[i] - records.step[i - 1]);
  return count;
}

/**
 * Whether held buckets show all steps of a range, finely enough.
 *
 * @param {Held | null} held
 * @param {Steps} records along the shown axis
 * @param {[number, number]} range
 * @param {number} steps how many steps the run has taken
 */
export function covers(held, records, [min, max], steps) {
  if (!held || held.answer.axis !== records.axis.x || held.answer.first_time.length === 0) return false;
  const { answer, open } = held;
  const [begin, end] = records.byTime ? [answer.first_time[0], answer.last_time.at(-1)] : [answer.since[0], answer.until.at(-1)];
  const [first, beyond] = records.within(min, max);
  if (beyond > first && records.x[first] < begin) return false;
  const after = records.length - firstAfter({ to: [records.byTime ? end : end + 0.5] }, records);
  if (open ? after > MOST_ADDED || steps - held.steps > after + MOST_ADDED / 10 : records.x[beyond - 1] > end) return false;
  return Math.min(max, records.last) - Math.max(min, records.first) >= (end - begin) / 4;
}

/** Whether the chart shows buckets of the steps in a range, not each step. */
export function wantsBuckets(records, range) {
  return range !== null && records.length > 0 && stepsWithin(records, range) > MOST_SINGLE;
}

/** The steps of some buckets by kind. */
export function countsWithin(/** @type {Buckets} */ { kinds }, [first, end]) {
  const sum = (column) => column.slice(first, end).reduce((a, b) => a + b, 0);
  return Object.fromEntries(Object.entries(kinds).map(([kind, column]) => [kind, sum(column)]));
}
