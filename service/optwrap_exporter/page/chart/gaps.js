/** Finds gaps on the time axis: pauses that are much longer than a step. No DOM. */

/** A pause is a gap if it is longer than this many steps. */
const STEPS_OF_A_GAP = 10;
/** How many records before and after a pause give the usual duration of a step. */
const NEIGHBOURS = 8;

/**
 * Whether there is a gap between record `i` and the next one. Records may be thinned, so the pause is divided by the number
 * of steps in it. It is compared with the usual duration of a step before and after it, whichever is longer.
 *
 * @param {import("../steps.js").Steps} records
 * @param {number} i
 */
export function isGap(records, i) {
  if (!records.byTime) return false;
  const before = perStep(records, i - NEIGHBOURS, i);
  const after = perStep(records, i + 1, i + 1 + NEIGHBOURS);
  const usual = Math.max(before, after);
  return usual > 0 && perStep(records, i, i + 1) > STEPS_OF_A_GAP * usual;
}

/** Seconds per step between two records; 0 if there are fewer than two records. */
function perStep({ step, time, length }, from, to) {
  const first = Math.max(0, from);
  const last = Math.min(length - 1, to);
  if (last <= first) return 0;
  // After a rollback the step numbers go back, but each record is still a step.
  return (time[last] - time[first]) / Math.max(last - first, step[last] - step[first]);
}

/** The gaps between two positions on the axis, each as the index of the record before it. */
export function gapsWithin(records, min, max) {
  if (!records.byTime) return [];
  const [first, end] = records.within(min, max);
  const found = [];
  for (let i = Math.max(0, first - 1); i < Math.min(end, records.length - 1); i += 1) if (isGap(records, i)) found.push(i);
  return found;
}

/** The gaps between two positions on the time axis in buckets: pauses of more than a bucket. Each from its beginning to its end. */
export function gapsOfBuckets({ from, to, width }, [first, end]) {
  const found = /** @type {[number, number][]} */ ([]);
  for (let i = Math.max(1, first); i < end; i += 1) if (from[i] - to[i - 1] > width) found.push([to[i - 1], from[i]]);
  return found;
}
