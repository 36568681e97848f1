/** The pod at a glance: one cell for each process, by number; its colour and its shape are its health. */

import { durationSince, integer, norm, plural, visible, wireNumber } from "../format.js";
import { compareHealth, health } from "../words.js";
import { paths } from "../api.js";
import { el, keyed, panelHead, setAttribute, setText, shape } from "../dom.js";

/** Cells at most; beyond it the table of processes has the worst. */
export const CELLS = 4_096;
/** What stands for a process of the job that has not reported. */
const MISSING = "missing";

/** The cells of a run: its processes by number, and those that the job says it has and nobody heard of. */
export function cellsOf(run, processCount) {
  const held = new Map(run.processes.map((row) => [row.process, row]));
  const cells = run.processes.map((row) => row);
  for (let process = 0; process < Math.min(processCount ?? 0, CELLS); process += 1) {
    if (!held.has(process)) cells.push({ process, health: MISSING });
  }
  return cells.sort((a, b) => a.process - b.process).slice(0, CELLS);
}

/** How many cells there are of each health, worst first: those that nobody heard of stand beside "degraded". */
export function cellCounts(cells) {
  const counts = new Map();
  for (const { health: name } of cells) counts.set(name, (counts.get(name) ?? 0) + 1);
  const rank = (name) => (name === MISSING ? "degraded" : name);
  return [...counts].sort(([a], [b]) => compareHealth(rank(a), rank(b)));
}

const tierOf = (name) => (name === MISSING ? "none" : health(name).tier);
const wordOf = (name) => (name === MISSING ? "Not heard of" : health(name).word);

export function createPod(root, { onProcess }) {
  const { head, aside, link } = panelHead("pod-title", "Pod", "One cell for each training process, by its number");
  const counts = el("ul", { class: "legend", "aria-label": "Processes by health" });
  const grid = el("div", {
    class: "cells",
    role: "listbox",
    tabindex: 0,
    "aria-label": "Processes. Arrow keys: from one to the next. Enter: show its steps in the chart.",
  });
  const said = el("output", { class: "pointed" });
  const show = el("button", { type: "button", text: "Show its steps", on: { click: () => shownOf(active) } });
  aside.append(counts);
  root.append(head, el("div", { class: "scroll" }, grid), el("div", { class: "said" }, said, show));

  /** Cells by number, as they are drawn, in that order; `active` is the number of the one that is pointed at. */
  let cells = [];
  let nodes = [];
  let active = /** @type {number | null} */ (null);
  let hovered = /** @type {number | null} */ (null);
  let now = 0;

  const placeOf = (process) => cells.findIndex((cell) => cell.process === process);

  function activate(process) {
    nodes[placeOf(active)]?.setAttribute("aria-selected", "false");
    active = process;
    const node = nodes[placeOf(process)];
    setAttribute(grid, "aria-activedescendant", node?.id);
    node?.setAttribute("aria-selected", "true");
    node?.scrollIntoView({ block: "nearest" });
    say();
  }

  function shownOf(process) {
    if (cells[placeOf(process)]?.health !== MISSING) onProcess(process);
  }

  const processAt = (event) => {
    const cell = event.target.closest("[data-process]");
    return cell ? Number(cell.dataset.process) : null;
  };
  grid.addEventListener("pointerover", (event) => {
    hovered = processAt(event);
    say();
  });
  grid.addEventListener("pointerleave", () => {
    hovered = null;
    say();
  });
  grid.addEventListener("click", (event) => {
    const process = processAt(event);
    if (process !== null) activate(process);
  });

  /** Cells in one row, as they are laid out now. */
  function columns() {
    const top = nodes[0].offsetTop;
    const next = nodes.findIndex((node) => node.offsetTop > top);
    return next === -1 ? nodes.length : next;
  }

  grid.addEventListener("keydown", (event) => {
    if (cells.length === 0) return;
    const at = Math.max(0, placeOf(active));
    const last = cells.length - 1;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key];
    if (event.key === "Enter") shownOf(active);
    else if (to !== undefined) activate(cells[Math.min(last, Math.max(0, to))].process);
    else if (event.key === "ArrowUp" && at >= columns()) activate(cells[at - columns()].process);
    else if (event.key === "ArrowDown" && at + columns() <= last) activate(cells[at + columns()].process);
    else if (!event.key.startsWith("Arrow")) return;
    event.preventDefault();
  });

  /** What the pointed-at process is; where none is, the worst. */
  function say() {
    const process = hovered ?? active;
    const cell = cells[placeOf(process)] ?? worst(cells);
    show.hidden = active === null || cell?.process !== active || cell.health === MISSING;
    setText(said, cell ? sentence(cell, now) : "");
  }

  return ({ state, now: current }) => {
    const run = state.detail;
    if (!run) return;
    const row = state.runs?.find((other) => other.run === run.run);
    now = state.connection.phase === "lost" ? state.connection.since : current;
    cells = cellsOf(run, row?.process_count);
    root.hidden = cells.length < 2;
    if (root.hidden) return;
    setAttribute(link, "href", paths.run(run.run));
    setAttribute(grid, "data-size", cells.length <= 64 ? "large" : cells.length <= 512 ? "medium" : "small");
    keyed(counts, cellCounts(cells).map(([name, count]) => ({ name, count })), ({ name }) => name, legend, (item, { count }) =>
      setText(item.children[1], integer(count)),
    );
    draw();
    say();
  };

  /** Processes seldom come or go: cells are made anew only then; else those whose health changed are touched. */
  function draw() {
    const same = nodes.length === cells.length && cells.every(({ process }, i) => nodes[i].process === process);
    if (!same) {
      nodes = cells.map(({ process }) => {
        const node = el("span", { id: `cell-${process}`, role: "option", "data-process": process, "aria-selected": process === active ? "true" : "false" });
        node.process = process;
        return node;
      });
      grid.replaceChildren(...nodes);
    }
    cells.forEach(({ process, host, health: name }, i) => {
      const node = nodes[i];
      if (node.health === name && node.host === host) return;
      node.health = name;
      node.host = host;
      node.className = `cell ${tierOf(name)}`;
      node.dataset.health = name;
      node.setAttribute("aria-label", `Process ${process}${host ? ` on ${visible(host)}` : ""}: ${wordOf(name)}`);
    });
  }
}

/** The legend's entry of a health: the same shape as its cells have. */
function legend({ name }) {
  const sign = name === MISSING ? el("span", { class: "cell none", "aria-hidden": "true" }) : shape(tierOf(name), tierOf(name));
  return el("li", {}, sign, el("b"), el("span", { text: wordOf(name).toLowerCase() }));
}

function worst(cells) {
  const [name] = cellCounts(cells)[0] ?? [];
  return cells.find((cell) => cell.health === name);
}

function sentence({ process, host, health: name, since, last_report: last, gauges, totals }, now) {
  if (name === MISSING) return `Process ${process} · the job says it has it, but it has not reported`;
  const streak = gauges?.not_finite_streak;
  return [
    `Process ${process} on ${visible(host ?? "–")}`,
    `${wordOf(name)} for ${durationSince(since, now)}`,
    last === null ? "no report yet" : `last report ${durationSince(last, now)} ago`,
    plural(totals?.steps ?? 0, "step"),
    streak > 0 ? `streak ${integer(streak)}` : null,
    `norm ${norm(wireNumber(gauges?.gradient_norm))}`,
  ].filter((part) => part !== null).join(" · ");
}
