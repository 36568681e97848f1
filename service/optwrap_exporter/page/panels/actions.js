/**
 * What a person can do with a run, as a menu; the question before a run is deleted; the question for the exporter's token;
 * and a line that says what was done.
 */

import { visible } from "../format.js";
import { createChanges } from "../changes.js";
import { el, setText } from "../dom.js";

/** How long the line about the last change stays (ms). */
const SAID_FOR = 6_000;

/** @returns {number} */
export const openIncidents = (row) => /** @type {number[]} */ (Object.values(row.incidents_open ?? {})).reduce((sum, count) => sum + count, 0);

export function createActions({ root, onChanged, onDeleted }) {
  const said = el("p", { id: "said", role: "status" });
  const menu = el("div", { id: "menu", popover: "auto", role: "group", "aria-label": "Actions" });
  const token = createTokenDialog();
  const remove = createDeleteDialog();
  menu.addEventListener("keydown", moveInMenu);
  root.append(said, menu, token.dialog, remove.dialog);
  let timer = 0;

  function say(text) {
    clearTimeout(timer);
    setText(said, visible(text));
    timer = setTimeout(() => setText(said, ""), SAID_FOR);
  }
  const changes = createChanges({ askToken: token.ask, say, changed: onChanged, deleted: onDeleted });

  const item = (text, title, act) => {
    const click = () => {
      menu.hidePopover();
      act();
    };
    return el("button", { type: "button", text, title, on: { click } });
  };

  /** Shows the menu of a run beside the button that opened it. */
  function open(row, button) {
    const { run } = row;
    const items = [];
    if (openIncidents(row) > 0) {
      items.push(item("Acknowledge", "Its open incidents no longer count as trouble, here and in alerts", () => changes.acknowledgeRun(run)));
    }
    items.push(
      row.archived
        ? item("Restore", "List it with the other runs again", () => changes.restore(run))
        : item("Archive", "Hide it from the list; its data is kept", () => changes.archive(run)),
      item("Delete…", "Delete all of its data", async () => {
        if (await remove.ask(run)) await changes.remove(run);
      }),
    );
    menu.replaceChildren(...items);
    menu.showPopover({ source: button });
    const at = button.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = menu;
    menu.style.left = `${Math.max(4, at.right - width)}px`;
    menu.style.top = `${at.bottom + height > innerHeight ? at.top - height : at.bottom}px`;
    items[0].focus();
  }

  return { open, changes };
}

/** Moves by the arrow keys between the items of the menu. */
function moveInMenu(/** @type {KeyboardEvent} */ event) {
  const items = [.../** @type {HTMLElement} */ (event.currentTarget).querySelectorAll("button")];
  const at = items.indexOf(/** @type {HTMLButtonElement} */ (document.activeElement));
  const to = { ArrowDown: at + 1, ArrowUp: at - 1 + items.length, Home: 0, End: items.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  items[to % items.length].focus();
}

/** A dialog with a form. `ask` opens it, and returns what `read` returns when it is confirmed; null when it is cancelled. */
function createDialog(id, title, confirm, className, ...content) {
  const cancel = el("button", { type: "button", text: "Cancel", on: { click: () => dialog.close("") } });
  const done = el("button", { type: "submit", class: className, text: confirm });
  const form = el("form", { method: "dialog" }, el("h2", { id: `${id}-title`, text: title }), ...content, el("p", { class: "buttons" }, cancel, done));
  const dialog = /** @type {HTMLDialogElement} */ (el("dialog", { id, "aria-labelledby": `${id}-title` }, form));
  // The page's policy allows no form to be sent; a dialog's form only closes it.
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close("done");
  });
  /** @returns {Promise<boolean>} */
  const ask = () =>
    new Promise((resolve) => {
      dialog.returnValue = "";
      dialog.addEventListener("close", () => resolve(dialog.returnValue === "done"), { once: true });
      dialog.showModal();
    });
  return { dialog, ask };
}

function createDeleteDialog() {
  const name = el("bdi");
  const text = el("p", {}, "All steps, events and incidents of ", el("strong", {}, name), " are deleted, for everyone. This cannot be undone.");
  const note = el("p", { text: "A run that still reports appears again as a new run. To hide a run and keep its data, archive it instead." });
  const { dialog, ask } = createDialog("delete", "Delete this run?", "Delete", "danger", text, note);
  return {
    dialog,
    ask: (run) => {
      setText(name, visible(run));
      return ask();
    },
  };
}

function createTokenDialog() {
  const field = /** @type {HTMLInputElement} */ (
    el("input", { type: "password", id: "token-field", autocomplete: "off", required: true, "aria-describedby": "token-note" })
  );
  const note = el("p", { id: "token-note" });
  const label = el("label", { for: "token-field", text: "Token" });
  const { dialog, ask } = createDialog("token", "This exporter wants its token", "Send", "", note, label, field);
  return {
    dialog,
    /** @param {boolean} refused whether the exporter refused the token that was entered before */
    ask: async (refused) => {
      field.value = "";
      setText(
        note,
        `${refused ? "The exporter refused the token. " : ""}Changes need the token that the training processes report with, from the ` +
          "exporter's --token-file. It is kept in this tab only, until you close it.",
      );
      return (await ask()) ? field.value.trim() : null;
    },
  };
}
