/** What the chart draws beside the line: bad steps on the axis, gaps in time, the limit, the strips under it. Canvas only. */

import { barsOf } from "./bars.js";
import { duration } from "./format.js";
import { badness, isBad, KINDS, SHAPES } from "./words.js";

/** CSS pixels. */
export const STRIP_GAP = 6;
export const STRIP_HEIGHT = 16;
export const MARK = 10;
/** More marks in view than this get no line of their own up through the plot. */
const GUIDES = 120;

const paths = new Map(Object.entries(SHAPES).map(([name, { d }]) => [name, new Path2D(d)]));

function draw(context, name, x, y, size, colour) {
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

/** Faint lines up from the bad steps, given by their indices, under the data. */
export function drawGuides(plot, bad, records, colours) {
  if (bad.length > GUIDES) return;
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

/** One mark on the axis for each bad step; where they share a pixel the worst is on top. */
export function drawMarks(plot, bad, records, colours) {
  const { ctx, bbox } = plot;
  const size = MARK * devicePixelRatio;
  const y = bbox.top + bbox.height - size * 0.75;
  const marks = bad.map((i) => ({ x: records.x[i], kind: records.kind[i] }));
  marks.sort((a, b) => badness(b.kind) - badness(a.kind));
  for (const { x, kind } of marks) draw(ctx, shapeOf(kind), plot.valToPos(x, "x", true), y, size, colours.kind(kind));
}

/** A line across the plot at the norm from which steps are skipped, given where it is on the plot's y axis. */
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
  const text = "skipped from here up";
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

/** Where no step was taken for long the ground is another, and says for how long where there is room. */
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
    const seen = [Math.max(from, bbox.left), Math.min(to, bbox.left + bbox.width)];
    const text = `no step for ${duration(records.time[i + 1] - records.time[i])}`;
    if (seen[1] - seen[0] < ctx.measureText(text).width + 12 * ratio) continue;
    ctx.fillStyle = colours.muted;
    ctx.fillText(text, (seen[0] + seen[1]) / 2, bbox.top + bbox.height / 2);
  }
  ctx.restore();
}

/**
 * The strips under the plot: what became of each step, a bad one with its shape cut in where there is room; and, where
 * gradients are accumulated, how full the window was and where it became a gradient step. Says whether any bar is thinned.
 */
export function drawStrips(plot, records, everyK, colours, labelled) {
  const bars = barsOf(plot, records, everyK, devicePixelRatio);
  const draws = [{ name: "verdict", fill: drawVerdicts }];
  if (everyK > 0) draws.push({ name: "window", fill: drawWindows });
  draws.forEach(({ name, fill }, i) => {
    drawStrip(plot, i, labelled ? name : null, colours, (top, height) => fill(plot.ctx, bars, top, height, colours));
  });
  return bars.some((bar) => bar.thinned);
}

/** The ground of the strip that is number `i` from the top, its name beside it, and what `fill` puts into it. */
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

function drawVerdicts(ctx, bars, top, height, colours) {
  const ratio = devicePixelRatio;
  // Ordinary bars first: a bad one may be wider than its place, and nothing may cover it.
  for (const { x, width, kind, moved, thinned } of bars) {
    // Lower where nothing moved, so that it is not told by colour alone.
    const part = isBad(kind) && !thinned ? 0 : moved && !thinned ? 1 : 0.5;
    ctx.fillStyle = thinned ? colours.thinned : colours.kind(moved ? "applied" : kind);
    ctx.fillRect(x, top + (1 - part) * height, width, part * height);
  }
  for (const { x, width: whole, at, kind, thinned } of bars.filter((bar) => isBad(bar.kind))) {
    const width = thinned ? 2 * ratio : Math.max(whole, 2 * ratio);
    ctx.fillStyle = colours.kind(kind);
    // Of a bar that stands for steps which are missing, only where the bad one was.
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
