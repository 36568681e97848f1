/** Messages about wrong values in the page's address, and about what the exporter's answers leave out. */

import { el, keyed } from "../dom.js";
import { leftOut } from "../model.js";

export function createNotices(root) {
  const list = el("ul");
  root.append(list);
  return ({ state }) => {
    const notices = [...state.notices, ...leftOut(state)];
    root.hidden = notices.length === 0;
    keyed(list, notices, (text) => text, (text) => el("li", { text }));
  };
}
