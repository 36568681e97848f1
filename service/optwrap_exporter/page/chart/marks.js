/** Draws everything on the chart but the line: bad steps, gaps in time, the limit, and the strips under the plot. */

import { barsOf } from "./bars.js";
import { duration } from "../format.js";
import { isBad, KINDS, severity, SHAPES } from "../words.js";

// Sizes in CSS pixels.
export const STRIP_GAP = 6;
export const STRIP_HEIGHT = 16;
export const MARK = 10;
/** Bad steps have vertical guide lines, unless there are more of them in view than this. */
const MAX_GUIDES = 120;

const paths = new Map(Object.entries(SHAPES).map(([name, { d }]) => [name, new Path2D(d)]));

/** Draws a shape with its middle at (x, y). */
export function draw(context, name, x, y, size, colour) {
  context.save();
  context.translate(x - size / 2, y - size / 2);
  context.scale(size / 10, size / 10);
  if (SHAPES[name].stroke) {
    context.strokeStyle = colour;
    context.lineWidth = 2.4;
    context.stroke(paths.get(name));
  } else {
    context.fillStyle = colour;
    context.fill(paths.get(name), "evenodd");
  }
  context.restore();
}

const shapeOf = (kind) => KINDS[kind]?.shape ?? "diamond";

/** Draws faint vertical lines at the bad steps, under the data. `bad` are indices of records. */
export function drawGuides(plot, bad, records, colours) {
  if (bad.length > MAX_GUIDES) return;
  const { ctx, bbox } = plot;
  const ratio = devicePixelRatio;
  ctx.save();
  ctx.globalAlpha = 0.35;
  ctx.lineWidth = ratio;
  for (const i of bad) {
    const x = Math.round(plot.valToPos(records.x[i], "x", true)) + 0.5;
    ctx.strokeStyle = colours.kind(records.kind[i]);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}

/** Draws a mark on the axis for each bad step. Where marks overlap, the worst is on top. */
export function drawMarks(plot, bad, records, colours) {
  const { ctx, bbox } = plot;
  const size = MARK * devicePixelRatio;
  const y = bbox.top + bbox.height - size * 0.75;
  const marks = bad.map((i) => ({ x: records.x[i], kind: records.kind[i] }));
  marks.sort((a, b) => severity(b.kind) - severity(a.kind));
  for (const { x, kind } of marks) draw(ctx, shapeOf(kind), plot.valToPos(x, "x", true), y, size, colours.kind(kind));
}

/** Draws a line at the norm from which on steps are skipped. `limit` is a position on the y axis, or null. */
export function drawLimit(plot, limit, colours) {
  if (limit === null) return;
  const { ctx, bbox } = plot;
  const y = plot.valToPos(limit, "y", true);
  if (y < bbox.top || y > bbox.top + bbox.height) return;
  const ratio = devicePixelRatio;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = colours.kind("skipped_large");
  ctx.lineWidth = 1.5 * ratio;
  ctx.setLineDash([6 * ratio, 4 * ratio]);
  ctx.beginPath();
  ctx.moveTo(bbox.left, y);
  ctx.lineTo(bbox.left + bbox.width, y);
  ctx.stroke();
  const text = "limit: steps above it are skipped";
  ctx.font = `${11 * ratio}px system-ui, sans-serif`;
  ctx.textAlign = "left";
  ctx.textBaseline = "middle";
  const label = { x: bbox.left + 8 * ratio, y: y - 10 * ratio };
  ctx.save();
  ctx.fillStyle = colours.surface;
  ctx.globalAlpha = 0.85;
  ctx.fillRect(label.x - 3 * ratio, label.y - 7 * ratio, ctx.measureText(text).width + 6 * ratio, 14 * ratio);
  ctx.restore();
  ctx.fillText(text, label.x, label.y);
  ctx.restore();
}

/** Shades the gaps in time, and writes their duration where there is room. */
export function drawGaps(plot, gaps, records, colours) {
  const { ctx, bbox } = plot;
  const ratio = devicePixelRatio;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  ctx.font = `${11 * ratio}px system-ui, sans-serif`;
  ctx.textAlign = "center";
  ctx.textBaseline = "middle";
  for (const i of gaps) {
    const [from, to] = [records.time[i], records.time[i + 1]].map((time) => plot.valToPos(time, "x", true));
    ctx.fillStyle = colours.strip;
    ctx.fillRect(from, bbox.top, to - from, bbox.height);
    const visible = [Math.max(from, bbox.left), Math.min(to, bbox.left + bbox.width)];
    const text = `no step for ${duration(records.time[i + 1] - records.time[i])}`;
    if (visible[1] - visible[0] < ctx.measureText(text).width + 12 * ratio) continue;
    ctx.fillStyle = colours.muted;
    ctx.fillText(text, (visible[0] + visible[1]) / 2, bbox.top + bbox.height / 2);
  }
  ctx.restore();
}

/**
 * Draws the strips under the plot: the outcome of each step and, with gradient accumulation, how full the window was.
 * Returns whether any bar is thinned.
 */
export function drawStrips(plot, records, everyK, colours, labelled) {
  const bars = barsOf(plot, records, everyK, devicePixelRatio);
  const draws = [{ name: "outcome", fill: drawOutcomes }];
  if (everyK > 0) draws.push({ name: "window", fill: drawWindows });
  draws.forEach(({ name, fill }, i) => {
    drawStrip(plot, i, labelled ? name : null, colours, (top, height) => fill(plot.ctx, bars, top, height, colours));
  });
  return bars.some((bar) => bar.thinned);
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
  // Good bars first: a bad bar may be wider than its steps, and nothing may cover it.
  for (const { x, width, kind, moved, thinned } of bars) {
    // Half as high where the parameters did not change, so that colour is not the only difference.
    const part = isBad(kind) && !thinned ? 0 : moved && !thinned ? 1 : 0.5;
    ctx.fillStyle = thinned ? colours.thinned : colours.kind(moved ? "applied" : kind);
    ctx.fillRect(x, top + (1 - part) * height, width, part * height);
  }
  for (const { x, width: full, at, kind, thinned } of bars.filter((bar) => isBad(bar.kind))) {
    const width = thinned ? 2 * ratio : Math.max(full, 2 * ratio);
    ctx.fillStyle = colours.kind(kind);
    // In a thinned bar only the position of the bad step is marked.
    ctx.fillRect(thinned ? at - ratio : x, top, width, height);
    if (width >= 7 * ratio) draw(ctx, shapeOf(kind), x + width / 2, top + height / 2, Math.min(width, MARK * ratio) * 0.8, colours.strip);
  }
}

function drawWindows(ctx, bars, top, height, colours) {
  for (const { x, width, share, moved, thinned } of bars) {
    const part = thinned ? 0.5 : share;
    ctx.fillStyle = thinned ? colours.thinned : colours.kind(moved ? "applied" : "accumulated");
    ctx.fillRect(x, top + (1 - part) * height, width, part * height);
  }
}
