/** Keeps the page's state in its address, so that a link shows the same view to others. */

import { dateTime, seconds, visible } from "./format.js";
import { DEFAULT_WINDOW } from "./model.js";

const wholeNumber = (text) => (/^\d{1,15}$/.test(text ?? "") ? Number(text) : null);

/** A time as seconds since 1970, written so or in ISO 8601; null for anything else. */
function timeOf(text) {
  if (/^\d{1,12}(\.\d{1,9})?$/.test(text ?? "")) return Number(text);
  return /^\d{4}-\d\d-\d\d/.test(text ?? "") ? seconds(text) : null;
}

/** How a position on each axis is written in an address, and what an error message calls it. */
const POSITIONS = {
  step: { read: wholeNumber, words: "a whole number" },
  time: { read: timeOf, words: "a time. Write seconds since 1970, or for example 2026-01-31T14:00:00Z" },
};

/** Reads a query string. Wrong values are ignored, and `wrong` has a message for each of them. */
export function parse(search) {
  const query = new URLSearchParams(search);
  const wrong = [];
  const axis = query.get("axis") ?? "step";
  if (!Object.hasOwn(POSITIONS, axis)) wrong.push(`axis=${visible(axis)} is not “step” or “time”.`);
  const knownAxis = Object.hasOwn(POSITIONS, axis) ? axis : "step";
  const value = (name, { read, words }) => {
    const found = read(query.get(name));
    if (query.has(name) && found === null) wrong.push(`${name}=${visible(query.get(name))} is not ${words}.`);
    return found;
  };
  const [process, step] = ["process", "step"].map((name) => value(name, POSITIONS.step));
  const [from, to] = ["from", "to"].map((name) => value(name, POSITIONS[knownAxis]));
  const at = value("at", POSITIONS.time);
  const window = query.get("window");
  if (query.has("window") && window !== "all" && !(wholeNumber(window) >= 2)) {
    wrong.push(`window=${visible(window)} is not “all” or a number of steps, 2 or more.`);
  }
  const inWords = knownAxis === "time" ? dateTime : String;
  if (query.has("from") !== query.has("to")) wrong.push("A range needs both from= and to=.");
  else if (from !== null && to !== null && from >= to) {
    wrong.push(`The range from ${inWords(from)} to ${inWords(to)} is empty: to= must be greater than from=.`);
  }
  return {
    wrong,
    run: query.get("run"),
    process,
    axis: knownAxis,
    window: window === "all" ? "all" : Math.max(2, wholeNumber(window) ?? DEFAULT_WINDOW),
    range: from !== null && to !== null && from < to ? [from, to] : null,
    step,
    at: step === null ? null : at,
  };
}

/** The query string that shows `state`. Defaults are left out. */
export function format(state) {
  const { axis, window, range, step, at } = state.view;
  const query = new URLSearchParams();
  if (state.selected !== null) query.set("run", state.selected);
  if (state.wantedProcess !== null) query.set("process", state.wantedProcess);
  if (axis !== "step") query.set("axis", axis);
  if (window !== DEFAULT_WINDOW) query.set("window", window);
  if (range) {
    // Whole steps or milliseconds, rounded outwards so that the whole range stays in view.
    const parts = axis === "time" ? 1_000 : 1;
    query.set("from", Math.floor(range[0] * parts) / parts);
    query.set("to", Math.ceil(range[1] * parts) / parts);
  }
  if (step !== null) query.set("step", step);
  if (step !== null && axis === "time" && at !== null) query.set("at", at);
  const text = query.toString();
  return text ? `?${text}` : location.pathname;
}

/** The address of the run's Grafana dashboard; null if the exporter has no --grafana-url. */
export function grafanaOf(run) {
  const base = document.querySelector("meta[name=grafana]")?.content;
  return base ? `${base}/d/optwrap-run?${new URLSearchParams({ "var-run": run, "var-page": location.origin })}` : null;
}

/** The query string that shows a run with default settings. */
export function ofRun(run) {
  return `?${new URLSearchParams({ run })}`;
}
