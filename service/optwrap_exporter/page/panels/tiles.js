/** The key figures: streak, skipped by reason, accumulation, gradient norm, steps. */

import { compact, integer, norm, percent, plural, wireNumber } from "../format.js";
import { REASONS, KINDS } from "../words.js";
import { el, keyed, setAttribute, setText, shape } from "../dom.js";
import { createShares, createSpark } from "./spark.js";

/** Up to this many cells a meter shows each one. */
const CELLS = 24;

function tile(root, name, label, what) {
  const value = el("span", { class: "value" });
  const unit = el("span", { class: "unit" });
  const body = el("div", { class: "body" });
  const foot = el("p", { class: "foot" });
  const box = el(
    "div",
    { class: `tile ${name}`, title: what },
    el("h2", { text: label }),
    el("p", { class: "figure" }, value, unit),
    body,
    foot,
  );
  root.append(box);
  return { box, value, unit, body, foot };
}

/** A bar of `of` cells of which `filled` are full; without cells where there are too many to see. */
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

function createStreak(root) {
  const { box, value, unit, body, foot } = tile(
    root, "streak", "Not-finite streak", "Calls in a row, up to now, whose incoming gradients were not finite",
  );
  const guard = meter(body, "Errors in a row of the guard, of those it rejects");
  return (run) => {
    const { not_finite_streak: streak, not_finite_streak_peak: peak, guard_not_finite_count: count, guard_not_finite_limit: limit } =
      run.gauges ?? {};
    setText(value, integer(streak));
    setText(unit, limit === undefined ? "in a row" : `of ${integer(limit)}`);
    const used = count ?? streak ?? 0;
    guard(used, limit ?? 0);
    setText(foot, `longest ${integer(peak)}${used === (streak ?? used) ? "" : ` · guard at ${integer(used)}`}`);
    const exhausted = used > 0 && used >= limit;
    setAttribute(box, "data-tone", exhausted ? "critical" : streak > 0 ? "warning" : null);
    setAttribute(
      box,
      "title",
      limit === undefined
        ? "Calls in a row, up to now, whose incoming gradients were not finite. No guard's limit is known."
        : `Calls in a row, up to now, whose incoming gradients were not finite. apply_if_finite rejects ${integer(limit)} in a row; the next is let through, unless it was made to reject on.`,
    );
  };
}

function createSkipped(root) {
  const { box, value, unit, body } = tile(
    root, "skipped", "Skipped steps", "Steps that changed neither parameters nor the optimizer's state, by reason",
  );
  const list = el("ul", { class: "reasons" });
  body.append(list);
  return (run) => {
    const { skipped = {}, steps = 0, accepted_not_finite: accepted = 0 } = run.totals ?? {};
    const total = REASONS.reduce((sum, { key }) => sum + (skipped[key] ?? 0), 0);
    setText(value, compact(total));
    setText(unit, `${percent(total, steps)} of steps`);
    const rows = REASONS.map((reason) => ({ ...reason, count: skipped[reason.key] ?? 0 }));
    if (accepted > 0) rows.push({ key: "accepted", kind: "accepted_not_finite", word: "accepted", what: KINDS.accepted_not_finite.what, count: accepted });
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
    root, "accumulation", "Accumulation", "Gradients in the open accumulation window, of those that make one gradient step",
  );
  const window = meter(body, "Mini-steps in the open accumulation window");
  return (run) => {
    const { mini_step: mini, every_k: k } = run.gauges ?? {};
    const there = k !== undefined;
    setText(value, there ? integer(mini) : "none");
    setText(unit, there ? `of ${integer(k)}` : "");
    window(mini ?? 0, k ?? 0);
    setText(foot, plural(run.totals?.gradient_steps ?? 0, "gradient step"));
  };
}

function createNorm(root) {
  const { box, value, unit, body, foot } = tile(root, "norm-last", "Gradient norm", "Global L2 norm of the last step's incoming gradients");
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
  const { box, value, unit, body, foot } = tile(root, "steps", "Steps", "Calls of the optimizer's update counted for this run, over all its attempts");
  const shares = createShares(body);
  return (run, state) => {
    const rate = state.steps.rate();
    const { steps, not_finite_steps: bad, verdicts } = run.totals ?? {};
    shares(verdicts, steps);
    setText(value, compact(steps));
    setText(unit, rate === null || run.health === "finished" ? "" : `${rate >= 10 ? compact(Math.round(rate)) : rate.toPrecision(2)} per s`);
    const unseen = run.unseen ? ` · ${compact(run.unseen)} unseen` : "";
    setText(foot, `${compact(bad ?? 0)} not finite${unseen}`);
    const droppedSteps = (run.dropped?.steps ?? 0) + (run.dropped?.bad_steps ?? 0);
    setAttribute(
      box,
      "title",
      `${integer(steps)} calls of the optimizer's update, over all attempts. Unseen: steps the optimizer's state has lived that nobody reported. ` +
        `Step records the client had to drop: ${integer(droppedSteps)}; the totals stay exact.`,
    );
  };
}

export function createTiles(root) {
  const tiles = [createStreak, createSkipped, createAccumulation, createNorm, createSteps].map((create) => create(root));
  return ({ state }) => {
    if (state.detail) for (const update of tiles) update(state.detail, state);
  };
}
