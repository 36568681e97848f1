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

/** The least distance between labels that are whole multiples of it, of which a range has at most about six. */
function niceIncrement(range) {
  const power = 10 ** Math.floor(Math.log10(range / 6));
  return power * ([1, 2, 5].find((factor) => factor * power * 6 >= range) ?? 10);
}

/**
 * The positions of labels on the y axis. About ten powers of ten at most; also 2 and 5 times them if fewer than three powers are
 * in view; and if less than one is, numbers with equal distances.
 *
 * @param {number} min
 * @param {number} max
 */
export function logSplits(min, max) {
  const splits = [];
  if (max - min < 1) {
    const [low, high] = [10 ** min, 10 ** max];
    const increment = niceIncrement(high - low);
    for (let i = Math.ceil(low / increment); i * increment <= high; i += 1) splits.push(Math.log10(i * increment));
    return splits;
  }
  const stride = Math.max(1, Math.ceil((max - min) / 10));
  const factors = max - min < 3 ? [1, 2, 5] : [1];
  for (let power = Math.floor(min / stride) * stride; power <= max; power += stride) {
    for (const factor of factors) {
      const value = power + Math.log10(factor);
      if (value >= min && value <= max) splits.push(value);
    }
  }
  return splits;
}
