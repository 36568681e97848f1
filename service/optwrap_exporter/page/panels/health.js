/** The verdict on the selected run: its health and since when, one sentence with cause, who and what to do, and the buttons. */

import { capital, clock, dateTime, durationSince, integer, parametersInWords, plural, seconds, visible } from "../format.js";
import { knowledge, lastReport, reporting, streakStart } from "../model.js";
import { paths } from "../api.js";
import { health, healthAge, tierOfRun, unseenInWords } from "../words.js";
import { grafanaOf, hostOnly, runbookOf } from "../url.js";
import { el, jsonLink, replaceShape, setAttribute, setText } from "../dom.js";
import { openIncidents } from "./actions.js";

export function createHealth(root, announcer, { onStep, onAcknowledge, onMenu }) {
  const icon = el("span", { class: "icon" });
  const name = el("bdi");
  const badge = el("span", { class: "chip idle", hidden: true });
  const word = el("span", { class: "word", id: "health-word" });
  const since = el("span", { class: "since" });
  const sentence = el("p", { class: "sentence" });
  const parameters = el("bdi");
  const step = el("button", { type: "button", class: "jump", on: { click: () => onStep(Number(step.value)) } });
  const firstBad = el("p", { class: "first-bad" }, "First non-finite: ", el("strong", {}, parameters), ", at ", step);
  const acknowledge = el("button", {
    type: "button",
    title: "You have seen them: the run's open incidents no longer count as trouble, here and in alerts",
    on: { click: () => onAcknowledge(shown.run) },
  });
  const menu = el("button", { type: "button", class: "dots", text: "⋯", "aria-label": "Actions for this run", "aria-haspopup": "true" });
  menu.addEventListener("click", () => onMenu(shown, menu));
  const runbook = el("a", { text: "What to do", title: "The runbook of this trouble" });
  const grafana = el("a", { text: "Grafana", title: "This run's dashboard in Grafana", rel: "noreferrer" });
  const json = jsonLink("this run");
  const facts = el("dl", { class: "facts" });
  root.append(
    icon,
    el("div", {}, el("h1", {}, name, badge), el("p", { class: "line" }, word, since), sentence, firstBad),
    el("div", { class: "side" }, facts, el("p", { class: "links" }, runbook, grafana, json, acknowledge, menu)),
  );
  const fact = (label, tooltip) => {
    const value = el("dd");
    const row = el("div", { title: tooltip }, el("dt", { text: label }), value);
    facts.append(row);
    return { row, value };
  };
  const report = fact("Last report", "How long ago the exporter last stored a report of this run");
  const attempt = fact("Attempt", "An attempt is one launch of the training job. A restart begins another");
  const processes = fact("Processes", "How many training processes report, of those that the job has");
  let announced = "";
  let shown = /** @type {any} */ (null);

  function showHealth(run, state, now) {
    const { word: healthWord, past } = health(run.health);
    const { known, until } = knowledge(state);
    const tier = tierOfRun(run);
    setAttribute(root, "class", `health ${known ? tier : "lost"}`);
    setAttribute(root, "data-health", run.health);
    replaceShape(icon, known ? tier : "idle");
    setText(word, `${known ? healthWord : `Last known: ${healthWord}`}${ofProcesses(run)}`);
    setText(since, `${healthAge(run, now, until)}, ${past ? "at" : "since"} ${clock(seconds(run.since), now)}`);
    setAttribute(since, "title", dateTime(seconds(run.since)));
    const lines = [visible(run.summary ?? ""), unseenInWords(run)].filter(Boolean);
    setText(sentence, known ? lines.map(sentenceOf).join(" ") : "The current state of the run is unknown.");
    announce(`${run.run}: ${known ? healthWord : "its current state is unknown"}`);
  }

  /** Screen readers read this when the health changes, but not when an age grows. */
  function announce(news) {
    if (news === announced) return;
    announced = news;
    setText(announcer, news);
  }

  function showFirstBad(streak) {
    const names = streak && parametersInWords(streak.detail.parameters ?? [], streak.detail.parameter_count);
    firstBad.hidden = !names;
    if (!names) return;
    setText(parameters, names);
    setText(step, `step ${integer(streak.step)}`);
    setAttribute(step, "value", streak.step);
    setAttribute(step, "title", `Show step ${integer(streak.step)} in the chart`);
  }

  function showFacts(run, last, now) {
    setText(report.value, last === null ? "none yet" : `${durationSince(last, now)} ago`);
    setAttribute(report.row, "title", last === null ? null : `The exporter last stored a report of this run at ${dateTime(last)}`);
    const current = run.attempts.at(-1);
    setText(attempt.value, current ? `${integer(run.attempts_total)}, since ${clock(seconds(current.since), now)}` : "–");
    setAttribute(attempt.row, "title", `${plural(run.attempts_total, "attempt")} so far, each one launch of the training job`);
    setText(processes.value, processesInWords(run));
  }

  return ({ state, now }) => {
    const run = state.detail;
    if (!run) return;
    shown = run;
    setText(name, visible(run.run));
    badge.hidden = !run.acknowledged && !run.archived;
    setText(badge, run.acknowledged ? "Acknowledged" : "Archived");
    const dashboard = grafanaOf(run.run);
    setAttribute(grafana, "href", dashboard);
    grafana.hidden = dashboard === null;
    const book = runbookOf(run.runbook);
    setAttribute(runbook, "href", book);
    runbook.hidden = book === null;
    // A single incident has its own button in the list.
    const open = openIncidents(run);
    // The focus must not fall out of the page with the button that has it.
    if (open < 2 && document.activeElement === acknowledge) menu.focus();
    acknowledge.hidden = open < 2;
    setText(acknowledge, `Acknowledge all ${integer(open)}`);
    setAttribute(json, "href", paths.run(run.run));
    showHealth(run, state, now);
    showFirstBad(streakStart(state));
    showFacts(run, lastReport(state), now);
  };
}

/** A phrase as a sentence: with a capital letter and a full stop. */
function sentenceOf(text) {
  return capital(text) + (/[.!?]$/.test(text) ? "" : ".");
}

/** How many processes went silent: they reported once, and no longer do. */
const silentOf = ({ processes }) => processes.filter(({ health: name }) => name === "stale").length;

/** ": 1 of 8 processes" after "No reports" if the others still report; else empty. */
function ofProcesses(run) {
  const [silent, all] = [silentOf(run), reporting(run)];
  return run.health === "stale" && silent > 0 && silent < all ? `: ${integer(silent)} of ${integer(all)} processes` : "";
}

/** "1", "8 of 64 here" with --scope host, "62 of 64" that report: those that went silent do not count. */
function processesInWords(run) {
  const count = reporting(run) - silentOf(run);
  const all = Math.max(run.process_count ?? 0, reporting(run));
  if (all === count) return integer(count);
  return `${integer(count)} of ${integer(all)}${hostOnly() ? " here" : ""}`;
}
