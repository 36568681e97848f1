/** A tile with a key figure, and a meter of parts. */

import { integer } from "../format.js";
import { el, keyed, setAttribute } from "../dom.js";

/** A meter with more parts than this is drawn as one bar. */
const CELLS = 24;

export function tile(root, name, label, tooltip) {
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
export function meter(body, label) {
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
