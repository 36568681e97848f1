/** Draws the strips under the plot: what became of the steps and, with gradient accumulation, how full the window was. */

import { barsOf } from "./bars.js";
import { draw, MARK, shapeOf } from "./marks.js";
import { bucketsWithin } from "../buckets.js";
import { isBad, KINDS, severity } from "../words.js";

/** @import { Bar } from "./bars.js" */

// Sizes in CSS pixels.
export const STRIP_GAP = 6;
export const STRIP_HEIGHT = 16;
/** The least height of a kind of bad steps in a bar of many steps, so that one bad step in a thousand is visible. */
const LEAST_BAD = 2;

/** From the bottom to the top of a bar of many steps: good steps, then bad ones, the worst on top. */
const ORDER = Object.keys(KINDS).sort((a, b) => severity(b) - severity(a));

/**
 * Draws the strips. Of buckets there is no strip of windows: a bucket has many.
 *
 * @param {any} plot uPlot's plot
 * @param {{records: any, buckets: any, everyK: number | null}} shown
 * @param {any} colours
 * @param {boolean} labelled
 */
export function drawStrips(plot, { records, buckets, everyK }, colours, labelled) {
  const bars = buckets ? barsOfBuckets(plot, buckets, devicePixelRatio) : barsOf(plot, records, everyK, devicePixelRatio);
  const draws = [{ name: "outcome", fill: drawOutcomes }];
  if ((everyK ?? 0) > 0 && !buckets) draws.push({ name: "window", fill: drawWindows });
  draws.forEach(({ name, fill }, i) => {
    drawStrip(plot, i, labelled ? name : null, colours, (top, height) => fill(plot.ctx, bars, top, height, colours));
  });
}

/** The bars of buckets. @returns {Bar[]} */
function barsOfBuckets(plot, buckets, ratio) {
  const { min, max } = plot.scales.x;
  const [first, end] = bucketsWithin(buckets, [min, max]);
  const at = (position) => Math.round(plot.valToPos(position, "x", true));
  const bars = [];
  for (let i = first; i < end; i += 1) {
    const x = at(buckets.from[i]);
    const counts = Object.fromEntries(Object.entries(buckets.kinds).map(([kind, column]) => [kind, column[i]]));
    const width = Math.max(ratio, at(buckets.to[i]) - x);
    bars.push({ x, width, counts, count: buckets.count[i], kind: "applied", share: 0, moved: false });
  }
  return bars;
}

/** Draws strip number `i` from the top: its background, its name if it has one, and what `fill` draws into it. */
function drawStrip({ ctx, bbox }, i, name, colours, fill) {
  const ratio = devicePixelRatio;
  const height = STRIP_HEIGHT * ratio;
  const top = bbox.top + bbox.height + STRIP_GAP * ratio + i * (STRIP_GAP * ratio + height);
  ctx.save();
  if (name !== null) {
    ctx.font = `${11 * ratio}px system-ui, sans-serif`;
    ctx.fillStyle = colours.muted;
    ctx.textAlign = "right";
    ctx.textBaseline = "middle";
    ctx.fillText(name, bbox.left - 8 * ratio, top + height / 2);
  }
  ctx.beginPath();
  ctx.rect(bbox.left, top, bbox.width, height);
  ctx.clip();
  ctx.fillStyle = colours.strip;
  ctx.fillRect(bbox.left, top, bbox.width, height);
  fill(top, height);
  ctx.restore();
}

function drawOutcomes(ctx, bars, top, height, colours) {
  const ratio = devicePixelRatio;
  const single = ({ count }) => count === 1;
  // Good bars first: a bad bar may be wider than its steps, and nothing may cover it.
  for (const { x, width, kind, moved } of bars.filter((bar) => single(bar) && !isBad(bar.kind))) {
    // Half as high where the parameters did not change, so that colour is not the only difference.
    const part = moved ? 1 : 0.5;
    ctx.fillStyle = colours.kind(kind);
    ctx.fillRect(x, top + (1 - part) * height, width, part * height);
  }
  for (const bar of bars) if (!single(bar)) drawShares(ctx, bar, top, height, colours);
  for (const { x, width: full, kind } of bars.filter((bar) => single(bar) && isBad(bar.kind))) {
    const width = Math.max(full, 2 * ratio);
    ctx.fillStyle = colours.kind(kind);
    ctx.fillRect(x, top, width, height);
    if (width >= 7 * ratio) draw(ctx, shapeOf(kind), x + width / 2, top + height / 2, Math.min(width, MARK * ratio) * 0.8, colours.strip);
  }
}

/** Draws the share of each kind in a bar of many steps. */
function drawShares(ctx, { x, width, counts, count }, top, height, colours) {
  const present = ORDER.filter((kind) => counts[kind] > 0);
  const least = (kind) => (isBad(kind) ? LEAST_BAD * devicePixelRatio : 0);
  const heights = present.map((kind) => Math.max((counts[kind] / count) * height, least(kind)));
  // What bad steps get beyond their share is taken from the largest share.
  const largest = heights.indexOf(Math.max(...heights));
  heights[largest] -= heights.reduce((a, b) => a + b, 0) - height;
  let y = top + height;
  present.forEach((kind, i) => {
    y -= heights[i];
    ctx.fillStyle = colours.kind(kind);
    ctx.fillRect(x, y, width, heights[i]);
  });
}

function drawWindows(ctx, bars, top, height, colours) {
  for (const { x, width, share, moved } of bars) {
    ctx.fillStyle = colours.kind(moved ? "applied" : "accumulated");
    ctx.fillRect(x, top + (1 - share) * height, width, share * height);
  }
}
