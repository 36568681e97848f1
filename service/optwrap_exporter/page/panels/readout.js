/** One step in words, above the chart: the step under the crosshair, else the selected step, else the last one. */

import { clock, integer, norm, parametersInWords, plural, visible } from "../format.js";
import { shownRecords } from "../view.js";
import { isBad, KINDS } from "../words.js";
import { el, setAttribute, setText } from "../dom.js";

/** @import { State } from "../model.js" */

/**
 * `update(state, {index, buckets})`: `index` is that of the record under the crosshair, or of the bucket if there are buckets; null
 * if nothing is under it.
 */
export function createReadout() {
  const node = el("output", { class: "readout" });

  function update(/** @type {State} */ state, /** @type {{index: number | null, buckets: any}} */ { index: hovered, buckets }) {
    const { view } = state;
    const records = shownRecords(state);
    if (records.length === 0) return setText(node, "No steps yet.");
    if (hovered !== null && buckets && hovered < buckets.x.length) return showBucket(state, buckets, hovered);
    const index = hovered ?? indexOfSelected(state, records);
    if (index >= records.length) return;
    if (hovered === null && isEmpty(view, records)) return setText(node, noSteps(view, records));
    const record = records.at(index);
    const label = hovered === null && view.step === null ? "Last step" : "Step";
    setText(node, `${label} ${stepInWords(record, state)}`);
    // Screen readers read a step that the user selected, but not each new step.
    setAttribute(node, "aria-live", view.step !== null && hovered === null ? "polite" : "off");
    setAttribute(node, "class", isBad(record.kind) ? "readout bad" : "readout");
  }

  function showBucket(state, buckets, i) {
    setText(node, bucketInWords(buckets, i, state));
    setAttribute(node, "aria-live", "off");
    setAttribute(node, "class", Object.keys(buckets.kinds).some((kind) => isBad(kind) && buckets.kinds[kind][i]) ? "readout bad" : "readout");
  }

  return { node, update };
}

function indexOfSelected({ view }, records) {
  const index = view.step === null ? records.indexOf(records.latest, records.latestTime) : records.indexOf(view.step, view.at);
  return Math.min(records.length - 1, Math.max(0, Math.round(index)));
}

/** Whether the fixed range of the view has no records. */
function isEmpty({ range }, records) {
  return range !== null && (range[0] > records.last || range[1] < records.first);
}

function noSteps({ range }, records) {
  const inWords = records.byTime ? (time) => clock(time) : integer;
  const [from, to, first, last] = [...range, records.first, records.last].map(inWords);
  return `No steps from ${from} to ${to}. The recorded steps go from ${first} to ${last}.`;
}

/** How many scalars are named. */
const SCALARS = 3;

function stepInWords({ step, time, kind, raw, mini, scalars }, { detail, offenders }) {
  const everyK = detail?.gauges?.every_k;
  const parts = [integer(step), clock(time), `norm ${norm(raw)}`, KINDS[kind]?.word ?? kind, ...limitInWords(detail)];
  if (mini !== null && everyK) parts.push(`window ${mini} of ${everyK}`);
  const parameters = parametersInWords(offenders.get(step) ?? []);
  if (parameters !== null) parts.push(parameters);
  for (const [name, value] of Object.entries(scalars ?? {}).slice(0, SCALARS)) parts.push(`${visible(name)} ${norm(value)}`);
  return parts.join(" · ");
}

/** The limit of now: those of earlier steps are not known. */
function limitInWords(detail) {
  const limit = detail?.gauges?.gradient_norm_limit;
  return limit === undefined || limit === null ? [] : [`limit now ${norm(limit)}`];
}

/** All steps of a bucket. */
function bucketInWords(buckets, i, { view, detail }) {
  const { from, to, low, middle, high, count, kinds, firstTime, lastTime } = buckets;
  const steps = `Steps ${integer(from[i] + 0.5)} to ${integer(to[i] - 0.5)}`;
  const parts = [view.axis === "time" ? plural(count[i], "step") : steps, `${clock(firstTime[i])} to ${clock(lastTime[i])}`];
  if (middle[i] === null) parts.push("no finite norm");
  else parts.push(`norm ${norm(low[i])} to ${norm(high[i])}`, `median ${norm(middle[i])}`);
  for (const kind of Object.keys(KINDS)) if (kinds[kind]?.[i]) parts.push(`${integer(kinds[kind][i])} ${KINDS[kind].word}`);
  return [...parts, ...limitInWords(detail)].join(" · ");
}
