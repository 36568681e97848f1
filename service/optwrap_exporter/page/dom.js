/** Builds and changes elements. Text is always set as text: this page never parses markup. */

import { SHAPES } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";

/** The element of index.html with this id. */
export function byId(id) {
  const node = document.getElementById(id);
  if (!node) throw new Error(`index.html has no element #${id}`);
  return node;
}

/**
 * Creates an element. `properties` are its attributes, except `text` and `on` ({event: listener}). Attributes and children
 * that are null are left out.
 */
export function el(tag, /** @type {Record<string, any>} */ properties = {}, ...children) {
  const { text, on = {}, ...attributes } = properties;
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) setAttribute(node, name, value);
  for (const [event, listener] of Object.entries(on)) node.addEventListener(event, listener);
  if (text !== undefined) node.textContent = text;
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** Sets the text of a node, if it changes. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Sets an attribute, if it changes; null, undefined and false remove it. */
export function setAttribute(node, name, value) {
  if (value === null || value === undefined || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value === true ? "" : value);
}

/** Draws one of SHAPES in the colour of its class. Screen readers skip it, so put text beside it. */
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

/** Replaces the shape in `holder`, if it changes. */
export function replaceShape(holder, name, className = "") {
  const key = `${name} ${className}`;
  if (holder.dataset.shape === key) return;
  holder.dataset.shape = key;
  holder.replaceChildren(shape(name, className));
}

/**
 * Makes the children of `parent` match `items`. Elements of items that stay are kept, with their focus, selection and hover.
 *
 * @param {any} parent An element.
 * @param {any[]} items
 * @param {(item: any) => unknown} keyOf
 * @param {(item: any) => Element} create
 * @param {(node: any, item: any) => void} [update]
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
    if (node === cursor) cursor = node.nextElementSibling;
    else parent.insertBefore(node, cursor);
  }
}

/** A link to the JSON behind something; the caller sets its href. */
export function jsonLink(what) {
  return el("a", { class: "json", text: "JSON", title: `The data of ${what} as JSON` });
}

/** The head of a panel: its title, a place for controls, and a link to its JSON. `tooltip` explains the title. */
export function panelHead(id, title, tooltip) {
  const link = jsonLink(`“${title}”`);
  const aside = el("span", { class: "aside" });
  const head = el("div", { class: "panel-head" }, el("h2", { id, text: title, title: tooltip }), aside, link);
  return { head, aside, link };
}
