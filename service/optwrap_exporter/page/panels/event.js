/** One event in words, as an item of a list. */

import { clock, dateTime, integer, norm, parametersInWords, plural, seconds, visible, wireNumber } from "../format.js";
import { EVENTS } from "../vocabulary.js";
import { fromReplica, KINDS, REASONS } from "../words.js";
import { el, shape } from "../dom.js";

/** The shape and colour of each kind of event that is not about one step. */
const LOOKS = {
  streak_started: { shape: "warning", class: "warning" },
  streak_ended: { shape: "good", class: "good" },
  rebased: { shape: "warning", class: "warning" },
  starved: { shape: "critical", class: "critical" },
  stalled: { shape: "critical", class: "critical" },
  stale: { shape: "critical", class: "critical" },
  started: { shape: "good", class: "idle" },
  resumed: { shape: "good", class: "idle" },
  finished: { shape: "idle", class: "idle" },
  failed: { shape: "critical", class: "critical" },
  stopped: { shape: "critical", class: "critical" },
  conflict: { shape: "critical", class: "critical" },
  diverged: { shape: "critical", class: "critical" },
  diagnosed: { shape: "warning", class: "warning" },
};

/** The words, shape and colour of an event: those of the reason for a skip, else those of the event's kind. */
function appearance({ kind, detail }) {
  if (kind === "skipped") {
    const reason = REASONS.find(({ key }) => key === detail?.reason) ?? REASONS[2];
    return { word: `Skipped, ${reason.word}`, shape: KINDS[reason.kind].shape, class: `kind-${reason.kind}` };
  }
  const word = EVENTS[kind]?.word ?? visible(kind.replaceAll("_", " "));
  if (kind === "accepted_not_finite") return { word, shape: KINDS[kind].shape, class: `kind-${kind}` };
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
  resumed: ({ from, to }) => [to === null || from === null ? null : `after step ${integer(from)}`],
  stale: ({ last_report: last }) => [last === undefined ? null : `last report ${clock(seconds(last))}`],
  stalled: ({ last_step: last }) => [last === undefined ? "no step yet" : `last step ${clock(seconds(last))}`],
  starved: ({ steps }) => [steps === undefined ? null : `${plural(steps, "step")} without a gradient step`],
  conflict: ({ older, newer }) => [older?.host && newer?.host ? `${visible(older.host)} and ${visible(newer.host)}` : null],
  diagnosed: ({ cause, remedy }) => [visible(cause), remedy ? visible(remedy) : null],
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

/** The list item of an event. A click on its step calls `onStep`. Where a run has several processes, it says of which one it is. */
export function createEvent(event, { onStep, processes }) {
  const { word, shape: name, class: className } = appearance(event);
  const time = seconds(event.time);
  const step = event.step ?? null;
  const title = el("span", { class: "what" }, el("b", { text: word }));
  if (step !== null) {
    title.append(
      Object.hasOwn(LOOKS, event.kind) ? " at " : " ",
      el("button", {
        type: "button",
        class: "jump",
        text: `step ${integer(step)}`,
        title: `Show step ${integer(step)} in the chart`,
        on: { click: () => onStep(step) },
      }),
    );
  }
  const text = [processes > 1 ? `process ${integer(event.process)}` : "", details(event)].filter(Boolean).join(" · ");
  return el(
    "li",
    { "data-kind": event.kind, "data-event": event.id },
    shape(name, className),
    el("div", {}, title, text ? el("p", { class: "detail", title: text }, el("bdi", { text })) : null),
    el("time", { datetime: time === null ? null : new Date(time * 1000).toISOString(), title: dateTime(time), text: clock(time) }),
  );
}
