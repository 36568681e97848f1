/**
 * The table of runs, worst first: search, chips that filter by health, headers that sort. Runs that are over are folded below.
 * Hidden while there is only one run.
 */

import { integer, plural } from "../format.js";
import { healthCounts, arranged, isOver, VALUES } from "../runs.js";
import { health } from "../words.js";
import { knowledge } from "../model.js";
import { paths } from "../api.js";
import { el, jsonLink, keyed, setAttribute, setText, shape } from "../dom.js";
import { COLUMNS, createRow, updateRow } from "./run_row.js";
import { focusIn, moveInRows } from "./row_focus.js";
import { createThumbnails } from "./thumbnails.js";

/** Rows at first, and how many more come with each click. */
const ROWS = 100;
const MORE = 500;

/** @import { State } from "../model.js" */

export function createRuns(root, { onSelect, onMenu, onArchived }) {
  const count = el("span", { class: "count" });
  const json = jsonLink("the list of runs");
  json.href = paths.runs();
  const search = el("input", { type: "search", placeholder: "Search runs", "aria-label": "Search runs by name or health" });
  const chips = el("span", { class: "chips", role: "group", "aria-label": "Runs by health" });
  const archived = el("button", { type: "button", class: "toggle", text: "Archived", title: "Show the archived runs, too", "aria-pressed": "false" });
  const head = el("div", { class: "panel-head" }, el("h2", { id: "runs-title", text: "Runs" }), count, chips, el("span", { class: "aside" }, search, archived, json));

  const headers = COLUMNS.map(({ key, label, what, className }) => {
    const cell = el("th", { scope: "col", class: className });
    if (!Object.hasOwn(VALUES, key)) cell.append(el("span", { text: label, title: what, class: key === "menu" ? "visually-hidden" : null }));
    else cell.append(el("button", { type: "button", text: label, title: what, on: { click: () => sortBy(key) } }));
    return { key, cell };
  });
  const live = el("tbody");
  const over = el("tbody", { class: "over" });
  const old = el("tbody", { class: "archived" });
  const table = el("table", { "aria-labelledby": "runs-title" }, el("thead", {}, el("tr", {}, ...headers.map(({ cell }) => cell))), live, over, old);
  const scroll = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of runs. Arrow keys move between runs and to their actions" }, table);
  const fold = el("button", { type: "button", class: "fold", "aria-expanded": "false" });
  const rest = el("span");
  const grow = el("button", { type: "button", text: "Show more" });
  const foot = el("p", { class: "more" }, fold, rest, grow);
  root.append(head, scroll, foot);
  table.addEventListener("keydown", moveInRows);

  /** @type {import("../runs.js").Choice} */
  const choice = { healths: new Set(), text: "", sort: { key: "health", down: false } };
  let open = false;
  let toArchived = false;
  let limit = ROWS;
  let current = /** @type {{state: State, now: number} | null} */ (null);
  const thumbnails = createThumbnails(scroll);

  function sortBy(key) {
    const { sort } = choice;
    choice.sort = sort.key === key ? { key, down: !sort.down } : { key, down: key !== "run" && key !== "health" };
    draw();
  }
  search.addEventListener("input", () => {
    choice.text = search.value.trim();
    limit = ROWS;
    draw();
  });
  archived.addEventListener("click", () => {
    toArchived = current?.state.archived === null;
    onArchived(toArchived);
  });
  fold.addEventListener("click", () => {
    open = !open;
    draw();
  });
  grow.addEventListener("click", () => {
    limit += MORE;
    draw();
  });

  /** Of the runs that the search finds. A chip that is pressed stays, so that it can be released. */
  function showChips(runs, all) {
    const counts = new Map(healthCounts(runs));
    const numbers = healthCounts(all).map(([name]) => ({ name, number: counts.get(name) ?? 0 }));
    keyed(
      chips,
      numbers.filter(({ name, number }) => number > 0 || choice.healths.has(name)),
      ({ name }) => name,
      ({ name }) => {
        const { tier, word, meaning } = health(name);
        const toggle = () => {
          if (!choice.healths.delete(name)) choice.healths.add(name);
          limit = ROWS;
          draw();
        };
        return el("button", { type: "button", class: `chip ${tier}`, title: `Show only: ${word}. ${meaning}`, on: { click: toggle } }, shape(tier), el("b"), el("span", { text: word.toLowerCase() }));
      },
      (node, { name, number }) => {
        setText(node.children[1], integer(number));
        setAttribute(node, "aria-pressed", String(choice.healths.has(name)));
      },
    );
  }

  /** What is shown: the rows of each part of the table, and how many more there are. */
  function chosenRows({ runs, selected }) {
    const rows = arranged(runs ?? [], choice);
    const ended = rows.filter(isOver);
    const others = rows.filter((row) => !isOver(row));
    // A search, a chip, or a list in which nothing else is left shows the runs that are over, too.
    const chosen = choice.healths.size > 0 || choice.text !== "" || others.length === 0;
    // The selected run is listed whether or not it is over: the fold is about the others.
    const unfolded = open || chosen ? ended : ended.filter(({ run }) => run === selected);
    const foldable = ended.some(({ run }) => run !== selected) && !chosen;
    const first = others.slice(0, limit);
    const then = unfolded.slice(0, Math.max(0, limit - first.length));
    const hidden = others.length + unfolded.length - first.length - then.length;
    return { first, then, hidden, folded: ended.length - unfolded.length, foldable };
  }

  /** The chips and the count are of what the search finds, so they agree with each other and with the rows. */
  function showCounts(state) {
    const all = [...(state.runs ?? []), ...(state.archived ?? [])];
    // A chip whose health no run has any more would hide every run.
    for (const name of choice.healths) if (!all.some((row) => row.health === name)) choice.healths.delete(name);
    const searched = arranged(all, { ...choice, healths: new Set() });
    showChips(searched, all);
    const found = choice.text === "" ? integer(all.length) : `${integer(searched.length)} of ${integer(all.length)}`;
    const { known } = knowledge(state);
    setText(count, known ? found : `${found}, last known:`);
  }

  /** Scrolls to the archived runs once they are there, if they were asked for: they come last. */
  function showArchived() {
    if (!toArchived || old.firstElementChild === null) return;
    toArchived = false;
    old.firstElementChild.scrollIntoView({ block: "nearest" });
  }

  function draw() {
    if (!current) return;
    const { state, now } = current;
    const { until } = knowledge(state);
    const focus = focusIn(table);
    showCounts(state);
    setAttribute(archived, "aria-pressed", String(state.archived !== null));
    for (const { key, cell } of headers) {
      setAttribute(cell, "aria-sort", choice.sort.key === key ? (choice.sort.down ? "descending" : "ascending") : null);
    }
    const shown = chosenRows(state);
    const parts = [[live, shown.first], [over, shown.then], [old, arranged(state.archived ?? [], choice)]];
    const update = (node, row) => updateRow(node, row, { now, until, selected: state.selected });
    const create = (row) => createRow(row, { onSelect, onMenu, thumbnail: thumbnails.create(row) });
    for (const [part, rows] of parts) keyed(part, rows, ({ run }) => run, create, update);
    focus.restore();
    showArchived();
    thumbnails.update(parts.flatMap(([, rows]) => rows), state.detail === null && !state.missing);
    showFoot(shown, state);
  }

  function showFoot({ folded, foldable, hidden }, { runs, archived: archivedRows }) {
    fold.hidden = !foldable;
    setAttribute(fold, "aria-expanded", String(open));
    setText(fold, open ? "Hide the runs that are over" : `Show ${plural(folded, "run")} that ${folded === 1 ? "is" : "are"} over`);
    grow.hidden = hidden === 0;
    const none = live.childElementCount + over.childElementCount + old.childElementCount === 0;
    const noArchived = archivedRows?.length === 0 ? "No run is archived." : "";
    const empty = runs?.length === 0 ? "All runs are archived." : "No run matches.";
    setText(rest, none ? empty : hidden ? `${integer(hidden)} more.` : noArchived);
    foot.hidden = fold.hidden && rest.textContent === "";
  }

  return ({ state, now }) => {
    const before = current;
    current = { state, now };
    root.hidden = (state.runs?.length ?? 0) < 2 && !state.hasArchived;
    if (root.hidden) return;
    const changed = ["runs", "archived", "selected"].some((part) => before?.state[part] !== state[part]);
    if (changed || Math.floor(before?.now ?? 0) !== Math.floor(now)) draw();
  };
}
