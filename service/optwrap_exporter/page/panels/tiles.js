/**
 * The tiles with the key figures: streak, skipped steps, steps applied although non-finite, accumulation, gradient norm, steps,
 * and what trouble cost. A figure of one step says of which one, and how long ago that was.
 */

import { compact, duration, integer, norm, percent, plural, wireNumber } from "../format.js";
import { knowledge } from "../model.js";
import { FIGURES, LOST_REASONS } from "../vocabulary.js";
import { figureInWords, REASONS, KINDS, streakInWords } from "../words.js";
import { el, keyed, setAttribute, setText, shape } from "../dom.js";
import { meter, tile } from "./meter.js";
import { rateInWords } from "./run_row.js";
import { createShares, createSpark } from "./spark.js";

/** @import { State } from "../model.js" */

const STREAK = "Consecutive steps with non-finite gradients, up to the last step";

/** Of which step the gauges are. */
const lastStep = ({ last_step: step, last_step_time: time }, now) => figureInWords({ step, time }, now);

function createStreak(root) {
  const { box, value, unit, body, foot } = tile(root, "streak", "Non-finite streak", STREAK);
  const guard = meter(body, "Non-finite calls in a row that the guard counted, of the number that it rejects");
  return (run, _, now) => {
    const { not_finite_streak: streak, not_finite_streak_peak: peak, guard_not_finite_count: count, guard_not_finite_limit: limit } = run.gauges;
    const past = streak > limit;
    setText(value, integer(streak));
    setText(unit, limit === undefined ? "in a row" : past ? streakInWords(streak, limit) : `of ${integer(limit)}`);
    const used = count ?? streak ?? 0;
    guard(used, limit ?? 0);
    // The step is that of the streak, so it comes first: after the longest streak it would read as when that was.
    setText(foot, [lastStep(run, now), used === (streak ?? used) || past ? "" : `guard counts ${integer(used)}`, peak === undefined ? "" : `longest so far ${integer(peak)}`].filter(Boolean).join(" · "));
    const exhausted = used > 0 && used >= limit;
    setAttribute(box, "data-tone", exhausted ? "critical" : streak > 0 ? "warning" : null);
    const rule =
      limit === undefined
        ? "No guard reports a limit"
        : `apply_if_finite rejects ${integer(limit)} in a row and applies the next, unless on_limit="reject" is set`;
    setAttribute(box, "title", `${STREAK}: ${streakInWords(streak, limit)}. ${rule}`);
  };
}

function createSkipped(root) {
  const { value, unit, body } = tile(root, "skipped", "Skipped steps", "Steps whose gradients were discarded, by reason, over all attempts");
  const list = el("ul", { class: "reasons" });
  body.append(list);
  return (run) => {
    const { skipped, steps } = run.totals;
    const total = REASONS.reduce((sum, { key }) => sum + skipped[key], 0);
    setText(value, compact(total));
    setText(unit, `${percent(total, steps)} of steps`);
    keyed(
      list,
      REASONS.map((reason) => ({ ...reason, count: skipped[reason.key] })),
      ({ key }) => key,
      ({ key, kind, word, what }) =>
        el("li", { title: what, "data-reason": key }, shape(KINDS[kind].shape, `kind-${kind}`), el("b"), el("span", { text: word })),
      (item, { count }) => {
        setText(item.children[1], compact(count));
        item.classList.toggle("none", count === 0);
      },
    );
  };
}

function createApplied(root) {
  const { word, meaning } = FIGURES.accepted_not_finite;
  const { box, value, unit, foot } = tile(root, "accepted", word, `${meaning}, over all attempts`);
  return (run, state) => {
    const { accepted_not_finite: count } = run.totals;
    setText(value, compact(count));
    setText(unit, count === 1 ? "step" : "steps");
    // The incident that is open says where to roll back to; without one the run was rolled back, or somebody acknowledged it.
    const open = state.incidents.find(({ kind, state: of }) => kind === "gave_up" && of === "open");
    const clean = open?.last_clean_step ?? null;
    setText(foot, count === 0 ? "" : open ? `not rolled back${clean === null ? "" : ` · last clean step ${integer(clean)}`}` : "none open: rolled back or acknowledged");
    setAttribute(box, "data-tone", open ? "critical" : null);
  };
}

function createAccumulation(root) {
  const { box, value, unit, body, foot } = tile(
    root, "accumulation", "Accumulation", "Mini-steps in the current accumulation window, of those that make one gradient step",
  );
  const window = meter(body, "Mini-steps in the current accumulation window");
  return (run, _, now) => {
    const { mini_step: mini, every_k: k } = run.gauges;
    box.hidden = k === undefined;
    if (box.hidden) return;
    setText(value, integer(mini));
    setText(unit, `of ${integer(k)}`);
    window(mini ?? 0, k ?? 0);
    setText(foot, [plural(run.totals.gradient_steps, "gradient step"), lastStep(run, now)].filter(Boolean).join(" · "));
  };
}

function createNorm(root) {
  const { box, value, unit, body, foot } = tile(root, "norm-last", "Gradient norm", "Global L2 norm of the gradients of one step");
  const spark = createSpark(body);
  return (run, state, now) => {
    spark(state.steps);
    const limit = run.gauges.gradient_norm_limit;
    const last = wireNumber(run.norm?.value);
    setText(value, norm(last));
    setText(unit, limit === undefined ? "" : `skip limit ${norm(limit)}`);
    setText(foot, run.norm === null ? "no step yet" : figureInWords(run.norm, now));
    setAttribute(box, "data-tone", last !== null && (!Number.isFinite(last) || last >= limit) ? "warning" : null);
  };
}

function createSteps(root) {
  const { box, value, unit, body, foot } = tile(root, "steps", "Steps", "Calls of the optimizer's update in this run, over all attempts");
  const shares = createShares(body);
  return (run, state) => {
    const { steps_per_second: rate, unseen, unseen_not_finite: badUnseen, dropped, lost_steps: lost } = run;
    const { steps, not_finite_steps: bad, outcomes } = run.totals;
    shares(outcomes, steps);
    setText(value, compact(steps));
    // Whether it still takes steps is known only as long as the exporter answers and stores reports.
    setText(unit, rate === null || !knowledge(state).known ? "" : `${rateInWords(rate)} per s`);
    const unseenInWords = unseen ? ` · ${compact(unseen)} unseen${badUnseen ? ` (${compact(badUnseen)} non-finite)` : ""}` : "";
    // Without it the number does not fit the step that the run is at.
    const redone = lost.redone ? ` · of these ${compact(lost.redone)} taken again` : "";
    setText(foot, `${compact(bad)} non-finite${redone}${unseenInWords}`);
    setAttribute(
      box,
      "title",
      `${integer(steps)} calls of the optimizer's update, over all attempts. Unseen steps were taken before reporting began, or were never reported. ` +
        `The training processes dropped ${plural(dropped.steps + dropped.bad_steps, "step record")}; the totals are exact all the same`,
    );
  };
}

/** "7 min" of 7 min 46 s. */
const roughly = (time) => duration(time).split(" ").slice(0, 2).join(" ");

function createLost(root) {
  const { value, unit, body } = tile(root, "lost", FIGURES.lost_steps.word, `${FIGURES.lost_steps.meaning}, over all attempts`);
  const list = el("ul", { class: "reasons" });
  body.append(list);
  return ({ lost_steps: steps, lost_seconds: time, totals }) => {
    const total = Object.values(steps).reduce((sum, count) => sum + count, 0);
    setText(value, compact(total));
    setText(unit, `${percent(total, totals.steps)} of steps`);
    keyed(
      list,
      Object.keys(LOST_REASONS).filter((key) => steps[key] > 0),
      (key) => key,
      (key) => el("li", { title: LOST_REASONS[key].meaning, "data-lost": key }, el("b"), el("span")),
      (item, key) => {
        setText(item.firstChild, compact(steps[key]));
        setText(item.lastChild, `${LOST_REASONS[key].word}, ${roughly(time[key] ?? 0)}`);
      },
    );
  };
}

export function createTiles(root) {
  const creators = [createStreak, createSkipped, createApplied, createLost, createAccumulation, createNorm, createSteps];
  const tiles = /** @type {((run: any, state: State, now: number) => void)[]} */ (creators.map((create) => create(root)));
  return (/** @type {{state: State, now: number}} */ { state, now }) => {
    if (!state.detail) return;
    for (const update of tiles) update(state.detail, state, now);
  };
}
