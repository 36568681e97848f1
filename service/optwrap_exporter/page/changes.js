/** What the page changes in the exporter: incidents are acknowledged; runs are archived, restored and deleted. */

import { change, getAll, HttpError, paths } from "./api.js";

/** Where the exporter's token is kept: for this tab, until it is closed. */
const TOKEN = "optwrap-token";

/**
 * Each function returns whether the change was made, and does not throw.
 *
 * @param {object} parts
 * @param {(refused: boolean) => Promise<string | null>} parts.askToken asks the user; null if the user cancels
 * @param {(text: string) => void} parts.say shows what happened
 * @param {() => void} parts.changed is called after each change
 * @param {(run: string) => void} parts.deleted is called after a run was deleted, before `changed`: nothing of it can be loaded any more
 */
export function createChanges({ askToken, say, changed, deleted }) {
  /** Sends the request, with the token that the user enters if the exporter wants one. Returns whether it was sent. */
  async function send(method, path) {
    for (let refused = false; ; refused = sessionStorage.getItem(TOKEN) !== null) {
      try {
        await change(method, path, sessionStorage.getItem(TOKEN));
        return true;
      } catch (error) {
        if (!(error instanceof HttpError) || error.status !== 401) throw error;
      }
      const token = await askToken(refused || sessionStorage.getItem(TOKEN) !== null);
      if (token === null) return false;
      sessionStorage.setItem(TOKEN, token);
    }
  }

  /** `then` is called after success, and before the page loads anything again. */
  async function make(requests, done, then = () => {}) {
    try {
      for (const [method, path] of requests) {
        // One after the other: the exporter stores them one after the other, too.
        if (!(await send(method, path))) return false;
      }
      say(done);
      then();
      return true;
    } catch (error) {
      say(error instanceof HttpError ? `Not done: ${error.why}` : "Not done: the exporter did not answer.");
      return false;
    } finally {
      changed();
    }
  }

  return {
    acknowledge: (id) => make([["POST", paths.acknowledge(id)]], "Acknowledged."),
    /** Acknowledges all open incidents of a run. */
    acknowledgeRun: async (run) => {
      const open = await getAll((query) => paths.incidents(run, query), { state: "open" }).catch(() => []);
      return make(open.map(({ id }) => ["POST", paths.acknowledge(id)]), `Acknowledged: ${run}.`);
    },
    archive: (run) => make([["POST", paths.archive(run)]], `Archived: ${run}. Its data is kept.`),
    restore: (run) => make([["POST", paths.restore(run)]], `Restored: ${run}.`),
    remove: (run) => make([["DELETE", paths.run(run)]], `Deleted: ${run}.`, () => deleted(run)),
  };
}
