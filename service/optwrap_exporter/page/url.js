/** The page's state in its address, so that a link shows what its sender saw. No DOM but `location` and a meta element. */

import { visible } from "./format.js";
import { DEFAULT_WINDOW } from "./model.js";

const count = (text) => (/^\d{1,15}$/.test(text ?? "") ? Number(text) : null);

/** What an address asks for; what it says wrongly is left out, and `wrong` says so in words. */
export function parse(search) {
  const query = new URLSearchParams(search);
  const [from, to] = [count(query.get("from")), count(query.get("to"))];
  const window = query.get("window");
  const wrong = [];
  for (const name of ["process", "step", "from", "to"]) {
    if (query.has(name) && count(query.get(name)) === null) wrong.push(`${name}=${visible(query.get(name))} is not a whole number.`);
  }
  if (query.has("window") && window !== "all" && !(count(window) >= 2)) {
    wrong.push(`window=${visible(window)} is neither “all” nor a number of steps from 2 up.`);
  }
  if (query.has("from") !== query.has("to")) wrong.push("A range of steps needs both from= and to=.");
  else if (from !== null && to !== null && from >= to) wrong.push(`There are no steps from ${from} to ${to}: to= has to be above from=.`);
  return {
    wrong,
    run: query.get("run"),
    process: count(query.get("process")),
    window: window === "all" ? "all" : Math.max(2, count(window) ?? DEFAULT_WINDOW),
    range: from !== null && to !== null && from < to ? [from, to] : null,
    step: count(query.get("step")),
  };
}

/** The address that shows `state`: everything at its default is left out. */
export function format(state) {
  const { window, range, step } = state.view;
  const query = new URLSearchParams();
  if (state.selected !== null) query.set("run", state.selected);
  if (state.wantedProcess !== null) query.set("process", state.wantedProcess);
  if (window !== DEFAULT_WINDOW) query.set("window", window);
  if (range) {
    query.set("from", Math.floor(range[0]));
    query.set("to", Math.ceil(range[1]));
  }
  if (step !== null) query.set("step", step);
  const text = query.toString();
  return text ? `?${text}` : location.pathname;
}

/** The address of a run's dashboard in Grafana, or null where this exporter was not told of one. */
export function grafanaOf(run) {
  const base = document.querySelector("meta[name=grafana]")?.content;
  return base ? `${base}/d/optwrap-run?${new URLSearchParams({ "var-run": run, "var-page": location.origin })}` : null;
}

/** The address of a run's own view. */
export function ofRun(run) {
  return `?${new URLSearchParams({ run })}`;
}
