/** The events panel: the events of the run, newest first. A click on a step shows it in the chart. */

import { clock, dateTime, integer, norm, parametersInWords, plural, seconds, visible, wireNumber } from "../format.js";
import { EVENTS } from "../vocabulary.js";
import { fromReplica, KINDS, REASONS } from "../words.js";
import { paths } from "../api.js";
import { el, keyed, panelHead, setAttribute, setText, shape } from "../dom.js";

/** Rows in the document at first, and how many more come with each click. */
const ROWS = 200;
const MORE = 1_000;

/** Shapes and colours of events; an event that is not here is idle. */
const LOOKS = {
  accepted_not_finite: { shape: "bang", class: "kind-accepted_not_finite" },
  streak_started: { shape: "warning", class: "warning" },
  streak_ended: { shape: "good", class: "good" },
  rebased: { shape: "warning", class: "warning" },
  starved: { shape: "critical", class: "critical" },
  stalled: { shape: "critical", class: "critical" },
  stale: { shape: "critical", class: "critical" },
  started: { shape: "good", class: "idle" },
  resumed: { shape: "good", class: "idle" },
  failed: { shape: "critical", class: "critical" },
  stopped: { shape: "critical", class: "critical" },
  conflict: { shape: "critical", class: "critical" },
  diverged: { shape: "critical", class: "critical" },
};

/** The words, shape and colour of an event: those of the reason for a skip, else those of the event's kind. */
function appearance({ kind, detail }) {
  if (kind === "skipped") {
    const reason = REASONS.find(({ key }) => key === detail?.reason) ?? REASONS[2];
    return { word: `Skipped, ${reason.word}`, shape: KINDS[reason.kind].shape, class: `kind-${reason.kind}` };
  }
  const word = EVENTS[kind]?.word ?? visible(kind.replaceAll("_", " "));
  return { word, ...(LOOKS[kind] ?? { shape: "idle", class: "idle" }) };
}

const ending = ({ steps, reason, last_clean_step: clean }) => [
  `after ${plural(steps, "step")}`,
  reason ? visible(reason) : null,
  (clean ?? null) === null ? null : `roll back to step ${integer(clean)}`,
];

/** Turns the detail of an event into phrases, by kind. Phrases that are null are left out. */
const PHRASES = {
  skipped: (detail) => [`norm ${norm(wireNumber(detail.norm))}`, parameterNames(detail), fromReplica(detail)],
  accepted_not_finite: (detail) => [`norm ${norm(wireNumber(detail.norm))}`, parameterNames(detail), fromReplica(detail)],
  streak_started: (detail) => [parameterNames(detail), fromReplica(detail)],
  streak_ended: ({ length, first_step: first, last_step: last }) => [
    `${integer(length)} in a row${length > 1 ? `, steps ${integer(first)} to ${integer(last)}` : ""}`,
  ],
  rebased: ({ limit }) => [limit ? `new norm limit ${valueInWords(limit)}` : null],
  started: ({ host, process_count: count }) => [`on ${visible(host)}`, count > 1 ? `${integer(count)} processes` : null],
  resumed: ({ from, to }) => [from === null ? `from step ${integer(to)}` : `from step ${integer(to)}, after step ${integer(from)}`],
  finished: ending,
  failed: ending,
  stopped: ending,
};

const parameterNames = ({ parameters, norm_shares: shares, parameter_count: count }) => parametersInWords(parameters ?? shares ?? [], count);

function details({ kind, detail }) {
  const words = PHRASES[kind]?.(detail) ?? Object.entries(detail).map(([key, value]) => `${visible(key.replaceAll("_", " "))} ${valueInWords(value)}`);
  return words.filter((part) => part !== null).join(" · ");
}

function valueInWords(value) {
  if (value === null || value === undefined) return "–";
  if (Array.isArray(value)) {
    const rest = value.length > 3 ? ` and ${value.length - 3} more` : "";
    return value.slice(0, 3).map(valueInWords).join(", ") + rest;
  }
  if (typeof value === "object") {
    return Object.entries(value).map(([key, inner]) => `${visible(key)} ${valueInWords(inner)}`).join(", ");
  }
  const number = wireNumber(value);
  if (number === null) return visible(value);
  return Number.isInteger(number) ? integer(number) : norm(number);
}

/** @import { State } from "../model.js" */

export function createEvents(root, { onStep, onOlder }) {
  const { head, link } = panelHead("events-title", "Events", "The events of this run, newest first");
  const list = el("ol", { class: "feed" });
  const none = el("p", { class: "notice", text: "No events yet." });
  const count = el("span");
  const older = el("button", { type: "button", text: "Show older" });
  const more = el("p", { class: "more" }, count, older);
  older.addEventListener("click", () => {
    if (!current) return;
    limit += MORE;
    draw(current);
    if (current.events.length < limit) onOlder();
  });
  root.append(head, none, el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Events, newest first" }, list), more);

  function create(event) {
    const { word, shape: name, class: className } = appearance(event);
    const time = seconds(event.time);
    const step = event.step ?? null;
    const title = el("span", { class: "what" }, el("b", { text: word }));
    if (step !== null) {
      title.append(
        " ",
        el("button", {
          type: "button",
          class: "jump",
          text: `step ${integer(step)}`,
          title: `Show step ${integer(step)} in the chart`,
          on: { click: () => onStep(step) },
        }),
      );
    }
    const text = details(event);
    return el(
      "li",
      { "data-kind": event.kind, "data-event": event.id },
      shape(name, className),
      el("div", {}, title, text ? el("p", { class: "detail", title: text }, el("bdi", { text })) : null),
      el("time", { datetime: time === null ? null : new Date(time * 1000).toISOString(), title: dateTime(time), text: clock(time) }),
    );
  }

  let limit = ROWS;
  let current = /** @type {State | null} */ (null);
  let shownRun = null;

  function draw({ events, olderEvents, detail }) {
    setAttribute(link, "href", paths.events(detail.run));
    none.hidden = events.length > 0;
    more.hidden = events.length <= limit && olderEvents === null;
    setText(count, `Showing the last ${plural(Math.min(limit, events.length), "event")}.`);
    keyed(list, events.slice(0, limit), ({ run, id }) => `${run} ${id}`, create);
  }

  return ({ state }) => {
    const before = current;
    if (!state.detail) return;
    current = state;
    if (state.detail.run !== shownRun) limit = ROWS;
    shownRun = state.detail.run;
    if (state.events !== before?.events || state.olderEvents !== before?.olderEvents) draw(state);
  };
}
