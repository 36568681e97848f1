/** The page's state in its address, so that a link shows what its sender saw. No DOM but `location` and a meta element. */

import { dateTime, seconds, visible } from "./format.js";
import { DEFAULT_WINDOW } from "./model.js";

const count = (text) => (/^\d{1,15}$/.test(text ?? "") ? Number(text) : null);

/** Seconds since 1970, which may also be written as ISO 8601 has it; null for anything else. */
function moment(text) {
  if (/^\d{1,12}(\.\d{1,9})?$/.test(text ?? "")) return Number(text);
  return /^\d{4}-\d\d-\d\d/.test(text ?? "") ? seconds(text) : null;
}

/** What a place on each axis is, in an address: how it is read, and in words. */
const PLACES = {
  step: { read: count, words: "a whole number" },
  time: { read: moment, words: "a time: seconds since 1970, or like 2026-01-31T14:00:00Z" },
};

/** What an address asks for; what it says wrongly is left out, and `wrong` says so in words. */
export function parse(search) {
  const query = new URLSearchParams(search);
  const wrong = [];
  const axis = query.get("axis") ?? "step";
  if (!Object.hasOwn(PLACES, axis)) wrong.push(`axis=${visible(axis)} is neither “step” nor “time”.`);
  const place = Object.hasOwn(PLACES, axis) ? axis : "step";
  const value = (name, { read, words }) => {
    const found = read(query.get(name));
    if (query.has(name) && found === null) wrong.push(`${name}=${visible(query.get(name))} is not ${words}.`);
    return found;
  };
  const [process, step] = ["process", "step"].map((name) => value(name, PLACES.step));
  const [from, to] = ["from", "to"].map((name) => value(name, PLACES[place]));
  const at = value("at", PLACES.time);
  const window = query.get("window");
  if (query.has("window") && window !== "all" && !(count(window) >= 2)) {
    wrong.push(`window=${visible(window)} is neither “all” nor a number of steps from 2 up.`);
  }
  const inWords = place === "time" ? dateTime : String;
  if (query.has("from") !== query.has("to")) wrong.push("A range of steps needs both from= and to=.");
  else if (from !== null && to !== null && from >= to) {
    wrong.push(`There are no steps from ${inWords(from)} to ${inWords(to)}: to= has to be above from=.`);
  }
  return {
    wrong,
    run: query.get("run"),
    process,
    axis: place,
    window: window === "all" ? "all" : Math.max(2, count(window) ?? DEFAULT_WINDOW),
    range: from !== null && to !== null && from < to ? [from, to] : null,
    step,
    at: step === null ? null : at,
  };
}

/** The address that shows `state`: everything at its default is left out. */
export function format(state) {
  const { axis, window, range, step, at } = state.view;
  const query = new URLSearchParams();
  if (state.selected !== null) query.set("run", state.selected);
  if (state.wantedProcess !== null) query.set("process", state.wantedProcess);
  if (axis !== "step") query.set("axis", axis);
  if (window !== DEFAULT_WINDOW) query.set("window", window);
  if (range) {
    // Whole steps, or milliseconds, with nothing of the range cut off.
    const parts = axis === "time" ? 1_000 : 1;
    query.set("from", Math.floor(range[0] * parts) / parts);
    query.set("to", Math.ceil(range[1] * parts) / parts);
  }
  if (step !== null) query.set("step", step);
  if (step !== null && axis === "time" && at !== null) query.set("at", at);
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
