/**
 * The page's state, and the session that fills it. A script of its own, which needs no panel: it asks for the data while the
 * browser still loads the panels.
 */

import { exporterNow } from "./api.js";
import { updateTab } from "./favicon.js";
import { initialState, reduce } from "./model.js";
import { createSession } from "./session.js";
import { format, parse } from "./url.js";

export let state = initialState(parse(location.search));
let changed = () => {};

export function dispatch(action) {
  const next = reduce(state, action);
  if (next === state) return;
  const selectionChanged = next.selected !== state.selected;
  state = next;
  // The tab's title and icon are visible even when the page is hidden and not painted.
  updateTab(state);
  if (selectionChanged || action.type === "view" || action.type === "axis") history.replaceState(null, "", format(state));
  changed();
}

/** Sets what is called after each change. */
export function whenChanged(/** @type {() => void} */ call) {
  changed = call;
}

export const session = createSession({ getState: () => state, dispatch, now: exporterNow });
session.start();
