/**
 * Holds step records as columns, sorted along an axis and bounded in number. No DOM.
 *
 * Along the step axis there is one record for each step number. Along the time axis there is one record each time a step
 * was taken: a step that was repeated after a rollback is there twice. The chart draws directly from the columns, which are
 * plain arrays; `version` changes whenever they do.
 */

import { wireNumber } from "./format.js";
import { isBad, kindOf } from "./words.js";

/** Maximum number of records. Good records are thinned first, from the oldest on; bad ones are dropped last. */
export const STEPS_HELD = 20_000;

/**
 * Index of the first element of sorted `values` that is at least `value`.
 *
 * @param {number[]} values
 * @param {number} value
 */
export function lowerBound(values, value) {
  let low = 0;
  let high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The two axes. `x` is the column of positions; records that compare as 0 are the same record. */
export const AXES = {
  step: { x: "step", compare: (a, b) => a.step - b.step },
  time: { x: "time", compare: (a, b) => a.time - b.time || a.step - b.step },
};

/**
 * One step as the page holds it.
 *
 * @typedef {object} StepRecord
 * @property {number} step
 * @property {number} time When it was taken, by the training process's clock, in seconds since 1970.
 * @property {string} kind One of KINDS in words.js.
 * @property {number | null} norm The gradient norm; null if it is non-finite.
 * @property {number | null} raw The gradient norm as reported; may be NaN or Infinity.
 * @property {number | null} mini How many gradients the accumulation window held.
 * @property {Record<string, number> | null} scalars The loss and other numbers by name, non-finite ones too; null if there are none.
 */

/** The name under which the norm of the update is shown with the scalars. No scalar has a space in its name. */
export const UPDATE_NORM = "update norm";

/** Whether a scalar of a record is non-finite. */
function isOdd({ scalars }) {
  return scalars !== null && !Object.values(scalars).every(Number.isFinite);
}

/** Turns the API's columns into records sorted along an axis. Of records that are the same, the latest is kept. */
export function recordsOf(columns, { compare } = AXES.step) {
  const named = Object.entries(columns.scalars ?? {});
  if (columns.update_norm) named.push([UPDATE_NORM, columns.update_norm]);
  const scalarsAt = (i) => {
    const found = named.map(([name, column]) => [name, wireNumber(column[i])]).filter(([, value]) => value !== null);
    return found.length ? Object.fromEntries(found) : null;
  };
  const records = columns.step.map((step, i) => {
    const value = wireNumber(columns.norm[i]);
    return {
      step,
      time: columns.time[i],
      kind: kindOf(columns.outcome[i], columns.finite[i]),
      norm: Number.isFinite(value) ? value : null,
      raw: value,
      mini: columns.mini_step?.[i] ?? null,
      scalars: scalarsAt(i),
    };
  });
  records.sort((a, b) => compare(a, b) || a.time - b.time);
  return records.filter((record, i) => i + 1 === records.length || compare(records[i + 1], record) !== 0);
}

export class Steps {
  /** The columns, named as in StepRecord. */
  step = /** @type {number[]} */ ([]);
  time = /** @type {number[]} */ ([]);
  kind = /** @type {string[]} */ ([]);
  norm = /** @type {(number | null)[]} */ ([]);
  raw = /** @type {(number | null)[]} */ ([]);
  mini = /** @type {(number | null)[]} */ ([]);
  scalars = /** @type {(Record<string, number> | null)[]} */ ([]);
  /** Indices of the bad records, sorted. */
  bad = /** @type {number[]} */ ([]);
  /** The step that was taken last; less than the largest after a rollback. Undefined before the first. */
  latest = /** @type {number | undefined} */ (undefined);
  latestTime = -Infinity;

  constructor(held = STEPS_HELD, axis = AXES.step) {
    this.held = held;
    this.axis = axis;
    this.version = 0;
    this.#clear();
  }

  #clear() {
    const columns = { step: [], time: [], kind: [], norm: [], raw: [], mini: [], scalars: [] };
    Object.assign(this, { ...columns, bad: [], latest: undefined, latestTime: -Infinity });
  }

  get length() {
    return this.step.length;
  }

  /**
   * The column of positions on the axis.
   * @returns {number[]}
   */
  get x() {
    return this[this.axis.x];
  }

  get first() {
    return this.x[0];
  }

  get last() {
    return this.x[this.length - 1];
  }

  get byTime() {
    return this.axis === AXES.time;
  }

  /** @returns {StepRecord} */
  at(i) {
    const { step, time, kind, norm, raw, mini, scalars } = this;
    return { step: step[i], time: time[i], kind: kind[i], norm: norm[i], raw: raw[i], mini: mini[i], scalars: scalars[i] };
  }

  /**
   * Adds columns from the API, in any order. A later record replaces an earlier one that is the same. Returns how many
   * records came.
   */
  add(columns) {
    const { compare } = this.axis;
    const incoming = recordsOf(columns, this.axis);
    if (incoming.length === 0) return 0;
    if (this.length > 0 && compare(incoming[0], this.at(this.length - 1)) <= 0) {
      this.#rebuild(merge(this.#records(), incoming, compare));
    } else for (const record of incoming) this.#push(record);
    if (this.length > this.held) this.#rebuild(thin(this.#records(), this.held, compare));
    this.version += 1;
    return incoming.length;
  }

  /** Index of the record nearest to a position on the axis; -1 if there are no records. */
  nearest(x) {
    const i = lowerBound(this.x, x);
    if (i === 0) return this.length ? 0 : -1;
    if (i === this.length) return i - 1;
    return x - this.x[i - 1] <= this.x[i] - x ? i - 1 : i;
  }

  /**
   * Index of the record of `step`: the one taken at `time`, if given, else the one taken last. If there is no such record,
   * the result is between the indices of its neighbours (for example 2.5).
   */
  indexOf(step, /** @type {number | null} */ time = null) {
    if (!this.byTime) {
      const i = lowerBound(this.step, step);
      return this.step[i] === step ? i : i - 0.5;
    }
    if (time === null) {
      const i = this.step.lastIndexOf(step);
      return i >= 0 ? i : this.length - 0.5;
    }
    let i = lowerBound(this.time, time);
    while (this.time[i] === time && this.step[i] !== step) i += 1;
    return this.time[i] === time ? i : i - 0.5;
  }

  /** Index of the bad record before (-1) or after (+1) an index as `indexOf` returns it; undefined if there is none. */
  badBeside(index, direction) {
    return direction < 0 ? this.bad[lowerBound(this.bad, index) - 1] : this.bad[lowerBound(this.bad, Math.floor(index) + 1)];
  }

  /** Indices of the bad records between two positions on the axis, sorted. */
  badWithin(min, max) {
    const [first, last] = this.within(min, max);
    return this.bad.slice(lowerBound(this.bad, first), lowerBound(this.bad, last));
  }

  /** Index of the first record between two positions on the axis, and of the first record after them. */
  within(min, max) {
    const first = lowerBound(this.x, min);
    let last = lowerBound(this.x, max);
    while (this.x[last] === max) last += 1;
    return [first, last];
  }

  /** Index of the first record of the last `count` steps taken. */
  back(count) {
    let i = this.length - 1;
    for (let taken = 1; i > 0 && taken < count; i -= 1) taken += Math.max(1, this.step[i] - this.step[i - 1]);
    return Math.max(0, i);
  }

  /** Steps per second over the last records; null if they span less than half a second. */
  rate(over = 200) {
    const end = this.length - 1;
    const start = Math.max(0, end - over);
    const elapsed = this.time[end] - this.time[start];
    return elapsed > 0.5 ? (this.step[end] - this.step[start]) / elapsed : null;
  }

  #records() {
    return this.step.map((_, i) => this.at(i));
  }

  #push(record) {
    this.step.push(record.step);
    this.time.push(record.time);
    this.kind.push(record.kind);
    this.norm.push(record.norm);
    this.raw.push(record.raw);
    this.mini.push(record.mini);
    this.scalars.push(record.scalars);
    if (isBad(record.kind)) this.bad.push(this.length - 1);
    if (record.time >= this.latestTime) {
      this.latest = record.step;
      this.latestTime = record.time;
    }
  }

  #rebuild(records) {
    this.#clear();
    for (const record of records) this.#push(record);
  }
}

/** Merges two sorted lists. Of records that are the same, the later is kept. */
function merge(held, incoming, compare) {
  const merged = [];
  let i = 0;
  for (const record of incoming) {
    while (i < held.length && compare(held[i], record) < 0) merged.push(held[i++]);
    const same = i < held.length && compare(held[i], record) === 0 ? held[i++] : null;
    merged.push(same && same.time > record.time ? same : record);
  }
  while (i < held.length) merged.push(held[i++]);
  return merged;
}

/**
 * Reduces the records to at most three quarters of `held`. The good records of the older half are thinned repeatedly; if that
 * is not enough, the oldest records are dropped.
 */
function thin(records, held, compare) {
  const target = Math.floor(held * 0.75);
  let kept = records;
  while (kept.length > target) {
    const half = Math.ceil(kept.length / 2);
    const older = halve(kept.slice(0, half), compare);
    if (older.length === half) break;
    kept = older.concat(kept.slice(half));
  }
  return kept.slice(-target);
}

/** Keeps two of each four good records: those with the smallest and the largest norm, so that the line keeps its outline. */
function halve(records, compare) {
  const kept = [];
  let group = [];
  for (const record of records) {
    if (isBad(record.kind) || isOdd(record)) {
      kept.push(record);
      continue;
    }
    group.push(record);
    if (group.length < 4) continue;
    group.sort((a, b) => a.norm - b.norm);
    kept.push(group[0], group[3]);
    group = [];
  }
  return kept.concat(group).sort(compare);
}
