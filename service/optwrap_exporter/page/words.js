/** The vocabulary of the page: each health and each outcome with its words, its colour's name and its shape. */

import { integer, plural, visible } from "./format.js";

/** Tiers, worst first. A tier gives colour and shape; the words are the health's own. */
export const TIERS = ["critical", "warning", "idle", "good"];

const guardLimit = (run) => run.gauges?.guard_not_finite_limit;

/** Every health the exporter knows, worst first within its tier: `word` for lists, `says` for the outcome. */
export const HEALTH = {
  conflict: { tier: "critical", word: "Conflict", says: () => "Two live attempts report under this one name." },
  gave_up: {
    tier: "critical",
    word: "Guard gave up",
    says: (run) =>
      `Values that are not finite reached the optimizer: ${plural(run.totals?.accepted_not_finite ?? 0, "step")} in all.`,
  },
  failed: { tier: "critical", word: "Failed", says: () => "The training loop ended with an exception." },
  stale: { tier: "critical", word: "No reports", says: () => "The process has stopped reporting: killed, hung hard, or cut off." },
  stalled: { tier: "critical", word: "Stalled", says: () => "Reports arrive, but no step has been taken for long." },
  starved: {
    tier: "critical",
    word: "Starved",
    says: () => "Steps arrive, but none of them becomes a gradient step: the parameters do not move.",
  },
  skipping: {
    tier: "warning",
    word: "Skipping",
    says: (run) => {
      const streak = run.gauges?.not_finite_streak ?? 0;
      const limit = guardLimit(run);
      const now = streak > 0 ? `${plural(streak, "gradient")} in a row not finite.` : "Gradients were not finite.";
      return limit === undefined ? now : `${now} The guard's limit is ${integer(limit)} in a row.`;
    },
  },
  degraded: { tier: "warning", word: "Process missing", says: () => "Some process of this run does not report." },
  starting: { tier: "idle", word: "Starting", says: () => "Connected; no step taken yet. Compiling takes its time." },
  finished: { tier: "idle", word: "Finished", says: (run) => `The run closed in order after ${plural(run.totals?.steps ?? 0, "step")}.` },
  ok: { tier: "good", word: "Healthy", says: () => "Steps arrive, and the gradients are finite." },
};

const ORDER = Object.keys(HEALTH);

/** The entry of a health; one that this page does not know is a warning under its own name. */
export function health(name) {
  return HEALTH[name] ?? { tier: "warning", word: String(name), says: () => "" };
}

/** Sorts healths worst first. */
export function compareHealth(a, b) {
  const byTier = TIERS.indexOf(health(a).tier) - TIERS.indexOf(health(b).tier);
  return byTier || ORDER.indexOf(a) - ORDER.indexOf(b);
}

/**
 * What can become of a step. `bad` ones are marked on the chart's axis; their order is how bad they are, worst first,
 * which decides what is seen where several steps share a pixel.
 */
export const KINDS = {
  accepted_not_finite: { bad: true, word: "accepted, not finite", shape: "bang", what: "the optimizer consumed values that are not finite" },
  skipped_not_finite: { bad: true, word: "skipped, not finite", shape: "cross", what: "gradients not finite: the step was skipped" },
  accumulated_not_finite: {
    bad: true,
    word: "accumulated, not finite",
    shape: "ring",
    what: "gradients not finite were taken into the accumulation window",
  },
  skipped_other: { bad: true, word: "skipped, other", shape: "diamond", what: "skipped by the optimizer's own skip function" },
  skipped_large: { bad: true, word: "skipped, large", shape: "triangle", what: "gradient norm at or above its limit: the step was skipped" },
  applied: { bad: false, word: "gradient step", shape: "bar", what: "the optimizer moved the parameters" },
  accumulated: { bad: false, word: "accumulated", shape: "low", what: "added to the accumulation window" },
};

const BADNESS = Object.keys(KINDS);

/** How bad a kind is, 0 the worst; one that this page does not know is taken for the worst. */
export function badness(kind) {
  return Math.max(0, BADNESS.indexOf(kind));
}

/** Whether steps of this kind are marked; a kind that this page does not know is shown rather than hidden. */
export function isBad(kind) {
  return KINDS[kind]?.bad ?? true;
}

/** The kind of a step record: its outcome, except that an accumulated gradient may itself be not finite. */
export function kindOf(outcome, finite) {
  if (finite) return outcome;
  return outcome === "accumulated" ? "accumulated_not_finite" : outcome === "applied" ? "accepted_not_finite" : outcome;
}

/** The replica whose own gradients were the first not finite, as an event's detail has it; null where none is named. */
export function fromReplica({ replica }) {
  if (!replica) return null;
  const process = replica.process === undefined ? null : `process ${integer(replica.process)}`;
  const where = [process, replica.device ? visible(replica.device) : null].filter(Boolean).join(", ");
  const count = replica.of ? `${integer(replica.count)} of ${integer(replica.of)}` : `${integer(replica.count)} in all`;
  return `first from replica ${integer(replica.replica)}${where ? `: ${where}` : ""}; ${count}`;
}

/** Reasons of a skip, as the totals name them, and the kind each is drawn as. */
export const REASONS = [
  { key: "not_finite", kind: "skipped_not_finite", word: "not finite", what: "NaN or Inf among the gradients" },
  { key: "large", kind: "skipped_large", word: "large", what: "the gradients' norm reached its limit" },
  { key: "other", kind: "skipped_other", word: "other", what: "skipped by a function of the training's own" },
];

/** Shapes in a box of 10 by 10: one path for the canvas and for SVG. */
export const SHAPES = {
  cross: { d: "M1.6 1.6 L8.4 8.4 M8.4 1.6 L1.6 8.4", stroke: true },
  ring: { d: "M5 1.4 A3.6 3.6 0 1 1 4.99 1.4 Z", stroke: true },
  triangle: { d: "M5 0.8 L9.5 9 L0.5 9 Z" },
  diamond: { d: "M5 0.4 L9.6 5 L5 9.6 L0.4 5 Z" },
  bang: { d: "M0.6 0.6 H9.4 V9.4 H0.6 Z M4.2 2 V5.7 H5.8 V2 Z M4.2 6.6 V8.1 H5.8 V6.6 Z" },
  bar: { d: "M3 0.5 H7 V9.5 H3 Z" },
  low: { d: "M3 5 H7 V9.5 H3 Z" },
  line: { d: "M0.5 7 L3.5 3 L6.5 6 L9.5 2.5", stroke: true },
  dash: { d: "M0 5 H4 M6 5 H10", stroke: true },
  // the tiers
  critical: { d: "M3 0.2 H7 L9.8 3 V7 L7 9.8 H3 L0.2 7 V3 Z M4.3 2.2 V5.8 H5.7 V2.2 Z M4.3 6.7 V8.1 H5.7 V6.7 Z" },
  warning: { d: "M5 0.5 L9.8 9.3 H0.2 Z M4.4 3.6 V6.4 H5.6 V3.6 Z M4.4 7.1 V8.3 H5.6 V7.1 Z" },
  idle: { d: "M5 0.6 A4.4 4.4 0 1 1 4.99 0.6 Z M5 2.2 A2.8 2.8 0 1 0 5.01 2.2 Z" },
  good: { d: "M5 0.2 A4.8 4.8 0 1 1 4.99 0.2 Z M4.3 7.2 L8 3.5 L7.1 2.6 L4.3 5.4 L2.9 4 L2 4.9 Z" },
};
