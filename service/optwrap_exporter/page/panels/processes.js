/** The processes panel: a table of the run's processes, worst first, with what is wrong with each. */

import { compact, durationSince, integer, norm, seconds, visible, wireNumber } from "../format.js";
import { knowledge, reporting } from "../model.js";
import { compareHealth, figureInWords, health, healthInWords, streakInWords, tierOfRun } from "../words.js";
import { paths } from "../api.js";
import { hostOnly } from "../url.js";
import { el, keyed, panelHead, replaceShape, setAttribute, setText } from "../dom.js";

/** Maximum number of rows. */
const ROWS = 100;
const COLUMNS = [
  ["Process", "jax.process_index() of the training process", "number"],
  ["Health", "The run has the health of its worst process", null],
  ["Host", "The host of the process", null],
  ["What is wrong", "The verdict on this process", "wide verdict"],
  ["Last report", "How long ago the exporter last stored one of its reports", "number"],
  ["Steps", "Calls of the optimizer's update. In data-parallel training every process counts the same steps", "number"],
  ["Streak", "Consecutive steps with non-finite gradients, up to the last step", "number"],
  ["Norm", "Gradient norm of its last step, and which step that is", "number"],
];

export function createProcesses(root) {
  const { head, aside, link } = panelHead("processes-title", "Processes", "The training processes that report to this exporter");
  const body = el("tbody");
  const header = COLUMNS.map(([label, what, className]) => el("th", { scope: "col", text: label, title: what, class: className }));
  const table = el("table", { "aria-labelledby": "processes-title" }, el("thead", {}, el("tr", {}, ...header)), body);
  root.append(head, el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of processes" }, table));

  function create({ process }) {
    const number = (...children) => el("td", { class: "number" }, ...children);
    const healthCell = el("td", {}, el("span", { class: "status" }, el("span", { class: "icon" }), el("span")));
    const host = el("td", { class: "host" }, el("bdi"));
    const verdict = el("td", { class: "wide verdict" }, el("bdi"));
    const lastNorm = number(el("span"), " ", el("span", { class: "of" }));
    return el("tr", { "data-process": process }, number(String(process)), healthCell, host, verdict, number(), number(), number(), lastNorm);
  }

  return ({ state, now }) => {
    const run = state.detail;
    if (!run) return;
    const { until } = knowledge(state);
    setAttribute(link, "href", paths.run(run.run));
    const all = run.processes;
    const rows = [...all].sort((a, b) => compareHealth(a.health, b.health) || a.process - b.process).slice(0, ROWS);
    const partial = hostOnly() && run.process_count > reporting(run) ? `${integer(reporting(run))} of ${integer(run.process_count)} processes report here` : "";
    setText(aside, [all.length > ROWS ? `worst ${ROWS} of ${integer(all.length)}` : "", partial].filter(Boolean).join(" · "));
    keyed(body, rows, ({ process }) => process, create, (row, item) => {
      const [, status, host, verdict, last, steps, streak, lastNorm] = row.children;
      const tier = tierOfRun(item);
      setAttribute(status.firstChild, "class", `status ${tier}`);
      setAttribute(status, "title", healthInWords(item, now, until));
      replaceShape(status.firstChild.firstChild, tier);
      setText(status.firstChild.lastChild, health(item.health).word);
      setText(host.firstChild, visible(item.host));
      setText(verdict.firstChild, item.summary === null ? "" : visible(item.summary));
      setText(last, `${durationSince(item.last_report, now)} ago`);
      setText(steps, compact(item.totals.steps));
      const { not_finite_streak: length, guard_not_finite_limit: limit } = item.gauges;
      setText(streak, integer(length));
      setAttribute(streak, "title", streakInWords(length, limit));
      setText(lastNorm.firstChild, norm(wireNumber(item.norm?.value)));
      setText(lastNorm.lastChild, (item.norm?.step ?? null) === null ? "" : `at ${compact(item.norm.step)}`);
      setAttribute(lastNorm, "title", item.norm === null || seconds(item.norm.time) === null ? null : figureInWords(item.norm, now));
    });
  };
}
