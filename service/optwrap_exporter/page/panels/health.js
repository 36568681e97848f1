/** The health panel: the state of the selected run in words, colour and shape, and since when. */

import { clock, dateTime, durationSince, integer, parametersInWords, plural, seconds, visible } from "../format.js";
import { lastReport, streakStart } from "../model.js";
import { paths } from "../api.js";
import { health, healthAge, healthBegan, tierOfRun, unseenInWords } from "../words.js";
import { grafanaOf } from "../url.js";
import { el, jsonLink, replaceShape, setAttribute, setText } from "../dom.js";

export function createHealth(root, announcer, { onStep }) {
  const icon = el("span", { class: "icon" });
  const name = el("bdi");
  const word = el("span", { class: "word", id: "health-word" });
  const since = el("span", { class: "since" });
  const sentence = el("p");
  const parameters = el("bdi");
  const step = el("button", { type: "button", class: "jump", on: { click: () => onStep(Number(step.value)) } });
  const firstBad = el("p", { class: "first-bad" }, "First non-finite: ", el("strong", {}, parameters), ", at ", step);
  const grafana = el("a", { text: "Grafana", title: "This run's dashboard in Grafana", rel: "noreferrer" });
  const json = jsonLink("this run");
  const facts = el("dl", { class: "facts" });
  root.append(
    icon,
    el("div", {}, el("h1", {}, name), el("p", { class: "line" }, word, since), sentence, firstBad),
    el("div", { class: "side" }, facts, el("p", { class: "links" }, grafana, json)),
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

  function showHealth(run, { lost, at, now }) {
    const { word: healthWord, sentence: explain, past } = health(run.health);
    const tier = tierOfRun(run);
    const began = healthBegan(run);
    setAttribute(root, "class", `health ${lost ? "lost" : tier}`);
    setAttribute(root, "data-health", run.health);
    replaceShape(icon, tier);
    setText(word, lost ? `Last known: ${healthWord}` : healthWord);
    setText(since, `${healthAge(run, past ? now : at)}, ${past ? "at" : "since"} ${clock(began, now)}`);
    setAttribute(since, "title", dateTime(began));
    setText(sentence, lost ? "The current state of the run is unknown." : `${explain(run)} ${unseenInWords(run)}`.trim());
    announce(`${run.run}: ${lost ? "disconnected from the exporter" : healthWord}`);
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

  function showFacts(run, expected, last, now) {
    setText(report.value, last === null ? "none yet" : `${durationSince(last, now)} ago`);
    const attempts = run.attempts ?? [];
    const current = attempts.at(-1);
    setText(attempt.value, current ? `${integer(attempts.length)}, since ${clock(seconds(current.since), now)}` : "–");
    setAttribute(attempt.row, "title", current ? `${plural(attempts.length, "attempt")} so far. The current one is ${visible(current.attempt)}` : null);
    const reporting = (run.processes?.length ?? 0) + (run.left_out?.processes ?? 0);
    setText(processes.value, expected && expected !== reporting ? `${integer(reporting)} of ${integer(expected)}` : integer(reporting));
  }

  return ({ state, now }) => {
    const run = state.detail;
    if (!run) return;
    setText(name, visible(run.run));
    const dashboard = grafanaOf(run.run);
    setAttribute(grafana, "href", dashboard);
    grafana.hidden = dashboard === null;
    setAttribute(json, "href", paths.run(run.run));
    const lost = state.connection.phase === "lost";
    // Without a connection it is unknown whether the health still holds.
    showHealth(run, { lost, at: lost ? state.connection.since : now, now });
    showFirstBad(streakStart(state));
    const expected = state.runs?.find((other) => other.run === run.run)?.process_count;
    showFacts(run, expected, lastReport(state), now);
  };
}
