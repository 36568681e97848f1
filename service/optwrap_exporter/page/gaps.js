/** Where no step was taken for long, along the axis of time. No DOM. */

/** A pause this many times as long as a step takes is a gap. */
const TIMES = 10;
/** Steps before and after a pause that tell how long a step takes there. */
const BESIDE = 8;

/**
 * Whether there is a gap between record `i` and the next one. Records may be thinned out: what counts is the time a step
 * takes, by the step numbers, before the pause and after it, whichever is more.
 */
export function isGap(records, i) {
  if (!records.byTime) return false;
  const before = perStep(records, i - BESIDE, i);
  const after = perStep(records, i + 1, i + 1 + BESIDE);
  const usual = Math.max(before, after);
  return usual > 0 && perStep(records, i, i + 1) > TIMES * usual;
}

/** Seconds for each step from one record to another; 0 where there are no two. */
function perStep({ step, time, length }, from, to) {
  const first = Math.max(0, from);
  const last = Math.min(length - 1, to);
  if (last <= first) return 0;
  // After a rollback the numbers go back; each record is a step all the same.
  return (time[last] - time[first]) / Math.max(last - first, step[last] - step[first]);
}

/** The gaps between two places on the axis: each the index of the record before it. */
export function gapsWithin(records, min, max) {
  if (!records.byTime) return [];
  const [first, end] = records.within(min, max);
  const found = [];
  for (let i = Math.max(0, first - 1); i < Math.min(end, records.length - 1); i += 1) if (isGap(records, i)) found.push(i);
  return found;
}
