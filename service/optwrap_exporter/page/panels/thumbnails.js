/** Small pictures of the last norms of each run in the table. Only those of rows in view are loaded, a few at a time. */

import { getJson, paths } from "../api.js";
import { Steps } from "../steps.js";
import { createSpark } from "./spark.js";
import { el } from "../dom.js";

/** Steps in a picture. */
const SHOWN = 60;
/** A picture is loaded again after this time (ms), if the run has taken a step. */
const RENEW_AFTER = 15_000;
/** Requests at a time. */
const AT_ONCE = 2;

export function createThumbnails(scroll) {
  /** By run: where it is drawn, the last step drawn, and when it was loaded. */
  const held = new Map();
  const inView = new Set();
  let loading = 0;
  let waiting = true;
  const observer = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        const { run } = /** @type {HTMLElement} */ (target).dataset;
        if (isIntersecting) inView.add(run);
        else inView.delete(run);
      }
      load();
    },
    { root: scroll },
  );

  /** Loads the pictures in view that are missing or old. */
  function load() {
    if (waiting) return;
    for (const run of inView) {
      const one = held.get(run);
      if (loading >= AT_ONCE) return;
      if (!one || one.busy || one.row.last_step === null || one.drawn === one.row.last_step) continue;
      if (performance.now() - one.at < RENEW_AFTER) continue;
      void draw(one);
    }
  }

  async function draw(one) {
    const { run, last_step: last } = one.row;
    one.busy = true;
    loading += 1;
    try {
      const { columns } = await getJson(paths.steps(run, { since: Math.max(0, last - SHOWN + 1), points: SHOWN }));
      const steps = new Steps();
      steps.add(columns);
      one.spark(steps);
      one.drawn = last;
    } catch {
      // The picture stays as it is. A lost connection is shown elsewhere.
    }
    one.busy = false;
    one.at = performance.now();
    loading -= 1;
    load();
  }

  return {
    /** The element of a run's picture. */
    create: (row) => {
      const node = el("span", { class: "thumbnail", "data-run": row.run });
      held.set(row.run, { row, spark: createSpark(node), drawn: null, at: -Infinity, busy: false });
      observer.observe(node);
      return node;
    },
    /** The rows that the table shows, as they are now. Nothing is loaded while something that matters more is: `wait`. */
    update: (rows, wait) => {
      const shown = new Set(rows.map(({ run }) => run));
      for (const run of held.keys()) {
        if (shown.has(run)) continue;
        held.delete(run);
        inView.delete(run);
      }
      for (const row of rows) {
        const one = held.get(row.run);
        if (one) one.row = row;
      }
      waiting = wait;
      load();
    },
  };
}
