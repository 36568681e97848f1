/** The keyboard in a table whose rows have a link and a button: one stop of the Tab key for each row, arrow keys for the rest. */

const stopsOf = (row) => [...row.querySelectorAll("a[href], button")];
const rowsOf = (table) => [...table.querySelectorAll("tbody tr")];

/** Moves between rows by up and down, and in a row by left and right. A listener of the table's keydown. */
export function moveInRows(/** @type {KeyboardEvent} */ event) {
  const target = /** @type {HTMLElement} */ (event.target);
  const row = target.closest("tbody tr");
  if (!row || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  const at = stopsOf(row).indexOf(target);
  const rows = rowsOf(event.currentTarget);
  const across = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const down = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (at < 0 || (across === undefined && down === undefined)) return;
  const to = down === undefined ? row : rows[rows.indexOf(row) + down];
  event.preventDefault();
  if (to) stopsOf(to)[at + (across ?? 0)]?.focus();
}

/**
 * Remembers where the focus is in a table before its rows change. `restore` brings it back if its row moved, and to the row that
 * took its place if it went.
 */
export function focusIn(/** @type {HTMLElement} */ table) {
  const held = /** @type {HTMLElement | null} */ (table.contains(document.activeElement) ? document.activeElement : null);
  const row = held?.closest("tbody tr");
  if (!held || !row) return { restore: () => {} };
  const place = rowsOf(table).indexOf(row);
  const stop = stopsOf(row).indexOf(held);
  const restore = () => {
    if (document.activeElement === held) return;
    const rows = rowsOf(table);
    const to = held.isConnected ? held : stopsOf(rows[Math.min(place, rows.length - 1)] ?? table)[stop];
    to?.focus({ preventScroll: held.isConnected });
  };
  return { restore };
}
