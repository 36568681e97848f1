/**
 * The step records the page holds: columns sorted by step number, one record per step, bounded. No DOM.
 *
 * Columns are plain arrays that the chart draws from directly; `version` changes whenever they do.
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

/** The wire's columns as records sorted by step; of a step that was lived twice (a rollback) the later counts. */
export function recordsOf(columns) {
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
  records.sort((a, b) => a.step - b.step || a.time - b.time);
  return records.filter((record, i) => i + 1 === records.length || records[i + 1].step !== record.step);
}

export class Steps {
  constructor(held = STEPS_HELD) {
    this.held = held;
    this.version = 0;
    this.#clear();
  }

  #clear() {
    this.step = [];
    this.time = [];
    this.kind = [];
    /** The gradients' norm where it is finite, else null. */
    this.norm = [];
    /** The norm as it was reported: may be NaN or Infinity. */
    this.raw = [];
    this.mini = [];
    /** Step numbers of the bad records, sorted. */
    this.bad = [];
    /** The step lived last; less than `last` after a rollback. */
    this.latest = undefined;
    this.latestTime = -Infinity;
  }

  get length() {
    return this.step.length;
  }

  get first() {
    return this.step[0];
  }

  get last() {
    return this.step[this.step.length - 1];
  }

  at(i) {
    return { step: this.step[i], time: this.time[i], kind: this.kind[i], norm: this.norm[i], raw: this.raw[i], mini: this.mini[i] };
  }

  /** Takes in columns of the wire, in any order; a step already held gives way to a later one. Returns how many came. */
  add(columns) {
    const incoming = recordsOf(columns);
    if (incoming.length === 0) return 0;
    if (this.length > 0 && incoming[0].step <= this.last) this.#rebuild(merge(this.#records(), incoming));
    else for (const record of incoming) this.#push(record);
    if (this.length > this.held) this.#rebuild(thin(this.#records(), this.held));
    this.version += 1;
    return incoming.length;
  }

  /** Index of the record nearest to `step`; -1 while there is none. */
  nearest(step) {
    const i = lowerBound(this.step, step);
    if (i === 0) return this.length ? 0 : -1;
    if (i === this.length) return i - 1;
    return step - this.step[i - 1] <= this.step[i] - step ? i - 1 : i;
  }

  /** The bad step before (-1) or after (+1) `step`; undefined where there is none. */
  badBeside(step, direction) {
    return direction < 0 ? this.bad[lowerBound(this.bad, step) - 1] : this.bad[lowerBound(this.bad, step + 1)];
  }

  /** Steps per second over the last records; null while that cannot be said. */
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
    if (isBad(record.kind)) this.bad.push(record.step);
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

/** Two sorted lists as one; of a step in both, the one that was lived later. */
function merge(held, incoming) {
  const merged = [];
  let i = 0;
  for (const record of incoming) {
    while (i < held.length && held[i].step < record.step) merged.push(held[i++]);
    const same = i < held.length && held[i].step === record.step ? held[i++] : null;
    merged.push(same && same.time > record.time ? same : record);
  }
  while (i < held.length) merged.push(held[i++]);
  return merged;
}

/** At most three quarters of `held`: the ordinary records of the older half are thinned, again and again; then the oldest go. */
function thin(records, held) {
  const target = Math.floor(held * 0.75);
  let kept = records;
  while (kept.length > target) {
    const half = Math.ceil(kept.length / 2);
    const older = halve(kept.slice(0, half));
    if (older.length === half) break;
    kept = older.concat(kept.slice(half));
  }
  return kept.slice(-target);
}

/** Of each four ordinary records the two with the smallest and the largest norm: what is drawn keeps its outline. */
function halve(records) {
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
  return kept.concat(group).sort((a, b) => a.step - b.step);
}
