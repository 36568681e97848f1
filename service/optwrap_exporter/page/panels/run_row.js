/** One row of the table of runs: health, progress and trouble of a run on one line. */

import { compact, dateTime, durationSince, duration, integer, norm, percent, seconds, visible, wireNumber } from "../format.js";
import { figureInWords, health, healthInWords, lostInWords, streakInWords, tierOfRun } from "../words.js";
import { VALUES } from "../runs.js";
import { ofRun } from "../url.js";
import { el, replaceShape, setAttribute, setText } from "../dom.js";

/**
 * The columns. Those with a value to sort by have a header that sorts. Those that are `wide` are hidden on a narrow screen,
 * those that are `roomy` on a phone.
 */
export const COLUMNS = [
  { key: "health", label: "Health", what: "Sort by health, worst first", className: null },
  { key: "run", label: "Run", what: "Sort by name", className: null },
  { key: "step", label: "Step", what: "Number of the last step, by the optimizer's own count", className: "number roomy" },
  { key: "rate", label: "Steps/s", what: "Steps per second now; none if no step came lately", className: "number wide" },
  { key: "streak", label: "Streak", what: "Steps in a row with non-finite gradients, up to the last step, and the guard's limit", className: "number wide" },
  { key: "skipped", label: "Skipped", what: "Share of the last 1,000 steps that was skipped", className: "number" },
  { key: "loss", label: "Loss", what: "The scalar “loss” of the last step that has it", className: "number wide" },
  { key: "lost", label: "Lost", what: "Steps lost to skips, to steps taken again after a rollback, and to starvation", className: "number wide" },
  { key: "report", label: "Last report", what: "How long ago the exporter last stored a report", className: "number" },
  { key: "norms", label: "Last norms", what: "Gradient norms of the last 60 steps, with a tick for each bad step", className: "wide" },
  { key: "menu", label: "Actions", what: "Acknowledge, archive or delete the run", className: "menu" },
];

export function createRow({ run }, { onSelect, onMenu, thumbnail }) {
  const name = el("bdi", { class: "name", text: visible(run) });
  const link = el("a", { href: ofRun(run) }, name);
  const status = el("span", { class: "status" }, el("span", { class: "icon" }), el("span", { class: "word" }));
  const menu = el("button", { type: "button", class: "dots", text: "⋯", tabindex: -1, "aria-label": `Actions for ${visible(run)}`, "aria-haspopup": "true" });
  const contents = { health: [status], run: [link], norms: [thumbnail], menu: [menu] };
  const cells = COLUMNS.map(({ key, className }) => el("td", { class: className, "data-column": key }, ...(contents[key] ?? [])));
  const row = el("tr", { "data-run": run }, ...cells);
  row.addEventListener("click", (event) => {
    const target = /** @type {HTMLElement} */ (event.target);
    if (event.ctrlKey || event.metaKey || event.shiftKey || target.closest("button")) return;
    event.preventDefault();
    onSelect(run);
  });
  menu.addEventListener("click", () => onMenu(row.row, menu));
  return row;
}

/** By column: its text, and what its tooltip says. */
const TEXTS = {
  step: (row, now) => [compact(row.last_step ?? null), row.last_step_time ? `${durationSince(row.last_step_time, now)} ago` : null],
  rate: ({ steps_per_second: rate }) => [rateInWords(rate), null],
  streak: ({ gauges }) => {
    const { not_finite_streak: streak, guard_not_finite_limit: limit } = gauges;
    const short = streak > limit ? `${integer(streak)} (limit ${integer(limit)})` : streakInWords(streak, streak > 0 ? limit : undefined);
    return [short, streakInWords(streak, limit)];
  },
  skipped: ({ skipped_recently: lately }) => {
    if (!lately?.steps) return ["–", null];
    return [percent(lately.skipped, lately.steps), `${integer(lately.skipped)} of the last ${integer(lately.steps)} steps`];
  },
  loss: ({ scalars }, now) => (scalars?.loss ? [norm(wireNumber(scalars.loss.value)), figureInWords(scalars.loss, now)] : ["–", null]),
  lost: (row) => [compact(VALUES.lost(row)), lostTitle(row)],
  report: (row, now) => [`${durationSince(row.last_report, now)} ago`, dateTime(seconds(row.last_report))],
};

export function rateInWords(rate) {
  if (rate === null || rate === undefined) return "–";
  return rate >= 10 ? compact(Math.round(rate)) : String(Number(rate.toPrecision(2)));
}

function lostTitle({ lost_steps: steps, lost_seconds: time }) {
  const words = [lostInWords(steps), lostInWords(time, duration)].filter(Boolean);
  return words.length ? words.join("; ") : "None";
}

export function updateRow(node, row, { now, until, selected }) {
  node.row = row;
  const tier = tierOfRun(row);
  setAttribute(node, "class", `${tier}${row.run === selected ? " selected" : ""}${row.acknowledged ? " acknowledged" : ""}`);
  setAttribute(node, "data-health", row.health);
  const [status, name] = node.children;
  const [icon, word] = status.firstChild.children;
  replaceShape(icon, tier);
  setText(word, health(row.health).word);
  setAttribute(status, "title", `${healthInWords(row, now, until)}${row.acknowledged ? ", acknowledged" : ""}`);
  setAttribute(name.firstChild, "aria-current", row.run === selected ? "page" : null);
  setAttribute(name.firstChild, "title", row.summary ? visible(row.summary) : null);
  COLUMNS.forEach(({ key }, i) => {
    const texts = TEXTS[key];
    if (!texts) return;
    const [text, title] = texts(row, now);
    setText(node.children[i], text);
    setAttribute(node.children[i], "title", title);
  });
}
