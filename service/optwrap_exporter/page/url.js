/** Keeps the page's state in its address, so that a link shows the same view to others. */

import { dateTime, seconds, visible } from "./format.js";
import { DEFAULT_WINDOW } from "./view.js";

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
  const wrong = /** @type {string[]} */ ([]);
  const axis = axisOf(query, wrong);
  const step = positionOf(query, "step", POSITIONS.step, wrong);
  const at = positionOf(query, "at", POSITIONS.time, wrong);
  return {
    wrong,
    run: query.get("run"),
    process: positionOf(query, "process", POSITIONS.step, wrong),
    axis,
    window: windowOf(query, wrong),
    range: rangeOf(query, axis, wrong),
    step,
    at: step === null ? null : at,
    compare: compareOf(query, wrong),
  };
}

function compareOf(query, wrong) {
  const text = query.get("compare");
  if (text === null || /^(run|attempt):./.test(text)) return text;
  wrong.push(`compare=${visible(text)} is not “run:” with a run's name, or “attempt:” with an attempt's.`);
  return null;
}

function axisOf(query, wrong) {
  const axis = query.get("axis") ?? "step";
  if (Object.hasOwn(POSITIONS, axis)) return axis;
  wrong.push(`axis=${visible(axis)} is not “step” or “time”.`);
  return "step";
}

/** The value of `name`, read by `read`; null if it is absent or wrong. */
function positionOf(query, name, { read, words }, wrong) {
  const text = query.get(name);
  const value = read(text);
  if (text !== null && value === null) wrong.push(`${name}=${visible(text)} is not ${words}.`);
  return value;
}

function windowOf(query, wrong) {
  const text = query.get("window");
  if (text === null || text === "all") return text ?? DEFAULT_WINDOW;
  const steps = wholeNumber(text);
  if (steps !== null && steps >= 2) return steps;
  wrong.push(`window=${visible(text)} is not “all” or a number of steps, 2 or more.`);
  return DEFAULT_WINDOW;
}

function rangeOf(query, axis, wrong) {
  const [from, to] = ["from", "to"].map((name) => positionOf(query, name, POSITIONS[axis], wrong));
  const inWords = axis === "time" ? dateTime : String;
  if (query.has("from") !== query.has("to")) wrong.push("A range needs both from= and to=.");
  if (from === null || to === null) return null;
  if (from < to) return [from, to];
  wrong.push(`The range from ${inWords(from)} to ${inWords(to)} is empty: to= must be greater than from=.`);
  return null;
}

/** The query string that shows `state`. Defaults are left out. */
export function format(state) {
  const { axis, window, range, step, at, compare } = state.view;
  const query = new URLSearchParams();
  if (state.selected !== null) query.set("run", state.selected);
  if (state.wantedProcess !== null) query.set("process", state.wantedProcess);
  if (axis !== "step") query.set("axis", axis);
  if (window !== DEFAULT_WINDOW) query.set("window", window);
  if (range) {
    // Whole steps or milliseconds, rounded outwards so that the whole range stays in view.
    const parts = axis === "time" ? 1_000 : 1;
    query.set("from", String(Math.floor(range[0] * parts) / parts));
    query.set("to", String(Math.ceil(range[1] * parts) / parts));
  }
  if (step !== null) query.set("step", step);
  if (step !== null && axis === "time" && at !== null) query.set("at", at);
  if (compare !== null) query.set("compare", compare);
  const text = query.toString();
  return text ? `?${text}` : location.pathname;
}

/** The address of the run's Grafana dashboard; null if the exporter has no --grafana-url. */
export function grafanaOf(run) {
  const base = document.querySelector("meta[name=grafana]")?.getAttribute("content");
  return base ? `${base}/d/optwrap-run?${new URLSearchParams({ "var-run": run })}` : null;
}

/** The address of a runbook; null if there is none for `anchor`. */
export function runbookOf(anchor) {
  return anchor ? `/page/runbooks.html#${encodeURIComponent(anchor)}` : null;
}

/** Whether this exporter hears only the processes of its own host, so that one it never heard is not missing. */
export function hostOnly() {
  return document.querySelector("meta[name=scope]")?.getAttribute("content") === "host";
}

/** The query string that shows a run with default settings. */
export function ofRun(run) {
  return `?${new URLSearchParams({ run })}`;
}
