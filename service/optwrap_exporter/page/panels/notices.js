/** Messages about wrong values in the page's address. */

import { el, keyed } from "../dom.js";

export function createNotices(root) {
  const list = el("ul");
  root.append(list);
  return ({ state }) => {
    root.hidden = state.notices.length === 0;
    keyed(list, state.notices, (text) => text, (text) => el("li", { text }));
  };
}
