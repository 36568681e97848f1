/** The top bar: the connection, and warnings while it is lost or no report is stored. */

import { clock, dateTime, duration, visible } from "../format.js";
import { lastReport } from "../model.js";
import { storeCondition } from "../words.js";
import { el, setAttribute, setText, shape } from "../dom.js";

export function createTop({ connection, lost, store }) {
  const word = el("strong");
  const age = el("span");
  connection.append(el("span", { class: "dot", "aria-hidden": "true" }), word, age);
  const lostText = el("p");
  lost.append(shape("warning"), lostText);
  const storeText = el("p");
  store.append(shape("warning"), storeText);

  return ({ state, now }) => {
    const { phase, since } = state.connection;
    const last = lastReport(state);
    const unhealthy = phase !== "lost" && state.storeTrouble !== null;
    setAttribute(connection, "class", `connection ${unhealthy ? "lost" : phase}`);
    setText(word, unhealthy ? "Exporter unhealthy" : { connecting: "Connecting…", live: "Live", lost: "Disconnected" }[phase]);
    setText(age, phase === "live" && last !== null ? `last report ${duration(now - last)} ago` : "");
    setAttribute(connection, "title", last === null ? null : `Last report stored at ${dateTime(last)}`);

    const trouble = state.storeTrouble;
    store.hidden = trouble === null || phase === "lost";
    if (trouble !== null) {
      const what = `The exporter has stored no reports since ${clock(trouble.since, now)}: its store is ${storeCondition(trouble.condition)}`;
      const then = "The training is not affected, but how it has gone since then is not known here. All figures below are from before.";
      setText(storeText, `${what} (${visible(trouble.why)}). What to do: ${visible(trouble.remedy)}. ${then}`);
    }

    lost.hidden = phase !== "lost";
    if (phase === "lost") {
      const figures = last === null ? "" : ` The figures below are from ${clock(last, now)}.`;
      setText(lostText, `The exporter has not answered for ${duration(now - since)}.${figures} Training is not affected. Reconnecting…`);
    }
  };
}
