/** The first glance: how the selected run is, in words, colour and shape, and since when. */

import { clock, dateTime, durationSince, integer, parametersInWords, plural, seconds, visible } from "../format.js";
import { beginning, lastReport } from "../model.js";
import { paths } from "../api.js";
import { health } from "../words.js";
import { grafanaOf } from "../url.js";
import { el, jsonLink, replaceShape, setAttribute, setText } from "../dom.js";

export function createVerdict(root, announcer, { onJump }) {
  const icon = el("span", { class: "icon" });
  const name = el("bdi");
  const word = el("span", { class: "word", id: "verdict-word" });
  const since = el("span", { class: "since" });
  const says = el("p", { class: "says" });
  const blamed = el("bdi");
  const began = el("button", { type: "button", class: "jump", on: { click: () => onJump(Number(began.value)) } });
  const blame = el("p", { class: "blame" }, "First to go bad: ", el("strong", {}, blamed), ", ", began);
  const grafana = el("a", { text: "Grafana", title: "This run's dashboard in Grafana", rel: "noreferrer" });
  const json = jsonLink("how the run is");
  const facts = el("dl", { class: "facts" });
  root.append(
    icon,
    el("div", { class: "words" }, el("h1", {}, name), el("p", { class: "line" }, word, since), says, blame),
    el("div", { class: "side" }, facts, el("p", { class: "links" }, grafana, json)),
  );
  const fact = (label, what) => {
    const value = el("dd");
    const row = el("div", { title: what }, el("dt", { text: label }), value);
    facts.append(row);
    return { row, value };
  };
  const report = fact("Last report", "How long ago the exporter last stored a report of this run");
  const attempt = fact("Attempt", "One launch of the training job; a restart or a resume begins another");
  const processes = fact("Processes", "Training processes that report, of those the job says it has");
  let announced = "";

  function updateHealth(run, { lost, connection, now }) {
    const { tier, word: healthWord, says: sentence } = health(run.health);
    setAttribute(root, "class", `verdict ${lost ? "lost" : tier}`);
    setAttribute(root, "data-health", run.health);
    replaceShape(icon, tier);
    setText(name, visible(run.run));
    setText(word, lost ? `Last known: ${healthWord}` : healthWord);
    // Without reports nobody knows whether it lasts.
    setText(since, `for ${durationSince(run.since, lost ? connection.since : now)}, since ${clock(seconds(run.since), now)}`);
    setAttribute(since, "title", dateTime(seconds(run.since)));
    setText(says, lost ? "How the run is now is not known." : sentence(run));

    // Said aloud when it changes, not when a clock ticks.
    const news = `${run.run}: ${lost ? "disconnected from the exporter" : healthWord}`;
    if (news !== announced) setText(announcer, news);
    announced = news;
  }

  function updateBlame(state) {
    const first = beginning(state);
    const names = first && parametersInWords(first.detail.parameters ?? [], first.detail.parameter_count);
    blame.hidden = !names;
    if (!names) return;
    setText(blamed, names);
    setText(began, `step ${integer(first.step)}`);
    setAttribute(began, "value", first.step);
    setAttribute(began, "title", `Show step ${integer(first.step)} in the chart`);
  }

  function updateFacts(run, state, now) {
    const last = lastReport(state);
    setText(report.value, last === null ? "none yet" : `${durationSince(last, now)} ago`);
    const attempts = run.attempts ?? [];
    const current = attempts.at(-1);
    setText(attempt.value, current ? `${integer(attempts.length)}, since ${clock(seconds(current.since), now)}` : "–");
    setAttribute(attempt.row, "title", current ? `${plural(attempts.length, "attempt")} so far; this one is ${visible(current.attempt)}` : null);
    const row = state.runs?.find((other) => other.run === run.run);
    const reporting = run.processes?.length ?? 0;
    const all = row?.process_count;
    setText(processes.value, all && all !== reporting ? `${integer(reporting)} of ${integer(all)}` : integer(reporting));
  }

  return ({ state, now }) => {
    const run = state.detail;
    if (!run) return;
    const dashboard = grafanaOf(run.run);
    setAttribute(grafana, "href", dashboard);
    grafana.hidden = dashboard === null;
    setAttribute(json, "href", paths.run(run.run));
    updateHealth(run, { lost: state.connection.phase === "lost", connection: state.connection, now });
    updateBlame(state);
    updateFacts(run, state, now);
  };
}
