/** The pod panel: one cell for each process, by number. Its colour and shape show its health. */

import { durationSince, integer, norm, plural, visible, wireNumber } from "../format.js";
import { knowledge } from "../model.js";
import { compareHealth, health, healthInWords, tierOfRun } from "../words.js";
import { hostOnly } from "../url.js";
import { paths } from "../api.js";
import { el, keyed, panelHead, setAttribute, setText, shape } from "../dom.js";

/** Maximum number of cells. */
export const CELLS = 4_096;
/** The pseudo-health of a process that the job has, but that never reported. */
const MISSING = "missing";

/**
 * The cells of a run, by number: the processes that reported and, unless this exporter hears only those of its own host, those of
 * the job that did not.
 */
export function cellsOf(run) {
  const held = new Set(run.processes.map(({ process }) => process));
  const cells = [...run.processes];
  // An answer has no room for every process of a very large job. Those left out have reported.
  const all = run.missing === null || run.left_out.processes ? 0 : Math.min(run.process_count, CELLS);
  for (let process = 0; process < all; process += 1) if (!held.has(process)) cells.push({ process, health: MISSING });
  return cells.sort((a, b) => a.process - b.process).slice(0, CELLS);
}

/** The number of cells of each health, worst first. MISSING ranks like "degraded". */
export function cellCounts(cells) {
  const counts = new Map();
  for (const { health: name } of cells) counts.set(name, (counts.get(name) ?? 0) + 1);
  const rank = (name) => (name === MISSING ? "degraded" : name);
  return [...counts].sort(([a], [b]) => compareHealth(rank(a), rank(b)));
}

const tierOf = (name) => (name === MISSING ? "none" : health(name).tier);
const tierOfCell = (cell) => (cell.health === MISSING ? "none" : tierOfRun(cell));
const wordOf = (name) => (name === MISSING ? "Never reported" : health(name).word);

export function createPod(root, { onProcess }) {
  const { head, aside, link } = panelHead("pod-title", "Pod", "One cell for each training process, by its number");
  const counts = el("ul", { class: "legend", "aria-label": "Processes by health" });
  const grid = el("div", {
    class: "cells",
    role: "listbox",
    tabindex: 0,
    "aria-label": "Processes. Arrow keys select a process. Enter shows its steps in the chart.",
  });
  const sentence = el("output", { class: "sentence" });
  const show = el("button", { type: "button", text: "Show its steps", on: { click: () => showSteps(active) } });
  const scope = el("span", { class: "scope", title: "This exporter hears the processes of its own host. The others report to other exporters" });
  aside.append(scope, counts);
  root.append(head, el("div", { class: "scroll" }, grid), el("div", { class: "selection" }, sentence, show));

  /** The cells and their elements, in the same order. `active` and `hovered` are numbers of processes. */
  let cells = [];
  let nodes = [];
  let active = /** @type {number | null} */ (null);
  let hovered = /** @type {number | null} */ (null);
  let now = 0;
  /** Until when the healths hold, if the exporter does not know them any more. */
  let until = /** @type {number | null} */ (null);

  const indexOf = (process) => cells.findIndex((cell) => cell.process === process);

  function activate(process) {
    nodes[indexOf(active)]?.setAttribute("aria-selected", "false");
    active = process;
    const node = nodes[indexOf(process)];
    setAttribute(grid, "aria-activedescendant", node?.id);
    node?.setAttribute("aria-selected", "true");
    node?.scrollIntoView({ block: "nearest" });
    describe();
  }

  function showSteps(process) {
    if (cells[indexOf(process)]?.health !== MISSING) onProcess(process);
  }

  const processAt = (event) => {
    const cell = event.target.closest("[data-process]");
    return cell ? Number(cell.dataset.process) : null;
  };
  grid.addEventListener("pointerover", (event) => {
    hovered = processAt(event);
    describe();
  });
  grid.addEventListener("pointerleave", () => {
    hovered = null;
    describe();
  });
  grid.addEventListener("click", (event) => {
    const process = processAt(event);
    if (process !== null) activate(process);
  });

  /** How many cells a row has in the current layout. */
  function columns() {
    const top = nodes[0].offsetTop;
    const next = nodes.findIndex((node) => node.offsetTop > top);
    return next === -1 ? nodes.length : next;
  }

  grid.addEventListener("keydown", (event) => {
    if (cells.length === 0) return;
    const at = Math.max(0, indexOf(active));
    const last = cells.length - 1;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key];
    if (event.key === "Enter") showSteps(active);
    else if (to !== undefined) activate(cells[Math.min(last, Math.max(0, to))].process);
    else if (event.key === "ArrowUp" && at >= columns()) activate(cells[at - columns()].process);
    else if (event.key === "ArrowDown" && at + columns() <= last) activate(cells[at + columns()].process);
    else if (!event.key.startsWith("Arrow")) return;
    event.preventDefault();
  });

  /** Describes the hovered process, else the selected one, else the worst. */
  function describe() {
    const process = hovered ?? active;
    const cell = cells[indexOf(process)] ?? worst(cells);
    show.hidden = active === null || cell?.process !== active || cell.health === MISSING;
    setText(sentence, cell ? describeCell(cell, now, until) : "");
  }

  return ({ state, now: current }) => {
    const run = state.detail;
    if (!run) return;
    now = current;
    ({ until } = knowledge(state));
    cells = cellsOf(run);
    root.hidden = cells.length < 2;
    if (root.hidden) return;
    setAttribute(link, "href", paths.run(run.run));
    setAttribute(grid, "data-size", cells.length <= 64 ? "large" : cells.length <= 512 ? "medium" : "small");
    keyed(counts, cellCounts(cells).map(([name, count]) => ({ name, count })), ({ name }) => name, legend, (item, { count }) =>
      setText(item.children[1], integer(count)),
    );
    const partial = hostOnly() && run.process_count > cells.length;
    setText(scope, partial ? `${integer(cells.length)} of ${integer(run.process_count)} processes report here` : "");
    draw();
    describe();
  };

  /** Creates the cells only if processes came or went. Otherwise it updates the cells that changed. */
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
    cells.forEach((cell, i) => {
      const { process, host, health: name } = cell;
      const node = nodes[i];
      const tier = tierOfCell(cell);
      if (node.health === name && node.host === host && node.tier === tier) return;
      Object.assign(node, { health: name, host, tier });
      node.className = `cell ${tier}`;
      node.dataset.health = name;
      node.setAttribute("aria-label", `Process ${process}${host ? ` on ${visible(host)}` : ""}: ${wordOf(name)}`);
    });
  }
}

/** The entry of a health in the legend, with the shape of its cells. */
function legend({ name }) {
  const sign = name === MISSING ? el("span", { class: "cell none", "aria-hidden": "true" }) : shape(tierOf(name), tierOf(name));
  return el("li", {}, sign, el("b"), el("span", { text: wordOf(name).toLowerCase() }));
}

function worst(cells) {
  const [name] = cellCounts(cells)[0] ?? [];
  return cells.find((cell) => cell.health === name);
}

function describeCell(cell, now, until) {
  const { process, host, health: name, summary, last_report: last, totals } = cell;
  if (name === MISSING) return `Process ${process} · never reported, but the job has it`;
  return [
    `Process ${process} on ${visible(host)}`,
    healthInWords(cell, now, until),
    summary === null ? null : visible(summary),
    `last report ${durationSince(last, now)} ago`,
    plural(totals.steps, "step"),
    cell.norm === null ? null : `norm ${norm(wireNumber(cell.norm.value))}${cell.norm.step === null ? "" : ` at step ${integer(cell.norm.step)}`}`,
  ].filter((part) => part !== null).join(" · ");
}
