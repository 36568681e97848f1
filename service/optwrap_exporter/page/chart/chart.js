/** Draws the gradient norm over steps or time with uPlot, with the limit, the bad steps and the strips below the plot. */

import { dayAndTime, integer, norm as formatNorm } from "../format.js";
import { logNorm, logSplits, STEP_INCREMENTS } from "./axes.js";
import { gapsWithin } from "./gaps.js";
import { drawGaps, drawGuides, drawLimit, drawMarks, drawStrips, MARK, STRIP_GAP, STRIP_HEIGHT } from "./marks.js";
import { KINDS } from "../words.js";

/** @import { Steps } from "../steps.js" */

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
    const sheet = document.createElement("link");
    sheet.rel = "stylesheet";
    sheet.href = "/page/vendor/uPlot.min.css";
    document.head.prepend(sheet);
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
    grid: value("--line"),
    muted: value("--muted"),
    thinned: value("--thinned"),
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
 * @param {(index: number | null) => void} callbacks.onHover called with the record under the crosshair, or null
 */
export function createChart(uPlot, host, { onRange, onFollow, onHover }) {
  let colours = readColours();
  /** Null before the first update, which is before the first drawing. */
  let records = /** @type {Steps | null} */ (null);
  let byTime = false;
  let range = /** @type {[number, number]} */ ([0, 1]);
  let limit = /** @type {number | null} */ (null);
  let everyK = /** @type {number | null} */ (null);
  let narrow = host.clientWidth < NARROW;
  let drawnKey = "";
  /** While the pointer is down the plot does not move, so that a zoom selects what is visible. */
  let pointerDown = false;

  const size = () => ({ width: Math.max(240, host.clientWidth), height: narrow ? 260 : 320 });

  /** The range of the y axis: at least a decade, with room for the marks, and for the limit if it is within three decades. */
  function rangeY(_, low, high) {
    const min = low ?? -1;
    let max = high ?? 0;
    const limitAt = logNorm(limit);
    if (limitAt !== null && limitAt < max + 3) max = Math.max(max, limitAt);
    const missing = Math.max(0, 1 - (max - min)) / 2;
    const span = Math.max(1, max - min);
    return [min - missing - span * ((2 * MARK) / (size().height - 90)), max + missing + span * 0.08];
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
              if (!records?.length) return [];
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
            gaps: (plot) => {
              const x = records?.x ?? [];
              return gaps().map((i) => [plot.valToPos(x[i], "x", true), plot.valToPos(x[i + 1], "x", true)]);
            },
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
          drawAxes: [
            (plot) => {
              if (!records) return;
              drawGaps(plot, gaps(), records, colours);
              drawGuides(plot, inView(), records, colours);
            },
          ],
          draw: [
            (plot) => {
              if (!records) return;
              const bad = inView();
              drawLimit(plot, logNorm(limit), colours);
              drawMarks(plot, bad, records, colours);
              const thinned = drawStrips(plot, records, everyK, colours, !narrow);
              // Tests cannot see a canvas: they read here what was drawn.
              const { step } = records;
              Object.assign(host.dataset, {
                thinned,
                marks: bad.length,
                marked: bad.slice(-500).map((i) => step[i]).join(" "),
                range: range.join(" "),
                gaps: gaps().length,
              });
            },
          ],
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

  /** Indices of the bad records in view. */
  const inView = () => records?.badWithin(...range) ?? [];

  /** The gaps in view that are wide enough to be drawn, each as the index of the record before it. */
  function gaps() {
    if (!records) return [];
    const { x } = records;
    const width = ((range[1] - range[0]) * MIN_GAP_WIDTH) / Math.max(1, host.clientWidth);
    return gapsWithin(records, ...range).filter((i) => x[i + 1] - x[i] > width);
  }

  /** Indices of the records that have a gap on both sides. */
  function isolated() {
    const beforeGap = new Set(gaps());
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
    if (!records) return;
    const { x, norm } = records;
    plot.batch(() => {
      plot.setData([x, norm.map(logNorm)], false);
      plot.setScale("x", { min: range[0], max: range[1] });
    });
  }

  return {
    /** Draws the chart, if anything changed. `visible` is the range to show; `key` changes whenever the records do. */
    update(/** @type {{key: any, records: Steps, visible: [number, number] | null, limit: number | null, everyK: number | null}} */ next) {
      const key = JSON.stringify([next.key, next.visible, next.limit, next.everyK]);
      if (key === drawnKey || pointerDown) return;
      ({ records, limit, everyK } = next);
      if (records.byTime !== byTime) {
        byTime = records.byTime;
        rebuild();
      }
      drawnKey = key;
      range = padded(...(next.visible ?? [0, 1]), byTime);
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
