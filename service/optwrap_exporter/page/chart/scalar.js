/** Draws one scalar over steps or time with uPlot, under the gradient norm: a line, and a cross for each non-finite value. */

import { norm as formatNumber } from "../format.js";
import { NARROW, padded, readColours, SYNC } from "./chart.js";
import { draw, MARK } from "./marks.js";

/** @import { Steps } from "../steps.js" */

const HEIGHT = 110;

/**
 * Creates the chart of the scalar `name` in the element `host`. Its x axis has the place of that of the norm's chart.
 *
 * @param {any} uPlot
 * @param {HTMLElement} host
 * @param {string} name
 * @param {object} callbacks
 * @param {(range: [number, number]) => void} callbacks.onRange called when the pointer selects a range
 * @param {() => void} callbacks.onFollow called at a double click
 * @param {(found: {step: number, value: number} | null) => void} callbacks.onHover called with what is under the crosshair
 */
export function createScalarChart(uPlot, host, name, { onRange, onFollow, onHover }) {
  let colours = readColours();
  let byTime = false;
  let range = /** @type {[number, number]} */ ([0, 1]);
  let crossed = /** @type {number[]} */ ([]);
  /** By record its step and its value. */
  let shown = /** @type {{step: number[], values: (number | null)[]}} */ ({ step: [], values: [] });
  let plot = build();
  new ResizeObserver(() => plot.setSize(size())).observe(host);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    colours = readColours();
    plot.redraw(false);
  });

  function size() {
    return { width: Math.max(240, host.clientWidth), height: HEIGHT };
  }

  /** The range of the y axis, with room for the crosses. */
  function rangeY(_, low, high) {
    const [min, max] = low === null || low === undefined ? [0, 1] : [low, high];
    const span = max - min || Math.abs(max) || 1;
    return [min - span * 0.2, max + span * 0.08];
  }

  function drawCrosses(chart) {
    const { ctx, bbox } = chart;
    const pixels = MARK * devicePixelRatio;
    for (const x of crossed) {
      draw(ctx, "cross", chart.valToPos(x, "x", true), bbox.top + bbox.height - pixels * 0.6, pixels, colours.kind("accepted_not_finite"));
    }
    host.dataset.crosses = String(crossed.length);
  }

  function build() {
    const axis = { stroke: () => colours.muted, font: "11px system-ui, sans-serif" };
    return new uPlot(
      {
        ...size(),
        padding: [8, 24, 4, 0],
        legend: { show: false },
        scales: { x: { time: byTime, range: () => range }, y: { range: rangeY } },
        axes: [
          { show: false },
          {
            ...axis,
            size: host.clientWidth < NARROW ? 42 : 56,
            space: 22,
            grid: { stroke: () => colours.grid, width: 1 },
            ticks: { show: false, size: 4 },
            values: (_, splits) => splits.map(formatNumber),
          },
        ],
        series: [{}, { stroke: () => colours.line, width: 1.5, spanGaps: true, points: { show: false } }],
        cursor: {
          y: false,
          drag: { x: true, y: false, setScale: false },
          sync: SYNC,
          points: { size: 6, fill: () => colours.line, stroke: () => colours.line },
          bind: { dblclick: () => () => onFollow() },
        },
        hooks: {
          draw: [drawCrosses],
          setCursor: [
            (chart) => {
              const i = chart.cursor.idx ?? -1;
              const value = shown.values[i] ?? null;
              onHover(value === null ? null : { step: shown.step[i], value });
            },
          ],
          setSelect: [
            (chart) => {
              const { left, width } = chart.select;
              if (width > 4) onRange([chart.posToVal(left, "x"), chart.posToVal(left + width, "x")]);
              chart.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
            },
          ],
        },
      },
      [[], []],
      host,
    );
  }

  return {
    /** Draws the chart. */
    update(/** @type {Steps} */ records, /** @type {[number, number]} */ visible) {
      if (records.byTime !== byTime) {
        byTime = records.byTime;
        plot.destroy();
        plot = build();
      }
      const values = records.scalars.map((scalars) => scalars?.[name] ?? null);
      shown = { step: records.step, values };
      range = padded(...visible, byTime);
      const { x } = records;
      crossed = x.filter((at, i) => values[i] !== null && !Number.isFinite(values[i]) && at >= range[0] && at <= range[1]);
      plot.batch(() => {
        plot.setData([x, values.map((value) => (Number.isFinite(value) ? value : null))], false);
        plot.setScale("x", { min: range[0], max: range[1] });
      });
    },
    destroy() {
      plot.destroy();
    },
  };
}
