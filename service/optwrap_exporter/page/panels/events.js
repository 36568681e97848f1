/**
 * The events panel: what happened to the run, newest first. The events of single steps are many, and the incidents sum them up,
 * so they are listed on request.
 */

import { plural } from "../format.js";
import { LOGGED } from "../model.js";
import { paths } from "../api.js";
import { el, keyed, panelHead, setAttribute, setText } from "../dom.js";
import { createEvent } from "./event.js";

/** Rows in the document at first, and how many more come with each click. */
const ROWS = 200;
const MORE = 1_000;

/** @import { State } from "../model.js" */

export function createEvents(root, { onStep, onOlder, onEvery }) {
  const { head, aside, link } = panelHead("events-title", "Events", "The events of this run, newest first");
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
  const every = el("button", { type: "button", class: "toggle", text: "Every bad step", title: "List an event for each bad step, too", "aria-pressed": "false" });
  every.addEventListener("click", () => onEvery(every.getAttribute("aria-pressed") !== "true"));
  aside.append(every);
  root.append(head, none, el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Events, newest first" }, list), more);

  let limit = ROWS;
  let current = /** @type {State | null} */ (null);
  let shownRun = null;

  function draw({ events, olderEvents, detail, everyEvent }) {
    setAttribute(link, "href", paths.events(detail.run, { kind: everyEvent ? null : LOGGED }));
    setAttribute(every, "aria-pressed", String(everyEvent));
    none.hidden = events.length > 0;
    more.hidden = events.length <= limit && olderEvents === null;
    setText(count, `Showing the last ${plural(Math.min(limit, events.length), "event")}.`);
    keyed(list, events.slice(0, limit), ({ run, id }) => `${run} ${id}`, (event) => createEvent(event, { onStep, processes: detail.process_count }));
  }

  return ({ state }) => {
    const before = current;
    if (!state.detail) return;
    current = state;
    if (state.detail.run !== shownRun) limit = ROWS;
    shownRun = state.detail.run;
    if (state.everyEvent !== before?.everyEvent || state.events !== before?.events || state.olderEvents !== before?.olderEvents) draw(state);
  };
}
