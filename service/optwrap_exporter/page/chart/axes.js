/** The numbers on the chart's axes. */

/** Distances between labelled steps: whole numbers only. On the time axis uPlot chooses minutes, hours and days itself. */
export const STEP_INCREMENTS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 5e6, 1e7, 1e8];

/**
 * The position of a norm on the y axis; null if it has none (zero, null).
 *
 * The axis is linear in the logarithm of the norm. uPlot's own logarithmic scale cannot show the range of float32, up to 3e38.
 *
 * @param {number | null} norm
 */
export function logNorm(norm) {
  return norm !== null && norm > 0 ? Math.log10(norm) : null;
}

/**
 * The positions of labels on the y axis: about ten powers of ten at most, and also 2 and 5 times them if fewer than three
 * powers are in view.
 *
 * @param {number} min
 * @param {number} max
 */
export function logSplits(min, max) {
  const stride = Math.max(1, Math.ceil((max - min) / 10));
  const factors = max - min < 3 ? [1, 2, 5] : [1];
  const splits = [];
  for (let power = Math.floor(min / stride) * stride; power <= max; power += stride) {
    for (const factor of factors) {
      const value = power + Math.log10(factor);
      if (value >= min && value <= max) splits.push(value);
    }
  }
  return splits;
}
