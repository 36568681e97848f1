/** The pod panel: one cell for each process, by number. Its colour and shape show its health. */

import { durationSince, integer, norm, plural, visible, wireNumber } from "../format.js";
import { compareHealth, health, healthInWords } from "../words.js";
import { paths } from "../api.js";
import { el, keyed, panelHead, setAttribute, setText, shape } from "../dom.js";

/** Maximum number of cells. */
export const CELLS = 4_096;
/** The pseudo-health of a process that the job has, but that never reported. */
const MISSING = "missing";

/** The cells of a run, by number: the processes that reported, and those of the job's `processCount` that did not. */
export function cellsOf(run, processCount) {
  const held = new Map(run.processes.map((row) => [row.process, row]));
  const cells = run.processes.map((row) => row);
  for (let process = 0; process < Math.min(processCount ?? 0, CELLS); process += 1) {
    // An answer has no room for every process of a very large job. Those left out have reported.
    if (!held.has(process) && !run.left_out?.processes) cells.push({ process, health: MISSING });
  }
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
  aside.append(counts);
  root.append(head, el("div", { class: "scroll" }, grid), el("div", { class: "selection" }, sentence, show));

  /** The cells and their elements, in the same order. `active` and `hovered` are numbers of processes. */
  let cells = [];
  let nodes = [];
  let active = /** @type {number | null} */ (null);
  let hovered = /** @type {number | null} */ (null);
  let now = 0;

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
    setText(sentence, cell ? describeCell(cell, now) : "");
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

/** The entry of a health in the legend, with the shape of its cells. */
function legend({ name }) {
  const sign = name === MISSING ? el("span", { class: "cell none", "aria-hidden": "true" }) : shape(tierOf(name), tierOf(name));
  return el("li", {}, sign, el("b"), el("span", { text: wordOf(name).toLowerCase() }));
}

function worst(cells) {
  const [name] = cellCounts(cells)[0] ?? [];
  return cells.find((cell) => cell.health === name);
}

function describeCell(cell, now) {
  const { process, host, health: name, last_report: last, gauges, totals } = cell;
  if (name === MISSING) return `Process ${process} · never reported, but the job has it`;
  const streak = gauges?.not_finite_streak;
  return [
    `Process ${process} on ${visible(host ?? "–")}`,
    healthInWords(cell, now),
    last === null ? "no report yet" : `last report ${durationSince(last, now)} ago`,
    plural(totals?.steps ?? 0, "step"),
    streak > 0 ? `streak ${integer(streak)}` : null,
    `norm ${norm(wireNumber(gauges?.gradient_norm))}`,
  ].filter((part) => part !== null).join(" · ");
}
