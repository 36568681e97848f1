/**
 * Draws the gradient norm over steps or time with uPlot, with the limit, the bad steps and the strips below the plot. Each step is
 * a point of the line; of many steps there is a band from the smallest to the largest norm, and a line through the medians.
 */

import { bucketsWithin } from "../buckets.js";
import { dayAndTime, integer, norm as formatNorm } from "../format.js";
import { logNorm, logSplits, STEP_INCREMENTS } from "./axes.js";
import { gapsOfBuckets, gapsWithin } from "./gaps.js";
import { drawBand, drawBeyond, drawGaps, drawGuides, drawHappened, drawLimit, drawMarks, drawOverlay, MARK } from "./marks.js";
import { scaleOf } from "./scale.js";
import { drawStrips, STRIP_GAP, STRIP_HEIGHT } from "./strips.js";
import { KINDS } from "../words.js";

/** @import { Buckets } from "../buckets.js" */
/** @import { Steps } from "../steps.js" */

/**
 * What is drawn.
 *
 * @typedef {object} Shown
 * @property {any} key Changes whenever the records or the buckets do.
 * @property {Steps} records
 * @property {Buckets | null} buckets Of many steps; null if each record is drawn.
 * @property {[number, number] | null} visible The range to show.
 * @property {number | null} limit
 * @property {number | null} everyK
 * @property {{x: number, text: string, kind: string}[]} happened
 * @property {{x: number[], middle: (number | null)[], key: any} | null} overlay
 */

/** A chart narrower than this is drawn smaller (CSS pixels). */
export const NARROW = 560;
/** The line crosses gaps in time that are narrower than this (CSS pixels). */
const MIN_GAP_WIDTH = 8;
/** Height of both strips (CSS pixels). It is always reserved, so that the axis does not move when accumulation begins. */
const STRIPS_HEIGHT = 2 * (STRIP_GAP + STRIP_HEIGHT);

/** All charts of the page share the crosshair, but not the selection of a range. */
export const SYNC = {
  key: "steps",
  scales: ["x", null],
  filters: { pub: (type) => type === "mousemove" || type === "mouseleave" },
};

/** Loads uPlot; null if it is missing in this installation. */
export async function loadChartLibrary() {
  try {
    const { default: uPlot } = await import("../vendor/uPlot.esm.js");
    return uPlot;
  } catch {
    return null;
  }
}

/** The colours of the page's theme. */
export function readColours() {
  const style = getComputedStyle(document.documentElement);
  const value = (name) => style.getPropertyValue(name).trim();
  const kinds = Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, value(`--kind-${kind.replaceAll("_", "-")}`)]));
  return {
    kind: (name) => kinds[name] ?? kinds.skipped_other,
    line: value("--norm-line"),
    band: value("--norm-band"),
    overlay: value("--overlay-line"),
    ink: value("--ink"),
    grid: value("--line"),
    muted: value("--muted"),
    strip: value("--sunken"),
    surface: value("--surface"),
  };
}

/**
 * Creates the chart in the element `host`.
 *
 * @param {any} uPlot
 * @param {HTMLElement} host
 * @param {object} callbacks
 * @param {(range: [number, number]) => void} callbacks.onRange called when the pointer selects a range
 * @param {() => void} callbacks.onFollow called at a double click
 * @param {(index: number | null) => void} callbacks.onHover called with the record or bucket under the crosshair, or null
 */
export function createChart(uPlot, host, { onRange, onFollow, onHover }) {
  let colours = readColours();
  /** Null before the first update, which is before the first drawing. */
  let shown = /** @type {Shown | null} */ (null);
  let byTime = false;
  let range = /** @type {[number, number]} */ ([0, 1]);
  let scale = /** @type {ReturnType<typeof scaleOf>} */ ({ min: -1, max: 0, limit: null });
  let narrow = host.clientWidth < NARROW;
  let drawnKey = "";
  /** While the pointer is down the plot does not move, so that a zoom selects what is visible. */
  let pointerDown = false;

  const size = () => ({ width: Math.max(240, host.clientWidth), height: narrow ? 260 : 320 });

  /** The range of the y axis: that of the norms, with room for the marks below, and for labels, which would cover the line. */
  function rangeY() {
    const [below, above] = [scale.limit === "below" ? 2.7 * MARK : 1.7 * MARK, scale.limit === "above" ? 2 * MARK : MARK];
    const pixel = (scale.max - scale.min) / (size().height - 80 - below - above);
    return [scale.min - below * pixel, scale.max + above * pixel];
  }

  function build() {
    const axis = { stroke: () => colours.muted, font: "11px system-ui, sans-serif" };
    return new uPlot(
      {
        ...size(),
        padding: [8, 24, 0, 0],
        legend: { show: false },
        scales: { x: { time: byTime, range: () => range }, y: { range: rangeY } },
        axes: [
          {
            ...axis,
            gap: STRIPS_HEIGHT + 4,
            size: STRIPS_HEIGHT + (byTime ? 38 : 24),
            space: byTime ? 80 : 70,
            grid: { show: false },
            ticks: { show: false, size: 0 },
            ...(byTime ? {} : { incrs: STEP_INCREMENTS }),
            values: (_, splits, __, ___, increment) => {
              if (!shown?.records.length) return [];
              return byTime ? dayAndTime(splits, increment) : splits.map(integer);
            },
          },
          {
            ...axis,
            size: narrow ? 42 : 56,
            grid: { stroke: () => colours.grid, width: 1 },
            ticks: { show: false, size: 4 },
            splits: (_, __, min, max) => logSplits(min, max),
            filter: (_, splits) => splits,
            values: (_, splits) => splits.map((value) => formatNorm(Number((10 ** value).toPrecision(6)))),
          },
        ],
        series: [
          {},
          {
            stroke: () => colours.line,
            width: 1.5,
            // The line has gaps only where no step was taken for a long time. It crosses bad steps, so that a good step
            // between two bad ones stays visible.
            gaps: (plot) => gaps().map((gap) => gap.map((x) => plot.valToPos(x, "x", true))),
            // A step between two gaps is always a point, as no line leads to it.
            points: { size: 4, fill: () => colours.line, filter: (_, __, all) => (all ? null : isolated()) },
          },
        ],
        cursor: {
          y: false,
          drag: { x: true, y: false, setScale: false },
          sync: SYNC,
          points: { size: 7, fill: () => colours.line, stroke: () => colours.line },
          bind: { dblclick: () => () => onFollow() },
        },
        hooks: {
          drawAxes: [(plot) => shown && drawUnder(plot, shown)],
          draw: [(plot) => shown && drawOver(plot, shown)],
          setCursor: [(plot) => onHover(plot.cursor.idx ?? null)],
          setSelect: [
            (plot) => {
              const { left, width } = plot.select;
              if (width > 4) onRange([plot.posToVal(left, "x"), plot.posToVal(left + width, "x")]);
              plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
            },
          ],
        },
      },
      [[], []],
      host,
    );
  }

  /** Draws what is under the line. */
  function drawUnder(plot, { records, buckets }) {
    drawGaps(plot, gaps(), colours);
    drawGuides(plot, records.badWithin(...range), records, colours);
    if (buckets) drawBand(plot, buckets, bucketsWithin(buckets, range), colours);
  }

  /** Draws what is over the line. */
  function drawOver(plot, { records, buckets, limit, everyK, happened, overlay }) {
    const bad = records.badWithin(...range);
    const beyond = normsBeyond();
    if (overlay) drawOverlay(plot, overlay, colours);
    drawHappened(plot, happened, colours);
    drawLimit(plot, limit, scale.limit, colours);
    drawBeyond(plot, beyond.above, "above", colours);
    drawBeyond(plot, beyond.below, "below", colours);
    drawMarks(plot, bad, records, colours);
    drawStrips(plot, { records, buckets, everyK }, colours, !narrow);
    // Tests cannot see a canvas: they read here what was drawn.
    const [first, end] = buckets ? bucketsWithin(buckets, range) : [0, 0];
    Object.assign(host.dataset, {
      marks: bad.length,
      marked: bad.slice(-500).map((i) => records.step[i]).join(" "),
      range: range.join(" "),
      gaps: gaps().length,
      buckets: end - first,
      limit: scale.limit ?? "none",
      scale: [scale.min, scale.max].map((at) => Number((10 ** at).toPrecision(3))).join(" "),
      beyond: beyond.above.length + beyond.below.length,
      happened: happened.map(({ text }) => text).join("; "),
      overlay: overlay?.x.length ?? 0,
    });
  }

  /** The positions, the smallest and the largest norms of what is in view. */
  function inView() {
    if (!shown) return { x: [], low: [], high: [] };
    const { records, buckets } = shown;
    const [first, end] = buckets ? bucketsWithin(buckets, range) : records.within(...range);
    const part = (column) => column.slice(first, end);
    if (buckets) return { x: part(buckets.x), low: part(buckets.low), high: part(buckets.high) };
    return { x: part(records.x), low: part(records.norm), high: part(records.norm) };
  }

  /** The norms in view that are outside of the y axis. */
  function normsBeyond() {
    const { x, low, high } = inView();
    const [min, max] = rangeY().map((at) => 10 ** at);
    const norms = (column, isBeyond) => x.map((at, i) => ({ x: at, value: column[i] })).filter(({ value }) => value > 0 && isBeyond(value));
    return { above: norms(high, (value) => value > max), below: norms(low, (value) => value < min) };
  }

  /** The gaps in view that are wide enough to be drawn, each from its beginning to its end. */
  function gaps() {
    if (!shown || !byTime) return [];
    const { records, buckets } = shown;
    const found = buckets
      ? gapsOfBuckets(buckets, bucketsWithin(buckets, range))
      : gapsWithin(records, ...range).map((i) => [records.x[i], records.x[i + 1]]);
    const width = ((range[1] - range[0]) * MIN_GAP_WIDTH) / Math.max(1, host.clientWidth);
    return found.filter(([from, to]) => to - from > width);
  }

  /** Indices of the records that have a gap on both sides. */
  function isolated() {
    if (!shown || shown.buckets) return [];
    const { records } = shown;
    const beforeGap = new Set(gaps().map(([from]) => records.within(from, from)[1] - 1));
    return [...beforeGap].filter((i) => beforeGap.has(i - 1));
  }

  function rebuild() {
    plot.destroy();
    plot = build();
    drawnKey = "";
  }

  let plot = build();
  host.addEventListener("pointerdown", () => {
    pointerDown = true;
  });
  for (const event of ["pointerup", "pointercancel"]) {
    window.addEventListener(event, () => {
      pointerDown = false;
    });
  }
  new ResizeObserver(() => {
    const wasNarrow = narrow;
    narrow = host.clientWidth < NARROW;
    if (narrow !== wasNarrow) {
      rebuild();
      draw();
    } else plot.setSize(size());
  }).observe(host);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    colours = readColours();
    plot.redraw(false);
  });

  function draw() {
    if (!shown) return;
    const { records, buckets, limit } = shown;
    const { low, high } = inView();
    const logs = (column) => column.map(logNorm).filter((value) => value !== null);
    scale = scaleOf(logs(low), logs(high), logNorm(limit));
    const norms = buckets ? buckets.middle : records.norm;
    plot.batch(() => {
      plot.setData([buckets ? buckets.x : records.x, norms.map(logNorm)], false);
      plot.setScale("x", { min: range[0], max: range[1] });
    });
  }

  return {
    /** Draws the chart, if anything changed. */
    update(/** @type {Shown} */ next) {
      const { key: of, visible, limit, everyK, happened, overlay } = next;
      const key = JSON.stringify([of, visible, limit, everyK, happened, overlay?.key, next.buckets !== null]);
      if (key === drawnKey || pointerDown) return;
      shown = next;
      if (next.records.byTime !== byTime) {
        byTime = next.records.byTime;
        rebuild();
      }
      drawnKey = key;
      range = padded(...(visible ?? [0, 1]), byTime);
      draw();
    },
    /** Moves the crosshair to a position on the axis. */
    point(x) {
      plot.setCursor({ left: plot.valToPos(x, "x"), top: 10 });
    },
  };
}

/**
 * Adds half a step on either side, so that the first and last bars are whole. The width is never zero.
 * @returns {[number, number]}
 */
export function padded(min, max, byTime) {
  if (max <= min) return [min - 1, max + 1];
  const space = (max - min) * 0.01;
  return byTime ? [min - space / 2, max + space] : [min - 0.5, max + Math.max(0.5, space)];
}
