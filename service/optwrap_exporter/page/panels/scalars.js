/** The scalars panel: a chart of the loss and of each other number that changes, and the others as text. */

import { integer, norm, visible } from "../format.js";
import { stepsWithin } from "../buckets.js";
import { STEPS_HELD } from "../steps.js";
import { shownRecords, stepsInView, visibleRange } from "../view.js";
import { paths } from "../api.js";
import { el, panelHead, setAttribute, setText } from "../dom.js";
import { createScalarChart } from "../chart/scalar.js";

/** @import { State } from "../model.js" */

export function createScalars(root, uPlot, { onRange, onFollow }) {
  const { head, link } = panelHead("scalars-title", "Scalars", "The loss and other numbers of each step, and injected hyperparameters");
  const constants = el("p", { class: "constants" });
  const part = el("p", { class: "constants" });
  const charts = el("div", { class: "scalars" });
  root.append(head, charts, constants, part);
  /** By name: its elements and its chart. */
  const shown = new Map();
  let drawn = "";

  function create(name) {
    const last = el("span", { class: "value" });
    const host = el("div", { class: "scalar-chart", "data-scalar": name });
    const figure = el("figure", {}, el("figcaption", {}, el("b", { text: visible(name) }), " ", last), host);
    charts.append(figure);
    /** The value under the crosshair, else the last one. */
    const one = { last, figure, value: /** @type {number | null} */ (null), chart: /** @type {any} */ (null) };
    const onHover = (found) => setText(last, found ? `${norm(found.value)} at step ${integer(found.step)}` : norm(one.value));
    one.chart = uPlot && createScalarChart(uPlot, host, name, { onRange, onFollow, onHover });
    return one;
  }

  return (/** @type {{state: State}} */ { state }) => {
    const records = shownRecords(state);
    const range = visibleRange(state);
    const key = JSON.stringify([state.selected, state.version, state.view.axis, range]);
    if (key === drawn) return;
    drawn = key;
    const found = range ? scalarsWithin(records, range) : new Map();
    root.hidden = found.size === 0;
    if (root.hidden) return;
    setAttribute(link, "href", paths.steps(state.selected, { process: state.process, ...stepsInView(state), points: STEPS_HELD }));
    for (const [name, { figure, chart }] of shown) {
      if (found.get(name)?.changes) continue;
      chart?.destroy();
      figure.remove();
      shown.delete(name);
    }
    const unchanged = [];
    for (const [name, { changes, last }] of found) {
      if (!changes) {
        unchanged.push(`${visible(name)} ${norm(last)}`);
        continue;
      }
      if (!shown.has(name)) shown.set(name, create(name));
      const one = shown.get(name);
      one.value = last;
      setText(one.last, norm(last));
      one.chart?.update(records, range);
    }
    setText(part, partInWords(records, range));
    setText(constants, unchanged.length ? `Unchanged in view: ${unchanged.join(" · ")}` : "");
  };
}

/** How many of the steps in view are drawn, if not all are. */
function partInWords(records, range) {
  const [first, end] = records.within(...range);
  const steps = Math.round(stepsWithin(records, range));
  return steps > end - first ? `Drawn from ${integer(end - first)} of ${integer(steps)} steps. Zoom in to see all.` : "";
}

/** Each scalar of the records in a range: its last value, and whether it changes or is ever non-finite. */
function scalarsWithin(records, [from, to]) {
  const [first, end] = records.within(from, to);
  const found = new Map();
  for (let i = first; i < end; i += 1) {
    for (const [name, value] of Object.entries(records.scalars[i] ?? {})) {
      const before = found.get(name);
      const changes = !Number.isFinite(value) || (before !== undefined && (before.changes || before.last !== value));
      found.set(name, { last: value, changes });
    }
  }
  return found;
}
