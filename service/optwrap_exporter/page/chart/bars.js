/**
 * Computes the bars of the strips under the plot, from records. Each step is one bar. It has the filled share of the
 * accumulation window, and whether the optimizer changed the parameters. If there is no room for one bar per step, a bar covers
 * at least one window, and has the numbers of its steps by kind. No DOM.
 */

import { isGap } from "./gaps.js";
import { lowerBound } from "../steps.js";
import { severity } from "../words.js";

/**
 * A bar, in canvas pixels.
 *
 * @typedef {object} Bar
 * @property {number} x
 * @property {number} width
 * @property {Record<string, number>} counts Its steps by kind.
 * @property {number} count All its steps.
 * @property {string} kind The worst kind.
 * @property {number} share The filled part of the accumulation window, 0 to 1.
 * @property {boolean} moved Whether the optimizer changed the parameters.
 */

/**
 * The bars in view, from left to right.
 *
 * @param {any} plot uPlot's plot
 * @param {import("../steps.js").Steps} records along the plot's axis
 * @param {number | null} everyK mini-steps of an accumulation window, or null without accumulation
 * @param {number} ratio canvas pixels per CSS pixel
 * @returns {Bar[]}
 */
export function barsOf(plot, records, everyK, ratio) {
  return records.byTime ? barsByTime(plot, records, everyK, ratio) : barsByStep(plot, records, everyK, ratio);
}

/** The bar of one record. */
function barOf(records, i, everyK) {
  const kind = records.kind[i];
  const mini = records.mini[i];
  const moved = kind === "applied" || kind === "accepted_not_finite";
  const share = moved ? 1 : everyK > 0 && mini !== null ? Math.min(1, mini / everyK) : 0;
  return { kind, share, moved, counts: { [kind]: 1 }, count: 1 };
}

/** Adds the steps of one bar to another. */
function join(bar, { kind, share, moved, counts, count }) {
  bar.count += count;
  for (const [name, number] of Object.entries(counts)) bar.counts[name] = (bar.counts[name] ?? 0) + number;
  bar.share = Math.max(bar.share, share);
  bar.moved ||= moved;
  if (severity(kind) < severity(bar.kind)) bar.kind = kind;
}

/** The number of the group of `together` steps that a step belongs to. Step 1 begins the first group, as it begins a window. */
const groupOf = (step, together) => Math.floor((step - 1) / together);

function barsByStep(plot, records, everyK, ratio) {
  const { min, max } = plot.scales.x;
  const at = (step) => Math.round(plot.valToPos(step - 0.5, "x", true));
  const perStep = plot.valToPos(min + 1, "x", true) - plot.valToPos(min, "x", true);
  const roomy = perStep >= 3 * ratio;
  const together = roomy ? 1 : Math.max(Math.ceil((2 * ratio) / perStep), everyK ?? 1);
  const bars = [];
  const end = lowerBound(records.step, max + together);
  for (let i = lowerBound(records.step, min - together); i < end; i += 1) {
    const first = groupOf(records.step[i], together) * together + 1;
    const bar = barOf(records, i, everyK);
    if (bars.at(-1)?.first === first) {
      join(bars.at(-1), bar);
      continue;
    }
    const x = at(first);
    bars.push({ ...bar, first, x, width: Math.max(ratio, at(first + together) - x - (roomy ? ratio : 0)) });
  }
  return bars;
}

/** On the time axis a step extends half way to each neighbour. At a gap it extends as far as on its other side. */
function barsByTime(plot, records, everyK, ratio) {
  const { time } = records;
  const { min, max } = plot.scales.x;
  const [from, to] = records.within(min, max);
  const [begin, end] = [Math.max(0, from - 1), Math.min(records.length, to + 1)];
  const half = (i) => (i < 0 || i + 1 >= records.length || isGap(records, i) ? null : (time[i + 1] - time[i]) / 2);
  const pixel = (t) => Math.round(plot.valToPos(t, "x", true));
  const left = (i) => pixel(time[i] - (half(i - 1) ?? half(i) ?? 0));
  const right = (i) => pixel(time[i] + (half(i) ?? half(i - 1) ?? 0));

  const perStep = secondsPerStep(records, begin, end);
  const perSecond = plot.valToPos(min + 1, "x", true) - plot.valToPos(min, "x", true);
  const roomy = perStep === null || perStep * perSecond >= 3 * ratio;
  // Slots have a fixed length and fixed times, so that the bars do not flicker while the plot follows the run.
  const slot = roomy ? 0 : 2 ** Math.ceil(Math.log2((2 * ratio) / perSecond));

  const bars = [];
  for (const group of groupsByTime(records, begin, end, everyK, roomy ? 1 : (everyK ?? 1))) {
    const { first, last } = group;
    append(bars, {
      ...group,
      x: left(first),
      right: right(last),
      slot: slot ? Math.floor((time[first] + time[last]) / 2 / slot) : first,
    });
  }
  for (const bar of bars) bar.width = Math.max(ratio, bar.right - bar.x - (roomy ? ratio : 0));
  return bars;
}

/** Appends a bar, or joins it to the one before where both are in one slot. */
function append(bars, bar) {
  const before = bar.afterGap ? undefined : bars.at(-1);
  if (before?.slot === bar.slot) {
    join(before, bar);
    Object.assign(before, { right: bar.right, last: bar.last });
  } else bars.push(bar);
}

/** The mean duration of a step outside gaps, in seconds; null where no two records tell it. */
function secondsPerStep(records, begin, end) {
  const { time, step } = records;
  let seconds = 0;
  let steps = 0;
  for (let i = begin; i + 1 < end; i += 1) {
    if (isGap(records, i)) continue;
    seconds += time[i + 1] - time[i];
    steps += Math.max(1, step[i + 1] - step[i]);
  }
  return steps === 0 ? null : seconds / steps;
}

/**
 * The records from `begin` to `end` as bars of `together` steps each, split at gaps and where the step number goes back. Each
 * has the indices of its `first` and `last` record, and `afterGap`.
 */
function groupsByTime(records, begin, end, everyK, together) {
  const { step } = records;
  const groups = [];
  for (let i = begin; i < end; i += 1) {
    const number = groupOf(step[i], together);
    const afterGap = i > 0 && isGap(records, i - 1);
    const group = groups.at(-1);
    if (group && group.number === number && !afterGap && step[i] > step[group.last]) {
      join(group, barOf(records, i, everyK));
      group.last = i;
    } else groups.push({ ...barOf(records, i, everyK), first: i, last: i, number, afterGap });
  }
  return groups;
}
