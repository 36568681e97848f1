/** The page's state in its address, so that a link shows what its sender saw. No DOM but `location` and a meta element. */

import { dateTime, seconds, visible } from "./format.js";
import { DEFAULT_WINDOW } from "./view.js";

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

/** What an address asks for. Whatever is wrong is left out; `wrong` says so in sentences. */
export function parse(search) {
  const query = new URLSearchParams(search);
  const wrong = /** @type {string[]} */ ([]);
  const axis = axisOf(query, wrong);
  const step = placeOf(query, "step", PLACES.step, wrong);
  const at = placeOf(query, "at", PLACES.time, wrong);
  return {
    wrong,
    run: query.get("run"),
    process: placeOf(query, "process", PLACES.step, wrong),
    axis,
    window: windowOf(query, wrong),
    range: rangeOf(query, axis, wrong),
    step,
    at: step === null ? null : at,
  };
}

function axisOf(query, wrong) {
  const axis = query.get("axis") ?? "step";
  if (Object.hasOwn(PLACES, axis)) return axis;
  wrong.push(`axis=${visible(axis)} is neither “step” nor “time”.`);
  return "step";
}

/** The value of `name`, read as `place` says; null where there is none or it is wrong. */
function placeOf(query, name, { read, words }, wrong) {
  const text = query.get(name);
  const value = read(text);
  if (text !== null && value === null) wrong.push(`${name}=${visible(text)} is not ${words}.`);
  return value;
}

function windowOf(query, wrong) {
  const text = query.get("window");
  if (text === null || text === "all") return text ?? DEFAULT_WINDOW;
  const steps = count(text);
  if (steps !== null && steps >= 2) return steps;
  wrong.push(`window=${visible(text)} is neither “all” nor a number of steps from 2 up.`);
  return DEFAULT_WINDOW;
}

function rangeOf(query, axis, wrong) {
  const [from, to] = ["from", "to"].map((name) => placeOf(query, name, PLACES[axis], wrong));
  const inWords = axis === "time" ? dateTime : String;
  if (query.has("from") !== query.has("to")) wrong.push("A range of steps needs both from= and to=.");
  if (from === null || to === null) return null;
  if (from < to) return [from, to];
  wrong.push(`There are no steps from ${inWords(from)} to ${inWords(to)}: to= has to be above from=.`);
  return null;
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
    query.set("from", String(Math.floor(range[0] * parts) / parts));
    query.set("to", String(Math.ceil(range[1] * parts) / parts));
  }
  if (step !== null) query.set("step", step);
  if (step !== null && axis === "time" && at !== null) query.set("at", at);
  const text = query.toString();
  return text ? `?${text}` : location.pathname;
}

/** The address of a run's dashboard in Grafana, or null where this exporter was not told of one. */
export function grafanaOf(run) {
  const base = document.querySelector("meta[name=grafana]")?.getAttribute("content");
  return base ? `${base}/d/optwrap-run?${new URLSearchParams({ "var-run": run, "var-page": location.origin })}` : null;
}

/** The address of a run's own view. */
export function ofRun(run) {
  return `?${new URLSearchParams({ run })}`;
}
