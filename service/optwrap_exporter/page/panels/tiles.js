/** The tiles with the key figures: streak, skipped steps, accumulation, gradient norm, steps. */

import { compact, integer, norm, percent, plural, wireNumber } from "../format.js";
import { REASONS, KINDS } from "../words.js";
import { el, keyed, setAttribute, setText, shape } from "../dom.js";
import { createShares, createSpark } from "./spark.js";

/** A meter with more parts than this is drawn as one bar. */
const CELLS = 24;

function tile(root, name, label, tooltip) {
  const value = el("span", { class: "value" });
  const unit = el("span", { class: "unit" });
  const body = el("div", { class: "body" });
  const foot = el("p", { class: "foot" });
  const box = el(
    "div",
    { class: `tile ${name}`, title: tooltip },
    el("h2", { text: label }),
    el("p", { class: "figure" }, value, unit),
    body,
    foot,
  );
  root.append(box);
  return { box, value, unit, body, foot };
}

/** Returns a function (filled, of) that draws a meter of `of` parts, `filled` of them full. It is hidden if `of` is 0. */
function meter(body, label) {
  const bar = el("div", { class: "meter", role: "meter", "aria-label": label, "aria-valuemin": 0 });
  body.append(bar);
  return (filled, of) => {
    const known = of > 0;
    bar.hidden = !known;
    if (!known) return;
    const cells = of <= CELLS ? of : 1;
    keyed(bar, Array.from({ length: cells }, (_, i) => i), (i) => i, () => el("span", {}, el("span")), (cell, i) => {
      const share = cells === 1 ? filled / of : Number(i < filled);
      cell.firstChild.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
    });
    setAttribute(bar, "aria-valuemax", of);
    setAttribute(bar, "aria-valuenow", Math.min(filled, of));
    setAttribute(bar, "aria-valuetext", `${integer(filled)} of ${integer(of)}`);
  };
}

const STREAK = "Consecutive steps with non-finite gradients, up to the last step";

function createStreak(root) {
  const { box, value, unit, body, foot } = tile(
    root, "streak", "Non-finite streak", STREAK,
  );
  const guard = meter(body, "Non-finite calls in a row that the guard counted, of the number that it rejects");
  return (run) => {
    const { not_finite_streak: streak, not_finite_streak_peak: peak, guard_not_finite_count: count, guard_not_finite_limit: limit } =
      run.gauges ?? {};
    setText(value, integer(streak));
    setText(unit, limit === undefined ? "in a row" : `of ${integer(limit)}`);
    const used = count ?? streak ?? 0;
    guard(used, limit ?? 0);
    setText(foot, `longest ${integer(peak)}${used === (streak ?? used) ? "" : ` · guard counts ${integer(used)}`}`);
    const exhausted = used > 0 && used >= limit;
    setAttribute(box, "data-tone", exhausted ? "critical" : streak > 0 ? "warning" : null);
    setAttribute(
      box,
      "title",
      limit === undefined
        ? `${STREAK}. No guard reports a limit`
        : `${STREAK}. apply_if_finite rejects ${integer(limit)} in a row and applies the next, unless on_limit="reject" is set`,
    );
  };
}

function createSkipped(root) {
  const { box, value, unit, body } = tile(
    root, "skipped", "Skipped steps", "Steps whose gradients were discarded, by reason",
  );
  const list = el("ul", { class: "reasons" });
  body.append(list);
  return (run) => {
    const { skipped = {}, steps = 0, accepted_not_finite: accepted = 0 } = run.totals ?? {};
    const total = REASONS.reduce((sum, { key }) => sum + (skipped[key] ?? 0), 0);
    setText(value, compact(total));
    setText(unit, `${percent(total, steps)} of steps`);
    const rows = REASONS.map((reason) => ({ ...reason, count: skipped[reason.key] ?? 0 }));
    if (accepted > 0) rows.push({ key: "accepted", kind: "accepted_not_finite", word: "applied", what: KINDS.accepted_not_finite.what, count: accepted });
    keyed(
      list,
      rows,
      ({ key }) => key,
      ({ key, kind, word, what }) =>
        el("li", { title: what, "data-reason": key }, shape(KINDS[kind].shape, `kind-${kind}`), el("b"), el("span", { text: word })),
      (item, { count }) => {
        setText(item.children[1], compact(count));
        item.classList.toggle("none", count === 0);
      },
    );
    setAttribute(box, "data-tone", accepted > 0 ? "critical" : null);
  };
}

function createAccumulation(root) {
  const { value, unit, body, foot } = tile(
    root, "accumulation", "Accumulation", "Mini-steps in the current accumulation window, of those that make one gradient step",
  );
  const window = meter(body, "Mini-steps in the current accumulation window");
  return (run) => {
    const { mini_step: mini, every_k: k } = run.gauges ?? {};
    const accumulates = k !== undefined;
    setText(value, accumulates ? integer(mini) : "none");
    setText(unit, accumulates ? `of ${integer(k)}` : "");
    window(mini ?? 0, k ?? 0);
    setText(foot, plural(run.totals?.gradient_steps ?? 0, "gradient step"));
  };
}

function createNorm(root) {
  const { box, value, unit, body, foot } = tile(root, "norm-last", "Gradient norm", "Global L2 norm of the gradients of the last step");
  const spark = createSpark(body);
  return (run, state) => {
    spark(state.steps);
    const last = wireNumber(run.gauges?.gradient_norm);
    const limit = run.gauges?.gradient_norm_limit;
    setText(value, norm(last));
    const step = state.steps.latest;
    setText(unit, limit === undefined ? "" : `limit ${norm(limit)}`);
    setText(foot, step === undefined ? "no step yet" : `at step ${compact(step)}`);
    setAttribute(box, "data-tone", last !== null && (!Number.isFinite(last) || last >= limit) ? "warning" : null);
  };
}

function createSteps(root) {
  const { box, value, unit, body, foot } = tile(root, "steps", "Steps", "Calls of the optimizer's update in this run, over all attempts");
  const shares = createShares(body);
  return (run, state) => {
    const rate = state.steps.rate();
    const { steps, not_finite_steps: bad, outcomes } = run.totals ?? {};
    shares(outcomes, steps);
    setText(value, compact(steps));
    setText(unit, rate === null || run.health === "finished" ? "" : `${rate >= 10 ? compact(Math.round(rate)) : rate.toPrecision(2)} per s`);
    const badUnseen = run.unseen_not_finite ? ` (${compact(run.unseen_not_finite)} non-finite)` : "";
    const unseen = run.unseen ? ` · ${compact(run.unseen)} unseen${badUnseen}` : "";
    setText(foot, `${compact(bad ?? 0)} non-finite${unseen}`);
    const droppedSteps = (run.dropped?.steps ?? 0) + (run.dropped?.bad_steps ?? 0);
    setAttribute(
      box,
      "title",
      `${integer(steps)} calls of the optimizer's update, over all attempts. Unseen steps were taken before reporting began, or were never reported. ` +
        `The training processes dropped ${plural(droppedSteps, "step record")}; the totals are exact all the same`,
    );
  };
}

export function createTiles(root) {
  const tiles = [createStreak, createSkipped, createAccumulation, createNorm, createSteps].map((create) => create(root));
  return ({ state }) => {
    if (state.detail) for (const update of tiles) update(state.detail, state);
  };
}
