/** Chooses the range of the norm's axis, from what is in view. No DOM. */

/** The part of the steps at either end that may be outside of the range. */
const TAIL = 0.01;
/** The least height of the middle of the norms, as a part of the plot: rare spikes beyond it are cut off, and say so. */
const LEAST_MIDDLE = 0.4;
/** The least range, in powers of ten: about 5 %. */
const LEAST_RANGE = 0.02;
/** How much of the height may be added so that the limit is in view. */
const FOR_LIMIT = 0.35;

/** The value below which a part of a sorted list is. */
function quantile(sorted, part) {
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.round(part * (sorted.length - 1))))];
}

const sort = (values) => Float64Array.from(values).sort();

/**
 * The range of the norm's axis. All values are logarithms.
 *
 * @param {number[]} lows of each step or bucket in view the smallest norm
 * @param {number[]} highs its largest norm
 * @param {number | null} limit the norm from which on steps are skipped
 * @returns {{min: number, max: number, limit: "line" | "above" | "below" | null}} and whether the limit is a line in it
 */
export function scaleOf(lows, highs, limit) {
  const [up, down] = [sort(highs), sort(lows)];
  if (up.length === 0) return { min: -1, max: limit === null ? 0 : Math.max(0, limit), limit: limit === null ? null : "line" };
  const [low, high] = [quantile(down, TAIL), quantile(up, 1 - TAIL)];
  const middle = Math.max(high - low, LEAST_RANGE);
  const spare = middle * (1 / LEAST_MIDDLE - 1);
  const [least, most] = [down[0], up.at(-1) ?? high];
  const below = Math.min(low - least, Math.max(spare / 2, spare - (most - high)));
  const above = Math.min(most - high, spare - below);
  const missing = Math.max(0, LEAST_RANGE - (high + above - low + below)) / 2;
  const range = { min: low - below - missing, max: high + above + missing };
  if (limit === null) return { ...range, limit: null };
  const more = FOR_LIMIT * (range.max - range.min);
  if (limit > range.max + more) return { ...range, limit: "above" };
  if (limit < range.min - more) return { ...range, limit: "below" };
  return { min: Math.min(range.min, limit), max: Math.max(range.max, limit), limit: "line" };
}
