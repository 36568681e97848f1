/** The scalars panel: a chart of the loss and of each other number that changes, and the others as text. */

import { norm, visible } from "../format.js";
import { shownRecords, visibleRange } from "../view.js";
import { el, panelHead, setText } from "../dom.js";
import { createScalarChart } from "../chart/scalar.js";

/** @import { State } from "../model.js" */

export function createScalars(root, uPlot, { onRange, onFollow }) {
  const { head } = panelHead("scalars-title", "Scalars", "The loss and other numbers of each step, and injected hyperparameters");
  const constants = el("p", { class: "constants" });
  const charts = el("div", { class: "scalars" });
  root.append(head, charts, constants);
  /** By name: its elements and its chart. */
  const shown = new Map();
  let drawn = "";

  function create(name) {
    const last = el("span", { class: "value" });
    const host = el("div", { class: "scalar-chart", "data-scalar": name });
    const figure = el("figure", {}, el("figcaption", {}, el("b", { text: visible(name) }), " ", last), host);
    charts.append(figure);
    return { last, figure, chart: uPlot && createScalarChart(uPlot, host, name, { onRange, onFollow }) };
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
      setText(one.last, norm(last));
      one.chart?.update(records, range);
    }
    setText(constants, unchanged.length ? `Unchanged in view: ${unchanged.join(" · ")}` : "");
  };
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
