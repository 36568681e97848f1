/** The processes panel: a table of the run's processes, worst first. */

import { compact, durationSince, integer, norm, visible, wireNumber } from "../format.js";
import { compareHealth, health } from "../words.js";
import { paths } from "../api.js";
import { el, keyed, panelHead, replaceShape, setAttribute, setText } from "../dom.js";

/** Maximum number of rows. */
const ROWS = 100;
const COLUMNS = [
  ["Process", "jax.process_index() of the training process", "number"],
  ["Health", "The run has the health of its worst process", null],
  ["Host", "The host of the process", null],
  ["Last report", "How long ago the exporter last stored one of its reports", "number"],
  ["Steps", "Calls of the optimizer's update. In data-parallel training every process counts the same steps", "number"],
  ["Streak", "Consecutive steps with non-finite gradients, up to the last step", "number"],
  ["Norm", "Gradient norm of the last reported step", "number"],
];

export function createProcesses(root) {
  const { head, aside, link } = panelHead("processes-title", "Processes", "The training processes that report to this exporter");
  const body = el("tbody");
  const header = COLUMNS.map(([label, what, className]) => el("th", { scope: "col", text: label, title: what, class: className }));
  const table = el("table", { "aria-labelledby": "processes-title" }, el("thead", {}, el("tr", {}, ...header)), body);
  root.append(head, el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of processes" }, table));

  function create({ process }) {
    const number = (text) => el("td", { class: "number", text });
    const healthCell = el("td", {}, el("span", { class: "status" }, el("span", { class: "icon" }), el("span")));
    const host = el("td", { class: "host" }, el("bdi"));
    return el("tr", { "data-process": process }, number(String(process)), healthCell, host, number(), number(), number(), number());
  }

  return ({ state, now }) => {
    const run = state.detail;
    if (!run) return;
    setAttribute(link, "href", paths.run(run.run));
    const all = run.processes ?? [];
    const rows = [...all].sort((a, b) => compareHealth(a.health, b.health) || a.process - b.process).slice(0, ROWS);
    setText(aside, all.length > ROWS ? `worst ${ROWS} of ${integer(all.length)}` : "");
    keyed(body, rows, ({ process }) => process, create, (row, item) => {
      const [, status, host, last, steps, streak, lastNorm] = row.children;
      const { tier, word, sentence } = health(item.health);
      setAttribute(status.firstChild, "class", `status ${tier}`);
      setAttribute(status, "title", sentence(item));
      replaceShape(status.firstChild.firstChild, tier);
      setText(status.firstChild.lastChild, word);
      setText(host.firstChild, visible(item.host ?? "–"));
      setText(last, item.last_report === null ? "–" : `${durationSince(item.last_report, now)} ago`);
      setText(steps, compact(item.totals?.steps));
      setText(streak, integer(item.gauges?.not_finite_streak));
      setText(lastNorm, norm(wireNumber(item.gauges?.gradient_norm)));
    });
  };
}
