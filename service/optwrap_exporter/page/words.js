/** Colours, shapes and sentences of the page. What each name of the API is called is in vocabulary.js. */

import { duration, durationSince, integer, plural, seconds, visible } from "./format.js";
import { HEALTHS, LOST_REASONS, OUTCOMES, REASONS as SKIPS, STORE_CONDITIONS } from "./vocabulary.js";

/** Health tiers, worst first. A tier has a colour and a shape. */
export const TIERS = ["critical", "warning", "idle", "good"];

const ORDER = Object.keys(HEALTHS);

/**
 * The entry of a health. An unknown health is a warning under its own name.
 *
 * @param {string} name
 */
export function health(name) {
  return HEALTHS[name] ?? { tier: "warning", word: visible(name), meaning: "", past: false };
}

/**
 * The tier in which a run is shown: that of its health, but trouble that somebody acknowledged is idle, and a run with steps
 * that nobody observed is never plainly good.
 *
 * @param {{health: string, acknowledged?: boolean, unseen?: number, unseen_not_finite?: number}} run
 */
export function tierOfRun(run) {
  if (run.acknowledged) return "idle";
  const { tier } = health(run.health);
  if (!run.unseen || tier === "critical" || tier === "warning") return tier;
  return run.unseen_not_finite ? "warning" : "idle";
}

/** "39 steps were not observed, 13 of them non-finite." Empty if all were observed. */
export function unseenInWords({ unseen = 0, unseen_not_finite: bad = 0 }) {
  if (!unseen) return "";
  return `${plural(unseen, "step")} ${unseen === 1 ? "was" : "were"} not observed${bad ? `, ${integer(bad)} of them non-finite` : ""}.`;
}

/** Compares two healths for sorting, worst first. */
export function compareHealth(a, b) {
  const byTier = TIERS.indexOf(health(a).tier) - TIERS.indexOf(health(b).tier);
  return byTier || ORDER.indexOf(a) - ORDER.indexOf(b);
}

/**
 * "for 8 min" or, of a health that is one event in the past, "8 min ago". Whether a health lasts is known only as long as the
 * exporter answers and stores reports: `until`, if it does not.
 *
 * @param {any} row
 * @param {number} now
 * @param {number | null} until
 */
export function healthAge({ health: name, since }, now, until = null) {
  return health(name).past ? `${durationSince(since, now)} ago` : `for ${durationSince(since, until ?? now)}`;
}

/** "Healthy for 8 min", "Failed 8 min ago". @see healthAge */
export function healthInWords(row, now, /** @type {number | null} */ until = null) {
  return `${health(row.health).word} ${healthAge(row, now, until)}`;
}

/** A non-finite streak and its limit: "3", "3 of 5", "22 past the limit of 5". `limit` is undefined without a guard. */
export function streakInWords(streak, limit) {
  if (!Number.isFinite(streak)) return "–";
  if (limit === undefined || limit === null) return integer(streak);
  return streak > limit ? `${integer(streak - limit)} past the limit of ${integer(limit)}` : `${integer(streak)} of ${integer(limit)}`;
}

/** What was lost, by reason: "12 skipped, 40 taken again". Empty if nothing was. `inWords` writes one number. */
export function lostInWords(lost, inWords = integer) {
  const parts = Object.entries(LOST_REASONS).filter(([reason]) => lost?.[reason] > 0);
  return parts.map(([reason, { word }]) => `${inWords(lost[reason])} ${word}`).join(", ");
}

/** Which step, and how long ago: "at step 605, 4 s ago". Takes a figure of the API, or anything with its step and time. */
export function figureInWords({ step, time }, now) {
  const age = seconds(time) === null ? "" : `, ${duration(now - (seconds(time) ?? now))} ago`;
  return step === null || step === undefined ? age.slice(2) : `at step ${integer(step)}${age}`;
}

/**
 * The kinds of steps on the chart, worst first. Where several steps share a pixel, the worst one is visible. A step is `bad`
 * if it was skipped or its gradients were non-finite; the chart marks bad steps on its axis.
 */
export const KINDS = Object.fromEntries(
  Object.entries({
    accepted_not_finite: { bad: true, shape: "bang" },
    skipped_not_finite: { bad: true, shape: "cross" },
    accumulated_not_finite: { bad: true, shape: "ring" },
    skipped_other: { bad: true, shape: "diamond" },
    skipped_large: { bad: true, shape: "triangle" },
    applied: { bad: false, shape: "bar" },
    accumulated: { bad: false, shape: "low" },
  }).map(([kind, look]) => [kind, { ...look, word: OUTCOMES[kind].word, what: OUTCOMES[kind].meaning }]),
);

const SEVERITIES = Object.keys(KINDS);

/** The rank of a kind, 0 the worst. An unknown kind ranks as the worst. */
export function severity(kind) {
  return Math.max(0, SEVERITIES.indexOf(kind));
}

/** Whether the chart marks steps of this kind. An unknown kind is marked. */
export function isBad(kind) {
  return KINDS[kind]?.bad ?? true;
}

/** The kind of a step: its outcome, and for an accumulated or applied step also whether its gradients were finite. */
export function kindOf(outcome, finite) {
  if (finite) return outcome;
  return outcome === "accumulated" ? "accumulated_not_finite" : outcome === "applied" ? "accepted_not_finite" : outcome;
}

/** The first replica with non-finite gradients of its own, from an event's detail; null if the event names none. */
export function fromReplica({ replica }) {
  if (!replica) return null;
  const process = (replica.process ?? null) === null ? null : `process ${integer(replica.process)}`;
  const where = [process, replica.device ? visible(replica.device) : null].filter(Boolean).join(", ");
  const count = replica.of ? `${integer(replica.count)} of ${plural(replica.of, "replica")}` : plural(replica.count, "replica");
  return `first from replica ${integer(replica.replica)}${where ? ` (${where})` : ""}, ${count} non-finite`;
}

/** The reasons of a skip: the key in the totals, the kind on the chart, and the words. */
export const REASONS = ["not_finite", "large", "other"].map((key) => ({
  key,
  kind: `skipped_${key}`,
  word: SKIPS[key].word,
  what: SKIPS[key].meaning,
}));

/** SVG paths in a box of 10 by 10, for the canvas and for SVG elements. */
export const SHAPES = {
  cross: { d: "M1.6 1.6 L8.4 8.4 M8.4 1.6 L1.6 8.4", stroke: true },
  ring: { d: "M5 1.4 A3.6 3.6 0 1 1 4.99 1.4 Z", stroke: true },
  triangle: { d: "M5 0.8 L9.5 9 L0.5 9 Z" },
  diamond: { d: "M5 0.4 L9.6 5 L5 9.6 L0.4 5 Z" },
  bang: { d: "M0.6 0.6 H9.4 V9.4 H0.6 Z M4.2 2 V5.7 H5.8 V2 Z M4.2 6.6 V8.1 H5.8 V6.6 Z" },
  bar: { d: "M3 0.5 H7 V9.5 H3 Z" },
  low: { d: "M3 5 H7 V9.5 H3 Z" },
  block: { d: "M0 2.5 H10 V7.5 H0 Z" },
  line: { d: "M0.5 7 L3.5 3 L6.5 6 L9.5 2.5", stroke: true },
  dash: { d: "M0 5 H4 M6 5 H10", stroke: true },
  // Health tiers.
  critical: { d: "M3 0.2 H7 L9.8 3 V7 L7 9.8 H3 L0.2 7 V3 Z M4.3 2.2 V5.8 H5.7 V2.2 Z M4.3 6.7 V8.1 H5.7 V6.7 Z" },
  warning: { d: "M5 0.5 L9.8 9.3 H0.2 Z M4.4 3.6 V6.4 H5.6 V3.6 Z M4.4 7.1 V8.3 H5.6 V7.1 Z" },
  idle: { d: "M5 0.6 A4.4 4.4 0 1 1 4.99 0.6 Z M5 2.2 A2.8 2.8 0 1 0 5.01 2.2 Z" },
  good: { d: "M5 0.2 A4.8 4.8 0 1 1 4.99 0.2 Z M4.3 7.2 L8 3.5 L7.1 2.6 L4.3 5.4 L2.9 4 L2 4.9 Z" },
};

export const storeCondition = (name) => STORE_CONDITIONS[name]?.word ?? visible(name);
