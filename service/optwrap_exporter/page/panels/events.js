/** The feed of what happened, newest first; a click shows the step in the chart. */

import { clock, dateTime, integer, norm, parametersInWords, plural, seconds, visible, wireNumber } from "../format.js";
import { fromReplica, KINDS, REASONS } from "../words.js";
import { paths } from "../api.js";
import { el, keyed, panelHead, setAttribute, setText, shape } from "../dom.js";

/** Rows in the document at first, and how many more come with each click. */
const ROWS = 200;
const MORE = 1_000;

const EVENTS = {
  accepted_not_finite: { word: "Accepted, not finite", shape: "bang", class: "kind-accepted_not_finite" },
  streak_started: { word: "Streak began", shape: "warning", class: "warning" },
  streak_ended: { word: "Streak ended", shape: "good", class: "good" },
  starved: { word: "Starved", shape: "critical", class: "critical" },
  stalled: { word: "Stalled", shape: "critical", class: "critical" },
  stale: { word: "No more reports", shape: "critical", class: "critical" },
  started: { word: "Started", shape: "good", class: "idle" },
  resumed: { word: "Resumed", shape: "good", class: "idle" },
  finished: { word: "Finished", shape: "idle", class: "idle" },
  failed: { word: "Failed", shape: "critical", class: "critical" },
  conflict: { word: "Conflict", shape: "critical", class: "critical" },
  diverged: { word: "Processes disagree", shape: "critical", class: "critical" },
};

/** How an event is shown: a skip as its reason is drawn, the others by their kind. */
function appearance({ kind, detail }) {
  if (kind === "skipped") {
    const reason = REASONS.find(({ key }) => key === detail?.reason) ?? REASONS[2];
    return { word: `Skipped, ${reason.word}`, shape: KINDS[reason.kind].shape, class: `kind-${reason.kind}` };
  }
  return EVENTS[kind] ?? { word: visible(kind.replaceAll("_", " ")), shape: "idle", class: "idle" };
}

/** What an event's detail says, by kind; null where this page has no words for it. */
const SENTENCES = {
  skipped: (detail) => [`norm ${inWords(detail.norm)}`, guilty(detail), fromReplica(detail)],
  accepted_not_finite: (detail) => [`norm ${inWords(detail.norm)}`, guilty(detail), fromReplica(detail)],
  streak_started: (detail) => [guilty(detail), fromReplica(detail)],
  streak_ended: ({ length, first_step: first, last_step: last }) => [
    `${integer(length)} in a row${length > 1 ? `, steps ${integer(first)} to ${integer(last)}` : ""}`,
  ],
  started: ({ host, process_count: count }) => [`on ${visible(host)}`, count > 1 ? `${integer(count)} processes` : null],
  resumed: ({ from, to }) => [from === null ? `from step ${integer(to)}` : `from step ${integer(to)}, after ${integer(from)}`],
  finished: ({ steps }) => [`after ${plural(steps, "step")}`],
  failed: ({ steps }) => [`after ${plural(steps, "step")}`],
};

const guilty = ({ parameters = [], parameter_count: count }) => parametersInWords(parameters, count);

function details({ kind, detail }) {
  const words = SENTENCES[kind]?.(detail) ?? Object.entries(detail).map(([key, value]) => `${visible(key.replaceAll("_", " "))} ${inWords(value)}`);
  return words.filter((part) => part !== null).join(" · ");
}

function inWords(value) {
  if (value === null || value === undefined) return "–";
  if (Array.isArray(value)) {
    const rest = value.length > 3 ? ` and ${value.length - 3} more` : "";
    return value.slice(0, 3).map(inWords).join(", ") + rest;
  }
  if (typeof value === "object") {
    return Object.entries(value).map(([key, inner]) => `${visible(key)} ${inWords(inner)}`).join(", ");
  }
  const number = wireNumber(value);
  if (number === null) return visible(value);
  return Number.isInteger(number) ? integer(number) : norm(number);
}

/** @import { State } from "../model.js" */

export function createEvents(root, { onJump, onOlder }) {
  const { head, link } = panelHead("events-title", "Events", "What happened in this run, newest first");
  const list = el("ol", { class: "feed" });
  const none = el("p", { class: "notice", text: "Nothing yet." });
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
          on: { click: () => onJump(step) },
        }),
      );
    }
    const said = details(event);
    return el(
      "li",
      { "data-kind": event.kind, "data-event": event.id },
      shape(name, className),
      el("div", {}, title, said ? el("p", { class: "detail", title: said }, el("bdi", { text: said })) : null),
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
    setText(count, `The last ${integer(Math.min(limit, events.length))}.`);
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
