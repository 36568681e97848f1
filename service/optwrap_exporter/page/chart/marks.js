/** Draws what marks the plot: bad steps, gaps in time, the limit, norms beyond the axis, attempts and rebases. */

import { duration, norm as formatNorm } from "../format.js";
import { KINDS, severity, SHAPES } from "../words.js";

/** Size of a mark in CSS pixels. */
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

export const shapeOf = (kind) => KINDS[kind]?.shape ?? "diamond";

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

/** Writes a label on a ground of its own, so that it is readable over lines, beside a place. Returns where it is. */
function label({ ctx, bbox }, text, { x, y, align = "left" }, colours, colour) {
  const ratio = devicePixelRatio;
  ctx.save();
  ctx.font = `${11 * ratio}px system-ui, sans-serif`;
  ctx.textAlign = "left";
  ctx.textBaseline = "middle";
  const width = ctx.measureText(text).width;
  const wanted = align === "left" ? x : x - width;
  const left = Math.min(Math.max(wanted, bbox.left + 3 * ratio), bbox.left + bbox.width - width - 3 * ratio);
  ctx.fillStyle = colours.surface;
  ctx.globalAlpha = 0.85;
  ctx.fillRect(left - 3 * ratio, y - 7 * ratio, width + 6 * ratio, 14 * ratio);
  ctx.globalAlpha = 1;
  ctx.fillStyle = colour;
  ctx.fillText(text, left, y);
  ctx.restore();
  return { from: left, to: left + width };
}

/**
 * Draws the norm from which on steps are skipped: a line if it is within the axis, else an arrow at the edge with its value.
 *
 * @param {any} plot
 * @param {number | null} limit
 * @param {"line" | "above" | "below" | null} place
 * @param {any} colours
 */
export function drawLimit(plot, limit, place, colours) {
  if (limit === null || place === null) return;
  const { ctx, bbox } = plot;
  const ratio = devicePixelRatio;
  const colour = colours.kind("skipped_large");
  if (place !== "line") {
    const y = place === "above" ? bbox.top + 8 * ratio : bbox.top + bbox.height - 24 * ratio;
    label(plot, `${place === "above" ? "▲" : "▼"} limit ${formatNorm(limit)}, ${place} this axis`, { x: bbox.left + 8 * ratio, y }, colours, colour);
    return;
  }
  const y = plot.valToPos(Math.log10(limit), "y", true);
  ctx.save();
  ctx.strokeStyle = colour;
  ctx.lineWidth = 1.5 * ratio;
  ctx.setLineDash([6 * ratio, 4 * ratio]);
  ctx.beginPath();
  ctx.moveTo(bbox.left, y);
  ctx.lineTo(bbox.left + bbox.width, y);
  ctx.stroke();
  ctx.restore();
  const beside = y < bbox.top + 18 * ratio ? 10 : -10;
  label(plot, `limit ${formatNorm(limit)}: steps above it are skipped`, { x: bbox.left + 8 * ratio, y: y + beside * ratio }, colours, colour);
}

/**
 * Marks norms that are beyond the axis with an arrow at its edge; the largest and the smallest with their value.
 *
 * @param {any} plot
 * @param {{x: number, value: number}[]} beyond positions on the axis, and norms
 * @param {"above" | "below"} side
 * @param {any} colours
 */
export function drawBeyond(plot, beyond, side, colours) {
  if (beyond.length === 0) return;
  const { ctx, bbox } = plot;
  const ratio = devicePixelRatio;
  const [size, up] = [5 * ratio, side === "above"];
  const edge = up ? bbox.top + ratio : bbox.top + bbox.height - ratio;
  ctx.save();
  ctx.fillStyle = colours.line;
  for (const { x } of beyond) {
    const at = plot.valToPos(x, "x", true);
    ctx.beginPath();
    ctx.moveTo(at, edge);
    ctx.lineTo(at - size * 0.7, edge + (up ? size : -size));
    ctx.lineTo(at + size * 0.7, edge + (up ? size : -size));
    ctx.fill();
  }
  ctx.restore();
  const farthest = beyond.reduce((a, b) => ((up ? b.value > a.value : b.value < a.value) ? b : a));
  const y = up ? bbox.top + 8 * ratio : bbox.top + bbox.height - 22 * ratio;
  const x = plot.valToPos(farthest.x, "x", true);
  const onLeft = x > bbox.left + bbox.width * 0.8;
  const place = onLeft ? { x: x - 8 * ratio, y, align: "right" } : { x: x + 8 * ratio, y };
  label(plot, `${up ? "up to" : "down to"} ${formatNorm(farthest.value)}`, place, colours, colours.line);
}

/**
 * Draws a vertical line for each thing that happened, with its name where there is room. @see happened.js
 *
 * @param {any} plot
 * @param {{x: number, text: string, kind: string}[]} happened by position
 * @param {any} colours
 */
export function drawHappened(plot, happened, colours) {
  const { ctx, bbox } = plot;
  const ratio = devicePixelRatio;
  ctx.save();
  ctx.strokeStyle = colours.ink;
  ctx.globalAlpha = 0.55;
  ctx.lineWidth = ratio;
  for (const { x, kind } of happened) {
    const at = Math.round(plot.valToPos(x, "x", true)) + 0.5;
    ctx.setLineDash(kind === "attempt" ? [] : [2 * ratio, 3 * ratio]);
    ctx.beginPath();
    ctx.moveTo(at, bbox.top);
    ctx.lineTo(at, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
  let free = -Infinity;
  for (const { x, text } of happened) {
    const at = plot.valToPos(x, "x", true) + 6 * ratio;
    if (at < free) continue;
    free = label(plot, text, { x: at, y: bbox.top + 26 * ratio }, colours, colours.ink).to + 6 * ratio;
  }
}

/** Draws the band from the smallest to the largest norm of each bucket. */
export function drawBand(plot, buckets, [first, end], colours) {
  const { ctx, bbox } = plot;
  const y = (norm) => plot.valToPos(norm > 0 ? Math.log10(norm) : plot.scales.y.min, "y", true);
  const x = (position) => plot.valToPos(position, "x", true);
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  ctx.fillStyle = colours.band;
  for (let i = first; i < end; i += 1) {
    const { from, to, low, high } = buckets;
    if (low[i] === null) continue;
    const [left, right, top, bottom] = [x(from[i]), x(to[i]), y(high[i]), y(low[i])];
    // At least a pixel wide and high, so that a bucket of one step or of equal norms is visible.
    ctx.fillRect(left, top, Math.max(devicePixelRatio, right - left), Math.max(devicePixelRatio, bottom - top));
  }
  ctx.restore();
}

/** Draws another run or attempt as a line through its medians. */
export function drawOverlay(plot, { x, middle }, colours) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  ctx.strokeStyle = colours.overlay;
  ctx.lineWidth = 1.5 * devicePixelRatio;
  ctx.beginPath();
  x.forEach((at, i) => {
    if (middle[i] > 0) ctx.lineTo(plot.valToPos(at, "x", true), plot.valToPos(Math.log10(middle[i]), "y", true));
  });
  ctx.stroke();
  ctx.restore();
}

/** Shades the gaps in time, each from and to a time, and writes their duration where there is room. */
export function drawGaps(plot, gaps, colours) {
  const { ctx, bbox } = plot;
  const ratio = devicePixelRatio;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  ctx.font = `${11 * ratio}px system-ui, sans-serif`;
  ctx.textAlign = "center";
  ctx.textBaseline = "middle";
  for (const gap of gaps) {
    const [from, to] = gap.map((time) => plot.valToPos(time, "x", true));
    ctx.fillStyle = colours.strip;
    ctx.fillRect(from, bbox.top, to - from, bbox.height);
    const visible = [Math.max(from, bbox.left), Math.min(to, bbox.left + bbox.width)];
    const text = `no step for ${duration(gap[1] - gap[0])}`;
    if (visible[1] - visible[0] < ctx.measureText(text).width + 12 * ratio) continue;
    ctx.fillStyle = colours.muted;
    ctx.fillText(text, (visible[0] + visible[1]) / 2, bbox.top + bbox.height / 2);
  }
  ctx.restore();
}
