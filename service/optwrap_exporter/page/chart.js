/** Gradient norm over steps or time, with uPlot: a logarithmic line, the limit, bad steps on the axis, the strips below. */

import { dayAndTime, integer, norm as formatNorm } from "./format.js";
import { gapsWithin } from "./gaps.js";
import { drawGaps, drawGuides, drawLimit, drawMarks, drawStrips, MARK, STRIP_GAP, STRIP_HEIGHT } from "./marks.js";
import { KINDS } from "./words.js";

/** @import { Steps } from "./steps.js" */

const NARROW = 560;
/** A gap in time narrower than this (CSS pixels) is not drawn: the line goes on over it. */
const GAP = 8;
/** Two strips, so that the axis stands still when a window becomes known. */
const UNDER = 2 * (STRIP_GAP + STRIP_HEIGHT);

/** uPlot, or null where it was not packed into this installation: the page then does without charts, and says so. */
export async function loadChartLibrary() {
  try {
    const { default: uPlot } = await import("./vendor/uPlot.esm.js");
    const sheet = document.createElement("link");
    sheet.rel = "stylesheet";
    sheet.href = "/page/vendor/uPlot.min.css";
    document.head.prepend(sheet);
    return uPlot;
  } catch {
    return null;
  }
}

function readColours() {
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

/** Between the numbers on the axis of steps, whole ones; of time uPlot knows the minutes, hours and days. */
const WHOLE = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 5e6, 1e7, 1e8];

/**
 * The norm's axis is linear in the norm's logarithm: uPlot's own logarithmic scale ends where numbers need more than 17
 * digits, and a float32 norm goes on to 3e38. A norm of zero has no place on it.
 */
const log = (value) => (value > 0 ? Math.log10(value) : null);

/** Logarithms of powers of ten, a few of many in view, and of 2 and 5 times them where fewer than three are. */
function logSplits(min, max) {
  const few = max - min < 3;
  const stride = Math.max(1, Math.ceil((max - min) / 10));
  const splits = [];
  for (let power = Math.floor(min / stride) * stride; power <= max; power += stride) {
    for (const step of few ? [1, 2, 5] : [1]) {
      const value = power + Math.log10(step);
      if (value >= min && value <= max) splits.push(value);
    }
  }
  return splits;
}

/**
 * Args: `host` is the element to draw in; `onRange([min, max])` follows a zoom by the pointer, `onFollow()` a double click,
 * `onHover(index)` the crosshair, with null when it leaves.
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
  let drawn = "";
  /** While a button is down the plot stands still, or a zoom would select what has moved on. */
  let held = false;

  const size = () => ({ width: Math.max(240, host.clientWidth), height: narrow ? 260 : 320 });

  /** Room for the limit if it is not decades away, and for the marks under the line; a decade at least. */
  function rangeY(_, low, high) {
    const min = low ?? -1;
    let max = high ?? 0;
    const limitAt = limit === null ? null : log(limit);
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
            gap: UNDER + 4,
            size: UNDER + (byTime ? 38 : 24),
            space: byTime ? 80 : 70,
            grid: { show: false },
            ticks: { show: false, size: 0 },
            ...(byTime ? {} : { incrs: WHOLE }),
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
            // A bad step is a mark on the axis, not a gap: one good step between two bad ones stays in sight. Where no step
            // was taken for long there is one.
            gaps: (plot) => {
              const x = records?.x ?? [];
              return gaps().map((i) => [plot.valToPos(x[i], "x", true), plot.valToPos(x[i + 1], "x", true)]);
            },
            // Where the points are too dense to be drawn, a step between two gaps is one all the same.
            points: { size: 4, fill: () => colours.line, filter: (_, __, all) => (all ? null : alone()) },
          },
        ],
        cursor: {
          y: false,
          drag: { x: true, y: false, setScale: false },
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
              drawLimit(plot, limit === null ? null : log(limit), colours);
              drawMarks(plot, bad, records, colours);
              const thinned = drawStrips(plot, records, everyK, colours, !narrow);
              // What was painted, for those who cannot see a canvas: assistive programs and tests.
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

  /** Gaps that are wide enough to be seen. */
  function gaps() {
    if (!records) return [];
    const { x } = records;
    const wide = ((range[1] - range[0]) * GAP) / Math.max(1, host.clientWidth);
    return gapsWithin(records, ...range).filter((i) => x[i + 1] - x[i] > wide);
  }

  function alone() {
    const before = new Set(gaps());
    return [...before].filter((i) => before.has(i - 1));
  }

  function rebuild() {
    plot.destroy();
    plot = build();
    drawn = "";
  }

  let plot = build();
  host.addEventListener("pointerdown", () => {
    held = true;
  });
  for (const event of ["pointerup", "pointercancel"]) {
    window.addEventListener(event, () => {
      held = false;
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
      plot.setData([x, norm.map(log)], false);
      plot.setScale("x", { min: range[0], max: range[1] });
    });
  }

  return {
    /** Draws what changed: `visible` is the part of the records' axis to show, `key` says whether anything did. */
    update(/** @type {{key: any, records: Steps, visible: [number, number] | null, limit: number | null, everyK: number | null}} */ next) {
      const key = JSON.stringify([next.key, next.visible, next.limit, next.everyK]);
      if (key === drawn || held) return;
      ({ records, limit, everyK } = next);
      if (records.byTime !== byTime) {
        byTime = records.byTime;
        rebuild();
      }
      drawn = key;
      range = padded(...(next.visible ?? [0, 1]));
      draw();
    },
    /** Puts the crosshair on a place of the axis. */
    point(x) {
      plot.setCursor({ left: plot.valToPos(x, "x"), top: 10 });
    },
  };

  /**
   * The range with half a step on either side, so that the first and the last bar are whole. Its width is never zero.
   * @returns {[number, number]}
   */
  function padded(min, max) {
    if (max <= min) return [min - 1, max + 1];
    const space = (max - min) * 0.01;
    return byTime ? [min - space / 2, max + space] : [min - 0.5, max + Math.max(0.5, space)];
  }
}
