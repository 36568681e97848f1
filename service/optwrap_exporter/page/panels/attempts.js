/** The attempts panel: each launch of the job, newest first, with how it ended. Hidden if there is only one, without a reason. */

import { clock, dateTime, duration, integer, seconds, visible } from "../format.js";
import { STATES } from "../vocabulary.js";
import { paths } from "../api.js";
import { el, keyed, panelHead, setAttribute, setText } from "../dom.js";

const COLUMNS = [
  ["Attempt", "Attempts by their first report, the first launch is 1", "number"],
  ["State", "How it is, or how it ended", null],
  ["Reason", "Why it failed or stopped, as the training reported it", null],
  ["From step", "The step of the optimizer's state at which it started", "number"],
  ["Started", "Its first report", "number"],
  ["Lasted", "From its first to its last report", "number"],
];

const TIERS = { failed: "critical", stopped: "critical", lost: "critical", running: "good" };

export function createAttempts(root) {
  const { head, aside, link } = panelHead("attempts-title", "Attempts", "Each launch of the training job, newest first");
  const body = el("tbody");
  const header = COLUMNS.map(([label, what, className]) => el("th", { scope: "col", text: label, title: what, class: className }));
  const table = el("table", { "aria-labelledby": "attempts-title" }, el("thead", {}, el("tr", {}, ...header)), body);
  root.append(head, el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of attempts" }, table));

  function create({ attempt }) {
    const number = (className = "number") => el("td", { class: className });
    const status = el("td", {}, el("span", { class: "status" }));
    const reason = el("td", { class: "reason" }, el("bdi"));
    return el("tr", { "data-attempt": attempt, title: `Attempt ${visible(attempt)}` }, number(), status, reason, number(), number("number nowrap"), number());
  }

  return ({ state, now }) => {
    const run = state.detail;
    if (!run) return;
    root.hidden = run.attempts_total < 2 && run.attempts.every(({ reason }) => reason === null);
    if (root.hidden) return;
    setAttribute(link, "href", paths.run(run.run));
    const before = run.attempts_total - run.attempts.length;
    setText(aside, before > 0 ? `the first ${integer(before)} are not listed` : "");
    const rows = run.attempts.map((row, i) => ({ ...row, number: before + i + 1 })).reverse();
    keyed(body, rows, ({ attempt }) => attempt, create, (row, item) => {
      const [number, status, reason, start, since, lasted] = row.children;
      setText(number, integer(item.number));
      setAttribute(status.firstChild, "class", `status ${TIERS[item.state] ?? "idle"}`);
      setText(status.firstChild, STATES[item.state]?.word ?? visible(item.state));
      setAttribute(status, "title", STATES[item.state]?.meaning);
      setText(reason.firstChild, item.reason === null ? "" : visible(item.reason));
      setText(start, integer(item.start_step));
      setText(since, clock(seconds(item.since), now));
      setAttribute(since, "title", dateTime(seconds(item.since)));
      setText(lasted, duration((seconds(item.until) ?? 0) - (seconds(item.since) ?? 0)));
    });
  };
}
