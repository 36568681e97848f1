/** Loads what is drawn beside the run: another run's norms, or those of an earlier attempt. Along the step axis only. */

import { getJson, paths } from "../api.js";
import { BUCKETS, bucketsOf } from "../buckets.js";
import { seconds } from "../format.js";
import { Steps } from "../steps.js";

/** @import { State } from "../model.js" */

/** How often another run is asked for again while the plot follows (ms). */
const PAUSE = 10_000;

/**
 * The norms to draw: positions on the step axis, and the norm of each, or the median of a bucket of steps.
 *
 * @typedef {{x: number[], middle: (number | null)[], key: any}} Overlay
 */

/** Creates the loader. It calls `onLoaded` when an answer came. */
export function createOverlay({ onLoaded }) {
  /** What was asked for, and when. */
  let asked = { key: "", at: 0 };
  let loaded = /** @type {Overlay | null} */ (null);
  let failed = false;

  async function load(run, [min, max], key) {
    asked = { key, at: performance.now() };
    const [since, until] = [Math.max(0, Math.floor(min)), Math.ceil(max)];
    try {
      const { buckets } = await getJson(paths.steps(run, { since, until, points: 2, buckets: BUCKETS }));
      if (asked.key !== key) return;
      const { x, middle } = bucketsOf({ answer: buckets, open: false, steps: 0 }, new Steps());
      loaded = { x, middle, key: `${key} ${asked.at}` };
      failed = false;
    } catch {
      if (asked.key !== key) return;
      loaded = null;
      failed = true;
    }
    onLoaded();
  }

  /** What is held for the state's comparison; null if there is none, or not yet. `failed` if the exporter does not have it. */
  return (/** @type {State} */ state, /** @type {[number, number] | null} */ range) => {
    const { compare, axis } = state.view;
    const separator = compare?.indexOf(":") ?? 0;
    if (compare === null || range === null || axis === "time") return { overlay: null, failed: false };
    const [kind, name] = [compare.slice(0, separator), compare.slice(separator + 1)];
    if (kind === "attempt") {
      const overlay = ofAttempt(state, name);
      return { overlay, failed: overlay === null };
    }
    // While the plot follows, its range changes with each step.
    const follows = state.view.range === null;
    const key = JSON.stringify([name, follows ? state.view.window : range]);
    if (asked.key !== key) {
      loaded = null;
      load(name, range, key);
    } else if (follows && performance.now() - asked.at > PAUSE) load(name, range, key);
    return { overlay: loaded, failed: failed && asked.key === key };
  };
}

/**
 * The steps that an attempt took, as far as they are held: from its first report until that of the next attempt.
 *
 * @returns {Overlay | null}
 */
function ofAttempt({ detail, times, version }, name) {
  const i = detail.attempts.findIndex(({ attempt }) => attempt === name);
  if (i < 0) return null;
  const [since, until] = [detail.attempts[i], detail.attempts[i + 1]].map((row) => seconds(row?.since));
  const [first, end] = times.within(since ?? 0, until ?? Infinity);
  const records = times.step.slice(first, end).map((step, at) => ({ step, norm: times.norm[first + at] }));
  records.sort((a, b) => a.step - b.step);
  return { x: records.map(({ step }) => step), middle: records.map(({ norm }) => norm), key: [name, version] };
}
