/** The replicas panel: which replicas were the first with non-finite gradients. Hidden if the training flags none. */

import { compact, integer, visible } from "../format.js";
import { paths } from "../api.js";
import { el, keyed, panelHead, setAttribute, setText } from "../dom.js";

const COLUMNS = [
  ["Replica", "The replica's number along the replica axes", "number"],
  ["Process", "The process of its first device", "number"],
  ["Device", "Its devices, by platform and number", null],
  ["Steps", "Steps in which it was the first with non-finite gradients", "number"],
  ["First", "First such step", "number"],
  ["Last", "Last such step", "number"],
];

export function createReplicas(root, { onStep }) {
  const { head, link } = panelHead("replicas-title", "Replicas", "Which replica was the first with non-finite gradients, and how often");
  const body = el("tbody");
  const header = COLUMNS.map(([label, what, className]) => el("th", { scope: "col", text: label, title: what, class: className }));
  const table = el("table", { "aria-labelledby": "replicas-title" }, el("thead", {}, el("tr", {}, ...header)), body);
  root.append(head, el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of replicas" }, table));

  function create() {
    const jump = () => {
      const button = el("button", { type: "button", class: "jump" });
      button.addEventListener("click", () => onStep(Number(/** @type {HTMLButtonElement} */ (button).value)));
      return el("td", { class: "number" }, button);
    };
    const number = () => el("td", { class: "number" });
    return el("tr", {}, number(), number(), el("td", {}, el("bdi")), number(), jump(), jump());
  }

  return ({ state }) => {
    const run = state.detail;
    if (!run) return;
    root.hidden = run.replicas.length === 0;
    setAttribute(link, "href", paths.run(run.run));
    keyed(body, run.replicas, ({ replica, process, device }) => `${replica} ${process} ${device}`, create, (row, item) => {
      const [replica, process, device, steps, first, last] = row.children;
      setText(replica, item.replica === null ? "others" : integer(item.replica));
      setText(process, integer(item.process));
      setText(device.firstChild, item.device === null ? "–" : visible(item.device));
      setText(steps, compact(item.steps));
      for (const [cell, step] of [[first, item.first_step], [last, item.last_step]]) {
        setText(cell.firstChild, integer(step));
        setAttribute(cell.firstChild, "value", step);
        setAttribute(cell.firstChild, "title", step === null ? null : `Show step ${integer(step)} in the chart`);
        cell.firstChild.disabled = step === null;
      }
    });
  };
}
