/**
 * The bars of the strips under the plot. Each step is one, with the share of its accumulation window that is full, and
 * whether the optimizer moved. Where there is no room for that, a bar stands for a whole window at least: full while each
 * window ends in a gradient step. Of steps that share a bar the worst is seen. Where good steps are missing, because there
 * were too many to send or to hold, nothing is said of them: such a bar is "thinned". No DOM.
 */

import { isGap } from "./gaps.js";
import { lowerBound } from "./steps.js";
import { badness } from "./words.js";

/**
 * Args: `plot` is uPlot's, in whose canvas pixels bars are; `records` those along its axis; `ratio` canvas pixels to one of
 * CSS. Returns bars from left to right: {x, width, at (where its worst step is), kind, share, moved, thinned}.
 */
export function barsOf(plot, records, everyK, ratio) {
  return records.byTime ? alongTime(plot, records, everyK, ratio) : alongSteps(plot, records, everyK, ratio);
}

/** What one record is as a bar. */
function one(records, i, everyK) {
  const kind = records.kind[i];
  const mini = records.mini[i];
  const moved = kind === "applied" || kind === "accepted_not_finite";
  const share = moved ? 1 : everyK > 0 && mini !== null ? Math.min(1, mini / everyK) : 0;
  return { kind, share, moved, worst: i, count: 1 };
}

function join(bar, { kind, share, moved, worst, count }) {
  bar.count += count;
  bar.share = Math.max(bar.share, share);
  bar.moved ||= moved;
  if (badness(kind) < badness(bar.kind)) Object.assign(bar, { kind, worst });
}

/** Steps count from 1, and with them the first window begins. */
const groupOf = (step, together) => Math.floor((step - 1) / together);

function alongSteps(plot, records, everyK, ratio) {
  const { min, max } = plot.scales.x;
  const at = (step) => Math.round(plot.valToPos(step - 0.5, "x", true));
  const perStep = plot.valToPos(min + 1, "x", true) - plot.valToPos(min, "x", true);
  const roomy = perStep >= 3 * ratio;
  const together = roomy ? 1 : Math.max(Math.ceil((2 * ratio) / perStep), everyK ?? 1);
  const bars = [];
  const end = lowerBound(records.step, max + together);
  for (let i = lowerBound(records.step, min - together); i < end; i += 1) {
    const first = groupOf(records.step[i], together) * together + 1;
    const bar = one(records, i, everyK);
    const before = bars.at(-1);
    if (before?.first === first) {
      join(before, bar);
      continue;
    }
    const x = at(first);
    // One with steps missing goes on to the next.
    if (before && first > before.first + together) before.width = Math.max(before.width, x - before.x);
    if (before) before.thinned = before.count < together || first > before.first + together;
    bars.push({ ...bar, first, x, width: Math.max(ratio, at(first + together) - x - (roomy ? ratio : 0)) });
  }
  // The first bar may be cut by the edge of the plot.
  if (bars.length && bars[0].count < together) bars[0].thinned = bars[1]?.thinned;
  return placed(plot, records, bars);
}

/** Along time a step's place goes half way to its neighbours; where a gap is, only as far as on its other side. */
function alongTime(plot, records, everyK, ratio) {
  const { time, step } = records;
  const { min, max } = plot.scales.x;
  const [from, to] = records.within(min, max);
  const [begin, end] = [Math.max(0, from - 1), Math.min(records.length, to + 1)];
  const half = (i) => (i < 0 || i + 1 >= records.length || isGap(records, i) ? null : (time[i + 1] - time[i]) / 2);
  const pixel = (t) => Math.round(plot.valToPos(t, "x", true));
  const left = (i) => pixel(time[i] - (half(i - 1) ?? half(i) ?? 0));
  const right = (i) => pixel(time[i] + (half(i) ?? half(i - 1) ?? 0));

  let taken = 0;
  let lived = 0;
  for (let i = begin; i + 1 < end; i += 1) {
    if (isGap(records, i)) continue;
    taken += time[i + 1] - time[i];
    lived += Math.max(1, step[i + 1] - step[i]);
  }
  const perSecond = plot.valToPos(min + 1, "x", true) - plot.valToPos(min, "x", true);
  const roomy = lived === 0 || (taken / lived) * perSecond >= 3 * ratio;
  const together = roomy ? 1 : (everyK ?? 1);
  // Of one length, and at the same times however the plot moves on: else what follows the run would flicker.
  const slot = roomy ? 0 : 2 ** Math.ceil(Math.log2((2 * ratio) / perSecond));

  const bars = [];
  const joined = (bar, next) => bar && bar.slot === next.slot && !next.afterGap;
  let group = null;
  const finish = () => {
    if (group === null) return;
    group.x = left(group.first);
    group.right = right(group.last);
    group.slot = slot ? Math.floor((time[group.first] + time[group.last]) / 2 / slot) : group.first;
    group.thinned = step[group.last] - step[group.first] >= group.count;
    const before = bars.at(-1);
    if (before && !group.afterGap && step[group.first] > step[before.last] + 1) before.thinned = group.thinned = true;
    if (joined(before, group)) {
      join(before, group);
      Object.assign(before, { right: group.right, last: group.last, thinned: before.thinned || group.thinned });
    } else bars.push(group);
    group = null;
  };
  for (let i = begin; i < end; i += 1) {
    const number = groupOf(step[i], together);
    const afterGap = i > 0 && isGap(records, i - 1);
    if (group !== null && group.number === number && !afterGap && step[i] > step[group.last]) {
      join(group, one(records, i, everyK));
      group.last = i;
    } else {
      finish();
      group = { ...one(records, i, everyK), first: i, last: i, number, afterGap };
    }
  }
  finish();
  for (const bar of bars) bar.width = Math.max(ratio, bar.right - bar.x - (roomy && !bar.thinned ? ratio : 0));
  return placed(plot, records, bars);
}

function placed(plot, records, bars) {
  for (const bar of bars) bar.at = plot.valToPos(records.x[bar.worst], "x", true);
  return bars;
}
