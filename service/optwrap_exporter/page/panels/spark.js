/** Two small pictures for the tiles: the last norms, and the outcomes of the steps. The tiles have the same data as text. */

import { integer, percent } from "../format.js";
import { lowerBound } from "../steps.js";
import { isBad, KINDS } from "../words.js";
import { el, keyed, setAttribute } from "../dom.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 120;
const HEIGHT = 28;
const SHOWN = 60;

function path(className) {
  const node = document.createElementNS(SVG, "path");
  node.setAttribute("class", className);
  return node;
}

/** Draws the norms of the last 60 steps, as far as they are held, as a logarithmic line, with a tick below each bad step, in its colour. */
export function createSpark(body) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [name, value] of [["class", "spark"], ["viewBox", `0 0 ${WIDTH} ${HEIGHT}`], ["preserveAspectRatio", "none"], ["aria-hidden", "true"]]) {
    svg.setAttribute(name, value);
  }
  const line = path("norm-line");
  const ticks = Object.keys(KINDS).filter(isBad).map((kind) => ({ kind, node: path(`kind-${kind}`) }));
  svg.append(line, ...ticks.map(({ node }) => node));
  body.append(svg);

  return (steps) => {
    // Of many steps the page holds only some: those before the last ones must not pass for them.
    const from = Math.max(steps.step[0] ?? 0, (steps.step[steps.length - 1] ?? 0) - SHOWN + 1);
    const start = lowerBound(steps.step, from);
    const logs = [];
    for (let i = start; i < steps.length; i += 1) logs.push(steps.norm[i] > 0 ? Math.log10(steps.norm[i]) : null);
    const known = logs.filter((value) => value !== null);
    const low = Math.min(...known);
    const span = Math.max(0.5, Math.max(...known) - low);
    const x = (i) => (((steps.step[start + i] - from) / (SHOWN - 1)) * (WIDTH - 2) + 1).toFixed(1);
    const points = logs.flatMap((value, i) => (value === null ? [] : [`${x(i)} ${(HEIGHT - 6 - ((value - low) / span) * (HEIGHT - 8)).toFixed(1)}`]));
    setAttribute(line, "d", points.length > 1 ? `M${points.join("L")}` : "");
    for (const { kind, node } of ticks) {
      const own = logs.flatMap((_, i) => (steps.kind[start + i] === kind ? [`M${x(i)} ${HEIGHT - 5}V${HEIGHT}`] : []));
      setAttribute(node, "d", own.join(""));
    }
  };
}

const SHARES = ["applied", "accumulated", "skipped_not_finite", "skipped_large", "skipped_other", "accepted_not_finite"];

/** Draws the steps by outcome as parts of one bar. */
export function createShares(body) {
  const bar = el("div", { class: "shares", role: "img" });
  body.append(bar);
  return (outcomes, total) => {
    bar.hidden = !total;
    if (!total) return;
    const parts = SHARES.map((kind) => ({ kind, count: outcomes?.[kind] ?? 0 })).filter(({ count }) => count > 0);
    keyed(bar, parts, ({ kind }) => kind, ({ kind }) => el("span", { class: `kind-${kind}` }), (part, { count }) => {
      part.style.flexGrow = count / total;
    });
    const words = parts.map(({ kind, count }) => `${KINDS[kind].word}: ${integer(count)} (${percent(count, total)})`).join(", ");
    setAttribute(bar, "aria-label", words);
    setAttribute(bar, "title", words);
  };
}
