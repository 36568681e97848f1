/** The list of runs: its order, its groups, and what a search, the chips and the headers of the table make of it. Pure. */

import { seconds, wireNumber } from "./format.js";
import { compareHealth, health, tierOfRun, TIERS } from "./words.js";

/** Healths of runs that are over. They are folded once they are no trouble. */
const OVER = new Set(["failed", "stopped", "stale"]);

/** Whether nobody needs to look at a run any more: it finished, or it ended in trouble that somebody acknowledged. */
export function isOver(row) {
  return row.health === "finished" || (row.acknowledged && OVER.has(row.health));
}

/** Worst first: by tier, then by health, then by name. Acknowledged trouble is no trouble. */
export function compareRuns(a, b) {
  const byTier = TIERS.indexOf(tierOfRun(a)) - TIERS.indexOf(tierOfRun(b));
  return Number(isOver(a)) - Number(isOver(b)) || byTier || compareHealth(a.health, b.health) || (a.run < b.run ? -1 : 1);
}

/** The number of runs of each health, worst first: [["skipping", 1], ["ok", 2]]. */
export function healthCounts(runs) {
  const counts = new Map();
  for (const { health: name } of runs ?? []) counts.set(name, (counts.get(name) ?? 0) + 1);
  return [...counts].sort(([a], [b]) => compareHealth(a, b));
}

/** The worst runs that nobody has acknowledged, all of one health: what the tab's title and icon show. */
export function worstRuns(runs) {
  const rows = runs ?? [];
  const news = rows.filter((row) => !row.acknowledged);
  const [name] = healthCounts(news)[0] ?? [];
  return news.filter((row) => row.health === name);
}

const sum = (counts) => Object.values(counts ?? {}).reduce((total, count) => total + count, 0);

/** By column of the table: the value to sort by. Rows without a value come last. */
export const VALUES = {
  health: null, // the usual order
  run: (row) => row.run,
  step: (row) => row.last_step ?? null,
  rate: (row) => row.steps_per_second ?? null,
  streak: (row) => row.gauges?.not_finite_streak ?? null,
  skipped: ({ skipped_recently: lately }) => (lately?.steps ? lately.skipped / lately.steps : null),
  loss: (row) => wireNumber(row.scalars?.loss?.value),
  lost: (row) => sum(row.lost_steps),
  report: (row) => seconds(row.last_report),
};

/** @typedef {{healths: Set<string>, text: string, sort: {key: string, down: boolean}}} Choice */

/** Whether a run is shown: its health is chosen, if any is, and its name or health has each word of the search. */
export function matches(row, /** @type {Choice} */ { healths, text }) {
  if (healths.size && !healths.has(row.health)) return false;
  const of = `${row.run} ${health(row.health).word}`.toLowerCase();
  return text.toLowerCase().split(/\s+/).every((word) => of.includes(word));
}

/** The chosen rows in their order. NaN sorts as the largest number, a missing value comes last. */
export function arranged(rows, /** @type {Choice} */ choice) {
  const { key, down } = choice.sort;
  const valueOf = VALUES[key];
  const found = rows.filter((row) => matches(row, choice));
  if (!valueOf) return down ? found.sort((a, b) => compareRuns(b, a)) : found.sort(compareRuns);
  const of = new Map(found.map((row) => [row, valueOf(row)]));
  return found.sort((a, b) => compareValues(of.get(a), of.get(b), down) || (a.run < b.run ? -1 : 1));
}

function compareValues(a, b, down) {
  if (a === null || b === null) return Number(a === null) - Number(b === null);
  if (typeof a === "string") return (down ? -1 : 1) * (a < b ? -1 : a > b ? 1 : 0);
  const [x, y] = [a, b].map((value) => (Number.isNaN(value) ? Infinity : value));
  return x === y ? 0 : (down ? -1 : 1) * (x < y ? -1 : 1);
}
