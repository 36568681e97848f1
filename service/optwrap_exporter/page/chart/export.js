/** Saves what the charts show: the picture as PNG, the steps as CSV. */

import { readColours } from "./chart.js";

/** Space around the picture, and the height of a line of text (CSS pixels). */
const MARGIN = 16;
const LINE = 18;

/** Hands a file to the browser, which saves it. */
function save(name, blob) {
  const url = URL.createObjectURL(blob);
  const link = document.createElement("a");
  Object.assign(link, { href: url, download: name });
  link.click();
  URL.revokeObjectURL(url);
}

/**
 * Saves canvases below each other as one picture.
 *
 * @param {string} name of the file
 * @param {string[]} lines above the canvases
 * @param {{canvas: HTMLCanvasElement, title: string}[]} parts each with its title; an empty title takes no room
 */
export function savePicture(name, lines, parts) {
  const ratio = devicePixelRatio;
  const colours = readColours();
  const height = (part) => part.canvas.height + (part.title ? LINE * ratio : 0);
  const picture = document.createElement("canvas");
  picture.width = Math.max(...parts.map(({ canvas }) => canvas.width)) + 2 * MARGIN * ratio;
  picture.height = parts.reduce((sum, part) => sum + height(part), (2 * MARGIN + lines.length * LINE) * ratio);
  const context = /** @type {CanvasRenderingContext2D} */ (picture.getContext("2d"));
  context.fillStyle = colours.surface;
  context.fillRect(0, 0, picture.width, picture.height);
  context.textBaseline = "top";
  let y = MARGIN * ratio;
  const write = (text, colour, size) => {
    context.fillStyle = colour;
    context.font = `${size * ratio}px system-ui, sans-serif`;
    context.fillText(text, MARGIN * ratio, y);
    y += LINE * ratio;
  };
  lines.forEach((text, i) => write(text, i === 0 ? colours.ink : colours.muted, i === 0 ? 14 : 11));
  for (const { canvas, title } of parts) {
    if (title) write(title, colours.muted, 11);
    context.drawImage(canvas, MARGIN * ratio, y);
    y += canvas.height;
  }
  picture.toBlob((blob) => blob && save(name, blob));
}

/** Saves the CSV behind a path of the API. Returns whether the exporter answered. */
export async function saveCsv(/** @type {string} */ name, /** @type {string} */ path) {
  try {
    const response = await fetch(path, { headers: { accept: "text/csv" }, cache: "no-store" });
    if (!response.ok) return false;
    save(name, await response.blob());
    return true;
  } catch {
    return false;
  }
}

/** A name as part of a file's name. */
export const fileName = (text) => text.replaceAll(/[^A-Za-z0-9._-]+/g, "-");
