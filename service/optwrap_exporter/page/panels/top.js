/** The top bar: the number of runs by health, the connection, and warnings while it is lost or no report is stored. */

import { clock, dateTime, duration, integer, visible } from "../format.js";
import { healthCounts, lastReport } from "../model.js";
import { health, storeCondition } from "../words.js";
import { el, keyed, setAttribute, setText, shape } from "../dom.js";

export function createTop({ counts, connection, lost, ill }) {
  const word = el("strong");
  const age = el("span");
  connection.append(el("span", { class: "dot", "aria-hidden": "true" }), word, age);
  const lostText = el("p");
  lost.append(shape("warning"), lostText);
  const illText = el("p");
  ill.append(shape("warning"), illText);

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

    const trouble = state.storeTrouble;
    ill.hidden = trouble === null || phase === "lost";
    if (trouble !== null) {
      const what = `The exporter has stored no reports since ${clock(trouble.since, now)}: its store is ${storeCondition(trouble.condition)}`;
      const does = `To mend it: ${visible(trouble.remedy)}.`;
      setText(illText, `${what} (${visible(trouble.why)}). Training is not affected, and the figures below are from before. ${does}`);
    }

    lost.hidden = phase !== "lost";
    if (phase === "lost") {
      const figures = last === null ? "" : ` The figures below are from ${clock(last, now)}.`;
      setText(lostText, `The exporter has not answered for ${duration(now - since)}.${figures} Training is not affected. Reconnecting…`);
    }
  };
}
