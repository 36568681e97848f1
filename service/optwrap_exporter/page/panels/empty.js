/** What stands where a run would be: how to send a first report, or that this run is not known. */

import { visible } from "../format.js";
import { el, setText } from "../dom.js";

export function createEmpty(root) {
  const code = [
    "import optwrap",
    "",
    `monitor = optwrap.Monitor(run="my-run", endpoint="${location.origin}")`,
    "tx = optwrap.instrument(tx, monitor)           # tx: your optimizer, wrappers and all",
    "",
    "# in the jitted step, return one thing more:   optwrap.reading(opt_state)",
    "# in the loop, hand it over:                   monitor.observe(reading)",
  ].join("\n");
  root.append(
    el("h1", { id: "empty-title", text: "No run has reported yet" }),
    el("p", { text: "This exporter is up and waiting. A training process on this machine sends its first report with:" }),
    el("pre", { tabindex: 0, "aria-label": "Example" }, el("code", { text: code })),
    el("p", { text: "The run appears here by itself, within seconds of the first report." }),
  );
  return ({ state }) => {
    root.hidden = !(state.runs?.length === 0 && state.selected === null);
  };
}

export function createMissing(root) {
  const name = el("bdi");
  root.append(
    el("h1", { id: "missing-title" }, "No run named ", name),
    el("p", { text: "Nothing under this name has reported to this exporter, or it has been forgotten. If it reports, it appears here." }),
    el("p", {}, el("a", { href: "/", text: "All runs" })),
  );
  return ({ state }) => {
    root.hidden = !state.missing;
    setText(name, visible(state.selected ?? ""));
  };
}
