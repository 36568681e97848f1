/** The first glance: how the selected run is, in words, colour and shape, and since when. */

import { clock, dateTime, duration, integer, plural, seconds, visible } from "../format.js";
import { lastReport } from "../model.js";
import { health } from "../words.js";
import { grafanaOf } from "../url.js";
import { el, replaceShape, setAttribute, setText } from "../dom.js";

export function createVerdict(root, announcer) {
  const icon = el("span", { class: "icon" });
  const name = el("bdi");
  const word = el("span", { class: "word", id: "verdict-word" });
  const since = el("span", { class: "since" });
  const says = el("p", { class: "says" });
  const facts = el("dl", { class: "facts" });
  root.append(
    icon,
    el("div", { class: "words" }, el("h1", {}, name), el("p", { class: "line" }, word, since), says),
    facts,
  );
  const fact = (label, what) => {
    const value = el("dd");
    const row = el("div", { title: what }, el("dt", { text: label }), value);
    facts.append(row);
    return { row, value };
  };
  const report = fact("Last report", "How long ago the exporter last stored a report of this run");
  const attempt = fact("Attempt", "One launch of the training job; a restart or a resume begins another");
  const grafana = el("a", { text: "Grafana", title: "This run's dashboard in Grafana", rel: "noreferrer" });
  const processes = fact("Processes", "Training processes that report, of those the job says it has");
  facts.after(grafana);
  let announced = null;

  return ({ state, now }) => {
    const run = state.detail;
    if (!run) return;
    const lost = state.connection.phase === "lost";
    const { tier, word: healthWord, says: sentence } = health(run.health);
    const began = seconds(run.since);
    setAttribute(root, "class", `verdict ${lost ? "lost" : tier}`);
    setAttribute(root, "data-health", run.health);
    replaceShape(icon, tier);
    setText(name, visible(run.run));
    const dashboard = grafanaOf(run.run);
    setAttribute(grafana, "href", dashboard);
    grafana.hidden = dashboard === null;
    setText(word, lost ? `Last known: ${healthWord}` : healthWord);
    // What nobody hears of lasts no longer.
    setText(since, `for ${duration((lost ? state.connection.since : now) - began)}, since ${clock(began, now)}`);
    setAttribute(since, "title", dateTime(began));
    setText(says, lost ? "How the run is now is not known." : sentence(run));

    const last = lastReport(state);
    setText(report.value, last === null ? "none yet" : `${duration(now - last)} ago`);
    const attempts = run.attempts ?? [];
    const current = attempts.at(-1);
    setText(attempt.value, current ? `${integer(attempts.length)}, since ${clock(seconds(current.since), now)}` : "–");
    setAttribute(attempt.row, "title", current ? `${plural(attempts.length, "attempt")} so far; this one is ${visible(current.attempt)}` : null);
    const row = state.runs?.find((other) => other.run === run.run);
    const reporting = run.processes?.length ?? 0;
    const all = row?.process_count;
    setText(processes.value, all && all !== reporting ? `${integer(reporting)} of ${integer(all)}` : integer(reporting));

    // Said aloud when it changes, not when a clock ticks.
    const news = `${run.run}: ${lost ? "disconnected from the exporter" : healthWord}`;
    if (news !== announced) {
      announced = news;
      setText(announcer, news);
    }
  };
}
