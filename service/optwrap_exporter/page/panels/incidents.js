/**
 * The incidents of the run: each trouble as one sentence, open ones first. Opened, an incident shows its events; an open one can
 * be acknowledged.
 */

import { capital, clock, dateTime, duration, integer, plural, seconds, visible } from "../format.js";
import { INCIDENT_STATES, INCIDENTS } from "../vocabulary.js";
import { health } from "../words.js";
import { getJson, paths } from "../api.js";
import { runbookOf } from "../url.js";
import { el, keyed, panelHead, replaceShape, setAttribute, setText } from "../dom.js";
import { createEvent } from "./event.js";

/** Events of an incident that are shown. */
const EVENTS_SHOWN = 50;
/** Incidents in the list at first, and how many more come with each click. */
const ROWS = 20;

/** The tier of an incident: of its kind while it is open; what is over is idle. */
function tierOf({ kind, state }) {
  if (state !== "open") return "idle";
  return kind === "skipped" ? "warning" : health(kind).tier;
}

export function createIncidents(root, { onStep, onOlder, onAcknowledge }) {
  const { head, aside, link } = panelHead("incidents-title", "Incidents", "Each trouble of this run, summed up; open ones first");
  const list = el("ol", { class: "incidents" });
  const more = el("p", { class: "more" }, el("button", { type: "button", text: "Show older", on: { click: () => older() } }));
  const scroll = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Incidents, open ones first" }, list);
  root.append(head, scroll, more);
  let limit = ROWS;
  let held = 0;
  let shownRun = null;
  /** The incident whose button was pressed: the button goes, and the focus must stay in its row. */
  let acknowledging = /** @type {number | null} */ (null);

  function older() {
    limit += ROWS;
    if (held < limit) onOlder();
  }

  function keepFocus(incidents) {
    const done = incidents.find(({ id, state }) => id === acknowledging && state !== "open");
    if (!done) return;
    acknowledging = null;
    const at = document.activeElement;
    const row = list.querySelector(`[data-incident="${done.id}"]`);
    if (at === document.body || row?.parentElement?.contains(at)) row?.querySelector("summary")?.focus({ preventScroll: true });
  }

  function create(incident) {
    const when = el("time");
    const kind = el("span");
    const state = el("span", { class: "state" });
    const sentence = el("bdi", { class: "sentence" });
    const title = el("summary", {}, el("span", { class: "icon" }), sentence, el("span", { class: "when" }, kind, state, when));
    const events = el("ol", { class: "feed" });
    const facts = el("p", { class: "facts" });
    const details = el("details", { "data-kind": incident.kind, "data-incident": incident.id }, title, facts, events);
    const acknowledge = el("button", {
      type: "button",
      text: "Acknowledge",
      title: "You have seen it: it no longer counts as trouble, here and in alerts",
      on: {
        click: () => {
          acknowledging = incident.id;
          onAcknowledge(incident.id);
        },
      },
    });
    const node = el("li", {}, details, el("p", { class: "buttons" }, acknowledge));
    details.addEventListener("toggle", () => {
      if (/** @type {HTMLDetailsElement} */ (details).open) void showEvents(/** @type {any} */ (node).incident, events);
    });
    return node;
  }

  async function showEvents(incident, into) {
    try {
      const { items, cursor } = await getJson(eventsOf(incident));
      const own = items.filter((event) => isWithin(event, incident));
      into.replaceChildren(...own.slice(0, EVENTS_SHOWN).map((event) => createEvent(event, { onStep, processes: incident.process_count })));
      if (!own.length) into.append(el("li", { class: "notice", text: "Its events are no longer stored." }));
      if (own.length > EVENTS_SHOWN || cursor !== null) into.append(el("li", { class: "notice", text: `Only the last ${EVENTS_SHOWN} events are shown.` }));
    } catch {
      into.replaceChildren(el("li", { class: "notice", text: "The exporter did not answer. Close and open this incident to try again." }));
    }
  }

  function update(node, incident, now) {
    const before = node.incident;
    node.incident = incident;
    const [details, buttons] = node.children;
    const [title, facts, events] = details.children;
    const [icon, sentence, when] = title.children;
    const [kind, stateNode, time] = when.children;
    const tier = tierOf(incident);
    setAttribute(node, "class", `incident ${tier}`);
    setAttribute(details, "data-state", incident.state);
    replaceShape(icon, tier);
    setText(sentence, capital(visible(incident.summary)));
    setText(kind, INCIDENTS[incident.kind]?.word ?? visible(incident.kind));
    setText(stateNode, INCIDENT_STATES[incident.state]?.word ?? visible(incident.state));
    setAttribute(stateNode, "title", INCIDENT_STATES[incident.state]?.meaning);
    setText(time, timesOf(incident, now));
    setAttribute(time, "title", dateTime(seconds(incident.opened)));
    buttons.hidden = incident.state !== "open";
    facts.replaceChildren(...factsOf(incident, onStep));
    if (details.open && before && before.updated !== incident.updated) void showEvents(incident, events);
  }

  return ({ state, now }) => {
    const run = state.detail;
    if (!run) return;
    if (run.run !== shownRun) limit = ROWS;
    shownRun = run.run;
    held = state.incidents.length;
    setAttribute(link, "href", paths.incidents(run.run));
    const open = state.incidents.filter((one) => one.state === "open").length;
    setText(aside, held === 0 ? "No incidents so far." : open ? `${integer(open)} open` : "");
    scroll.hidden = held === 0;
    more.hidden = held <= limit && state.olderIncidents === null;
    keyed(list, state.incidents.slice(0, limit), ({ id }) => id, create, (node, incident) => {
      const key = `${incident.state} ${incident.updated} ${incident.state === "open" ? Math.floor(now) : ""}`;
      if (node.key === key) return;
      node.key = key;
      update(node, incident, now);
    });
    keepFocus(state.incidents);
  };
}

/** "since 14:03:22, 8 min ago" of an open incident, "14:03:22, for 12 s" of one that is over. Steps say themselves how many they are. */
function timesOf({ state, opened, closed, acknowledged, updated, steps }, now) {
  const began = seconds(opened);
  if (began === null) return "";
  if (state === "open") return `since ${clock(began, now)}, ${duration(now - began)} ago`;
  const end = seconds(closed ?? acknowledged ?? updated) ?? began;
  return `${clock(began, now)}${end - began >= 1 && steps === 0 ? `, for ${duration(end - began)}` : ""}`;
}

/** What is known of an incident beside its sentence: its first and last step as links into the chart, its processes, its runbook. */
function factsOf(incident, onStep) {
  const { first_step: first, last_step: last, process_count: count, processes, host, device } = incident;
  const parts = [];
  for (const [label, step] of [["first", first], ["last", last]]) {
    if (step === null || step === undefined || (label === "last" && last === first)) continue;
    const jump = el("button", { type: "button", class: "jump", text: `step ${integer(step)}`, title: `Show step ${integer(step)} in the chart` });
    jump.addEventListener("click", () => onStep(step));
    parts.push(el("span", {}, `${label} `, jump));
  }
  if (count > 1) parts.push(el("span", { text: plural(count, "process", "processes") }));
  else if (processes?.length === 1) parts.push(el("span", { text: `process ${integer(processes[0])}` }));
  for (const text of [host, device]) if (text) parts.push(el("bdi", { text: visible(text) }));
  const acknowledged = seconds(incident.acknowledged);
  if (acknowledged !== null) parts.push(el("span", { text: `acknowledged at ${clock(acknowledged)}`, title: dateTime(acknowledged) }));
  const runbook = runbookOf(incident.runbook);
  if (runbook) parts.push(el("a", { href: runbook, text: "What to do", title: "The runbook of this trouble" }));
  return parts;
}

/** Kinds of events that belong to an incident about steps. */
const OF_STEPS = ["skipped", "accepted_not_finite", "streak_started", "streak_ended", "diagnosed"];
/** Events of steps have the training's time, and may be reported late: so much (s) is looked at around an incident. */
const MARGIN = 600;

/** The address of the events of an incident, and those around it. */
export function eventsOf({ run, kind, first_step: first, opened, closed, updated }) {
  const kinds = first === null || kind === "diverged" ? [kind] : OF_STEPS;
  return paths.events(run, { kind: kinds, since: opened - MARGIN, until: (closed ?? updated) + MARGIN, limit: 1_000 });
}

/** Whether an event is about the steps of an incident. A streak ends at the step after its last. */
function isWithin({ step }, { first_step: first, last_step: last }) {
  return first === null || step === null || (step >= first && step <= last + 1);
}
