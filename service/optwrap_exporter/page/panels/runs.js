/** The list of runs, worst first. It is hidden if there is only one run. */

import { compact, visible } from "../format.js";
import { healthInWords, tierOfRun } from "../words.js";
import { ofRun } from "../url.js";
import { paths } from "../api.js";
import { el, jsonLink, keyed, replaceShape, setAttribute, setText } from "../dom.js";

export function createRuns(root, shell, { onSelect }) {
  const list = el("ul");
  const json = jsonLink("the list of runs");
  json.href = paths.runs();
  root.append(el("div", { class: "runs-head" }, el("h2", { text: "Runs" }), json), list);

  function create({ run }) {
    const icon = el("span", { class: "icon" });
    const name = el("bdi", { class: "name", text: visible(run) });
    const word = el("span", { class: "word" });
    const link = el("a", { href: ofRun(run) }, icon, el("span", { class: "lines" }, name, word));
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      onSelect(run);
    });
    return el("li", {}, link);
  }

  return ({ state, now: current }) => {
    const now = state.connection.phase === "lost" ? state.connection.since : current;
    const several = (state.runs?.length ?? 0) > 1;
    root.hidden = !several;
    shell.classList.toggle("with-runs", several);
    if (!several) return;
    keyed(list, state.runs, ({ run }) => run, create, (item, row) => {
      const link = item.firstChild;
      const [icon, lines] = link.children;
      const tier = tierOfRun(row);
      setAttribute(link, "class", tier);
      setAttribute(link, "aria-current", row.run === state.selected ? "page" : null);
      replaceShape(icon, tier);
      setText(lines.lastChild, healthInWords(row, now));
      setAttribute(link, "title", `${visible(row.run)}: ${compact(row.totals.steps)} steps`);
    });
  };
}
