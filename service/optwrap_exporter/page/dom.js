/** Building and changing elements. Text goes in as text: nothing here, or on this page, parses markup. */

import { SHAPES } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";

/** The element of index.html with this id. */
export function byId(id) {
  const node = document.getElementById(id);
  if (!node) throw new Error(`index.html has no element #${id}`);
  return node;
}

/** An element; `properties` are attributes, except `text` and `on` ({event: listener}); null and false are left out. */
export function el(tag, /** @type {Record<string, any>} */ properties = {}, ...children) {
  const { text, on = {}, ...attributes } = properties;
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) setAttribute(node, name, value);
  for (const [event, listener] of Object.entries(on)) node.addEventListener(event, listener);
  if (text !== undefined) node.textContent = text;
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** Touches the document only where something changes. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setAttribute(node, name, value) {
  if (value === null || value === undefined || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value === true ? "" : value);
}

/** One of SHAPES as a small picture in the colour of its class; words beside it say what it means. */
export function shape(name, className = "") {
  const { d, stroke } = SHAPES[name];
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 10 10");
  svg.setAttribute("class", `shape ${stroke ? "stroked" : "filled"} ${className}`);
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", d);
  svg.append(path);
  return svg;
}

/** Changes a picture made by `shape` into another, only if it is another. */
export function replaceShape(holder, name, className = "") {
  const key = `${name} ${className}`;
  if (holder.dataset.shape === key) return;
  holder.dataset.shape = key;
  holder.replaceChildren(shape(name, className));
}

/**
 * Makes the children of `parent` those of `items`, keeping the elements of those that stay: what is focused, selected or
 * hovered stays so.
 */
export function keyed(parent, items, keyOf, create, update) {
  const held = (parent.keyed ??= new Map());
  const wanted = new Set(items.map(keyOf));
  for (const [key, node] of held) {
    if (wanted.has(key)) continue;
    node.remove();
    held.delete(key);
  }
  let cursor = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let node = held.get(key);
    if (!node) {
      node = create(item);
      held.set(key, node);
    }
    update?.(node, item);
    if (node === cursor) cursor = cursor.nextElementSibling;
    else parent.insertBefore(node, cursor);
  }
}

/** A link to the data behind something as JSON; its address is yet to be set. */
export function jsonLink(what) {
  return el("a", { class: "json", text: "JSON", title: `The data behind ${what} as JSON` });
}

/** A panel's head: its title, what stands beside it, and the JSON behind it. */
export function panelHead(id, title, what) {
  const link = jsonLink(`“${title}”`);
  const aside = el("span", { class: "aside" });
  const head = el("div", { class: "panel-head" }, el("h2", { id, text: title, title: what }), aside, link);
  return { head, aside, link };
}
