/** The top bar: the number of runs by health, the connection, and a warning while it is lost. */

import { clock, dateTime, duration, integer } from "../format.js";
import { healthCounts, lastReport } from "../model.js";
import { health } from "../words.js";
import { el, keyed, setAttribute, setText, shape } from "../dom.js";

export function createTop({ counts, connection, lost }) {
  const word = el("strong");
  const age = el("span");
  connection.append(el("span", { class: "dot", "aria-hidden": "true" }), word, age);
  const lostText = el("p");
  lost.append(shape("warning"), lostText);

  return ({ state, now }) => {
    keyed(
      counts,
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
      const figures = last === null ? "" : ` The figures below are from ${clock(last, now)}.`;
      setText(lostText, `The exporter has not answered for ${duration(now - since)}.${figures} Training is not affected. Reconnecting…`);
    }
  };
}
