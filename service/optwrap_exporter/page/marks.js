/** What the chart draws beside the line: bad steps on the axis, and the strip of verdicts under it. Canvas only. */

import { lowerBound } from "./steps.js";
import { BADNESS, isBad, KINDS, SHAPES } from "./words.js";

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
const badness = (kind) => (BADNESS.includes(kind) ? BADNESS.indexOf(kind) : 0);

/** The bad steps between `min` and `max`, sorted. */
export function badWithin(steps, min, max) {
  return steps.bad.slice(lowerBound(steps.bad, min), lowerBound(steps.bad, max + 1));
}

/** Faint lines up from the bad steps, under the data. */
export function drawGuides(plot, bad, steps, colours) {
  if (bad.length > GUIDES) return;
  const { ctx, bbox } = plot;
  const ratio = devicePixelRatio;
  ctx.save();
  ctx.globalAlpha = 0.35;
  ctx.lineWidth = ratio;
  for (const step of bad) {
    const x = Math.round(plot.valToPos(step, "x", true)) + 0.5;
    ctx.strokeStyle = colours.kind(steps.kind[lowerBound(steps.step, step)]);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}

/** One mark on the axis for each bad step; where they share a pixel the worst is on top. */
export function drawMarks(plot, bad, steps, colours) {
  const { ctx, bbox } = plot;
  const size = MARK * devicePixelRatio;
  const y = bbox.top + bbox.height - size * 0.75;
  const marks = bad.map((step) => ({ step, kind: steps.kind[lowerBound(steps.step, step)] }));
  marks.sort((a, b) => badness(b.kind) - badness(a.kind));
  for (const { step, kind } of marks) draw(ctx, shapeOf(kind), plot.valToPos(step, "x", true), y, size, colours.kind(kind));
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

/**
 * The bars of the strips, by step: each step one, with the share of its accumulation window that is full, and whether the
 * optimizer moved. Where there is no room for that, a bar stands for a whole window at least: full while each window ends
 * in a gradient step. Of steps that share a bar the worst is seen. Where good steps are missing, because there were too
 * many to send or to hold, nothing is said of them: such a bar is "thinned", and goes on to the next.
 */
function barsOf(plot, steps, everyK) {
  const ratio = devicePixelRatio;
  const { min, max } = plot.scales.x;
  const at = (step) => Math.round(plot.valToPos(step - 0.5, "x", true));
  const perStep = plot.valToPos(min + 1, "x", true) - plot.valToPos(min, "x", true);
  const roomy = perStep >= 3 * ratio;
  const together = roomy ? 1 : Math.max(Math.ceil((2 * ratio) / perStep), everyK ?? 1);
  const bars = [];
  const end = lowerBound(steps.step, max + together);
  for (let i = lowerBound(steps.step, min - together); i < end; i += 1) {
    const first = Math.floor(steps.step[i] / together) * together;
    const kind = steps.kind[i];
    const mini = steps.mini[i];
    const moved = kind === "applied" || kind === "accepted_not_finite";
    const share = moved ? 1 : everyK > 0 && mini !== null ? Math.min(1, mini / everyK) : 0;
    const before = bars.at(-1);
    if (before?.first !== first) {
      const x = at(first);
      if (before && first > before.first + together) before.width = Math.max(before.width, x - before.x);
      if (before) before.thinned = before.count < together || first > before.first + together;
      bars.push({ first, x, width: Math.max(ratio, at(first + together) - x - (roomy ? ratio : 0)), kind, share, moved, count: 1 });
    } else {
      before.count += 1;
      before.share = Math.max(share, before.share);
      before.moved ||= moved;
      if (badness(kind) < badness(before.kind)) before.kind = kind;
    }
  }
  // The first bar may be cut by the edge of the plot.
  if (bars.length && bars[0].count < together) bars[0].thinned = bars[1]?.thinned;
  return bars;
}

/**
 * The strips under the plot: what became of each step, a bad one with its shape cut in where there is room; and, where
 * gradients are accumulated, how full the window was and where it became a gradient step. Says whether any bar is thinned.
 */
export function drawStrips(plot, steps, everyK, colours, labelled) {
  const bars = barsOf(plot, steps, everyK);
  const draws = [["verdict", drawVerdicts]];
  if (everyK > 0) draws.push(["window", drawWindows]);
  draws.forEach(([name, fill], i) => {
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
  for (const { x, width: whole, kind, thinned } of bars.filter((bar) => isBad(bar.kind))) {
    const width = thinned ? 2 * ratio : Math.max(whole, 2 * ratio);
    ctx.fillStyle = colours.kind(kind);
    ctx.fillRect(x, top, width, height);
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
