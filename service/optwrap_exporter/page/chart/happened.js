/** What the chart marks with a line and a name: attempts, resumptions and rebases. No DOM. */

import { integer, seconds, visible } from "../format.js";

/** @import { State } from "../model.js" */

/** The most marks in view; of more, the newest are shown. */
const MOST = 100;

/**
 * What happened, along the shown axis: sorted, and within the range.
 *
 * An attempt is where its first step is: its `start_step`, or where its process says that it resumed. The first attempt has no
 * mark, unless it began after step 0.
 *
 * @param {State} state
 * @param {[number, number]} range
 * @returns {{x: number, text: string, kind: "attempt" | "resumed" | "rebased"}[]}
 */
export function happenedWithin(state, range) {
  const byTime = state.view.axis === "time";
  const { attempts, attempts_total: total = attempts.length + (state.detail.left_out?.attempts ?? 0) } = state.detail;
  const at = (step, time) => (byTime ? seconds(time) : step === null || step === undefined ? null : step + 0.5);
  const found = [];
  const resumedIn = new Map();
  for (const { kind, step, time, attempt, detail } of state.events) {
    if (kind === "resumed" && !resumedIn.has(attempt)) resumedIn.set(attempt, []);
    if (kind === "resumed") resumedIn.get(attempt).push({ step, time });
    if (kind === "rebased") found.push({ x: at(step, time), kind, text: detail.limit ? `rebase, limit ${Number(detail.limit.toPrecision(3))}` : "rebase" });
  }
  attempts.forEach(({ attempt, since, start_step: start }, i) => {
    // Events are sorted newest first: the last one of an attempt is where it began.
    const resumed = resumedIn.get(attempt) ?? [];
    const number = total - attempts.length + i + 1;
    const begin = start ?? resumed.at(-1)?.step ?? 0;
    for (const { step, time } of resumed.slice(0, begin === resumed.at(-1)?.step ? -1 : undefined)) {
      found.push({ x: at(step, time), kind: "resumed", text: `resumed at ${integer(step)}` });
    }
    if (number > 1 || begin > 0) found.push({ x: at(begin, since), kind: "attempt", text: nameOf(number, begin) });
  });
  const inView = found.filter(({ x }) => x !== null && x >= range[0] && x <= range[1] + (byTime ? 0 : 1)).sort((a, b) => a.x - b.x);
  return inView.slice(-MOST);
}

function nameOf(number, begin) {
  return visible(begin > 0 ? `attempt ${integer(number)} from ${integer(begin)}` : `attempt ${integer(number)}`);
}
