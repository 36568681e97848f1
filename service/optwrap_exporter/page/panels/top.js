/** The bar above everything: the fleet in words, the connection, and what a lost one means for the figures below. */

import { clock, dateTime, duration, integer } from "../format.js";
import { healthCounts, lastReport } from "../model.js";
import { health } from "../words.js";
import { el, keyed, setAttribute, setText, shape } from "../dom.js";

export function createTop({ fleet, connection, lost }) {
  const word = el("strong");
  const age = el("span");
  connection.append(el("span", { class: "dot", "aria-hidden": "true" }), word, age);
  const lostText = el("p");
  lost.append(shape("warning"), lostText);

  return ({ state, now }) => {
    keyed(
      fleet,
      healthCounts(state.runs).map(([name, count]) => ({ name, count })),
      ({ name }) => name,
      ({ name }) => el("span", { class: `chip ${health(name).tier}` }, shape(health(name).tier), el("span")),
      (node, { name, count }) => setText(node.lastChild, `${integer(count)} ${health(name).word.toLowerCase()}`),
    );

    const { phase, since } = state.connection;
    const last = lastReport(state);
    setAttribute(connection, "class", `connection ${phase}`);
    setText(word, { connecting: "Connecting…", live: "Live", lost: "Disconnected" }[phase]);
    setText(age, phase === "live" && last !== null ? `last report ${duration(now - last)} ago` : "");
    setAttribute(connection, "title", last === null ? null : `Last report stored at ${dateTime(last)}`);

    lost.hidden = phase !== "lost";
    if (phase === "lost") {
      const as = last === null ? "" : ` The figures below are as of ${clock(last, now)}.`;
      setText(lostText, `No live data from the exporter for ${duration(now - since)}.${as} Training is not affected. Trying again…`);
    }
  };
}
