/** The choice of another run, or of an earlier attempt, that is drawn beside the run. */

import { clock, integer, seconds, visible } from "../format.js";
import { el, setAttribute, setText } from "../dom.js";

/** @import { State } from "../model.js" */

/** The most runs to choose from. A link may name any other. */
const MOST = 300;

/** Creates the choice. `onChoose` gets what to compare with, as in the view, or null. */
export function createComparison({ onChoose }) {
  const attempts = el("optgroup", { label: "Attempts of this run" });
  const runs = el("optgroup", { label: "Other runs" });
  const none = el("option", { value: "", text: "Compare with…" });
  const select = el("select", { class: "compare", "aria-label": "Compare with another run or attempt" }, none, attempts, runs);
  const node = el("span", {}, select);
  select.addEventListener("change", () => onChoose(select.value === "" ? null : select.value));
  let shown = "";

  /** Returns what the compared line is called. */
  function update(/** @type {State} */ state, /** @type {boolean} */ failed) {
    const { compare, axis } = state.view;
    const options = { attempts: attemptsOf(state), runs: runsOf(state) };
    const all = [...options.attempts, ...options.runs];
    const chosen = all.find(({ value }) => value === compare);
    const key = JSON.stringify([options, compare]);
    if (key !== shown) {
      shown = key;
      if (compare !== null && !chosen) options.runs.unshift({ value: compare, text: nameOf(compare) });
      for (const [group, found] of [[attempts, options.attempts], [runs, options.runs]]) {
        group.replaceChildren(...found.map(({ value, text }) => el("option", { value, text })));
        group.hidden = found.length === 0;
      }
      select.value = compare ?? "";
    }
    node.hidden = all.length === 0 && compare === null;
    select.disabled = axis === "time";
    setAttribute(select, "title", axis === "time" ? "Runs are compared by step: choose “by step”" : "Draws its norm beside this run's, by step");
    setText(none, compare === null ? "Compare with…" : "Compare with nothing");
    const name = compare === null ? "" : (chosen?.text ?? nameOf(compare));
    return failed ? `${name}: no steps found` : name;
  }

  return { node, update };
}

const nameOf = (compare) => visible(compare.slice(compare.indexOf(":") + 1));

function attemptsOf({ detail }) {
  const before = (detail.attempts_total ?? detail.attempts.length) - detail.attempts.length;
  return detail.attempts.slice(0, -1).map(({ attempt, since }, i) => ({
    value: `attempt:${attempt}`,
    text: `attempt ${integer(before + i + 1)}, ${clock(seconds(since))}`,
  }));
}

function runsOf({ runs, selected }) {
  const others = (runs ?? []).filter(({ run }) => run !== selected).map(({ run }) => run);
  return others.sort().slice(0, MOST).map((run) => ({ value: `run:${run}`, text: visible(run) }));
}
