/** Replaces the run when there is none: how to send a first report, or that the selected run is unknown or was deleted. */

import { visible } from "../format.js";
import { el, setText } from "../dom.js";

export function createEmpty(root) {
  const code = [
    "import optwrap",
    "",
    `monitor = optwrap.Monitor(run="my-run", endpoint="${location.origin}")`,
    "tx = optwrap.instrument(tx, monitor)           # tx: your optimizer with its wrappers",
    "",
    "# in the jitted step, also return:   optwrap.reading(opt_state)",
    "# in the loop, call:                 monitor.observe(reading)",
  ].join("\n");
  root.append(
    el("h1", { id: "empty-title", text: "No run has reported yet" }),
    el("p", { text: "This exporter is running and waits for a first report. Add this to a training process on this machine:" }),
    el("pre", { tabindex: 0, "aria-label": "Example" }, el("code", { text: code })),
    el("p", { text: "The run appears here within seconds of its first report." }),
  );
  return ({ state }) => {
    root.hidden = !(state.runs?.length === 0 && state.selected === null && !state.hasArchived);
  };
}

export function createMissing(root) {
  const name = el("bdi");
  const [before, after] = [el("span"), el("span")];
  const text = el("p");
  root.append(
    el("h1", { id: "missing-title" }, before, name, after),
    text,
    el("p", {}, el("a", { href: "/", text: "All runs" })),
  );
  return ({ state }) => {
    root.hidden = !state.missing;
    if (root.hidden) return;
    setText(name, visible(state.selected ?? ""));
    setText(before, state.deleted ? "" : "No run named ");
    setText(after, state.deleted ? " was deleted" : "");
    const why = state.deleted ? "The exporter no longer has this run." : "No run with this name has reported to this exporter, or the run was deleted.";
    setText(text, `${why} It appears here when it reports.`);
  };
}
