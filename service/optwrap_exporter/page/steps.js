/**
 * The step records the page holds, as columns along an axis, sorted and bounded. No DOM.
 *
 * Along the axis of steps there is one record for each step; along that of time there is each step that was lived, so one
 * that was lived again after a rollback is there twice. Columns are plain arrays that the chart draws from directly;
 * `version` changes whenever they do.
 */

import { wireNumber } from "./format.js";
import { isBad, kindOf } from "./words.js";

/** Records held at most. Ordinary ones are thinned first, oldest first; bad ones go last. */
export const STEPS_HELD = 20_000;

/** Index of the first element of sorted `values` that is not below `value`. */
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

/** The two axes: `x` names the column that is drawn along, `compare` says which records are one and the same. */
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
 * @property {number | null} norm The gradients' norm where it is finite.
 * @property {number | null} raw The norm as it was reported: may be NaN or Infinity.
 * @property {number | null} mini How many gradients the accumulation window held.
 */

/** The wire's columns as records sorted along an axis; of what is one and the same there, what was lived last. */
export function recordsOf(columns, { compare } = AXES.step) {
  const records = columns.step.map((step, i) => {
    const value = wireNumber(columns.norm[i]);
    return {
      step,
      time: columns.time[i],
      kind: kindOf(columns.verdict[i], columns.finite[i]),
      norm: Number.isFinite(value) ? value : null,
      raw: value,
      mini: columns.mini_step?.[i] ?? null,
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
    Object.assign(this, { step: [], time: [], kind: [], norm: [], raw: [], mini: [], bad: [], latest: undefined, latestTime: -Infinity });
  }

  get length() {
    return this.step.length;
  }

  /**
   * The column along the axis.
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
    return { step: this.step[i], time: this.time[i], kind: this.kind[i], norm: this.norm[i], raw: this.raw[i], mini: this.mini[i] };
  }

  /** Takes in columns of the wire, in any order; what is held already gives way to what was lived later. Returns how many came. */
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

  /** Index of the record nearest to a place on the axis; -1 while there is none. */
  nearest(x) {
    const i = lowerBound(this.x, x);
    if (i === 0) return this.length ? 0 : -1;
    if (i === this.length) return i - 1;
    return x - this.x[i - 1] <= this.x[i] - x ? i - 1 : i;
  }

  /**
   * Index of the record of `step`: of the one lived at `time` if that is given, else of the one lived last. Where it is not
   * held, half an index: between those beside it.
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

  /** Index of the bad record before (-1) or after (+1) an index, which may be half one; undefined where there is none. */
  badBeside(index, direction) {
    return direction < 0 ? this.bad[lowerBound(this.bad, index) - 1] : this.bad[lowerBound(this.bad, Math.floor(index) + 1)];
  }

  /** Indices of the bad records between two places on the axis, sorted. */
  badWithin(min, max) {
    const [first, last] = this.within(min, max);
    return this.bad.slice(lowerBound(this.bad, first), lowerBound(this.bad, last));
  }

  /** Index of the first record between two places on the axis, and of the first after them. */
  within(min, max) {
    const first = lowerBound(this.x, min);
    let last = lowerBound(this.x, max);
    while (this.x[last] === max) last += 1;
    return [first, last];
  }

  /** Index of the record with which the last `count` steps that were lived begin. */
  back(count) {
    let i = this.length - 1;
    for (let lived = 1; i > 0 && lived < count; i -= 1) lived += Math.max(1, this.step[i] - this.step[i - 1]);
    return Math.max(0, i);
  }

  /** Steps per second over the last records; null while there are too few to tell. */
  rate(over = 200) {
    const end = this.length - 1;
    const start = Math.max(0, end - over);
    const took = this.time[end] - this.time[start];
    return took > 0.5 ? (this.step[end] - this.step[start]) / took : null;
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

/** Two sorted lists as one; of what is one and the same, what was lived later. */
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

/** At most three quarters of `held`: the ordinary records of the older half are thinned, again and again; then the oldest go. */
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

/** Of each four ordinary records the two with the smallest and the largest norm: what is drawn keeps its outline. */
function halve(records, compare) {
  const kept = [];
  let group = [];
  for (const record of records) {
    if (isBad(record.kind)) {
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
