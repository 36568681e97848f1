/** Calls the exporter's HTTP API. */

/** A request without an answer fails after this time (ms). */
const TIMEOUT = 8_000;

export class HttpError extends Error {
  /** @param {string} why the answer's own words */
  constructor(status, path, why = "") {
    super(`${path} answered ${status}${why ? `: ${why}` : ""}`);
    this.status = status;
    this.why = why;
  }
}

/** Paths of the API. */
export const paths = {
  runs: (query = {}) => `/v1/runs${queryString({ limit: 1000, ...query })}`,
  run: (run) => `/v1/runs/${encodeURIComponent(run)}`,
  steps: (run, query = {}) => `${paths.run(run)}/steps${queryString(query)}`,
  events: (run, query = {}) => `${paths.run(run)}/events${queryString({ limit: 200, ...query })}`,
  incidents: (run, query = {}) => `${paths.run(run)}/incidents${queryString({ limit: 50, ...query })}`,
  series: (run, query = {}) => `${paths.run(run)}/series${queryString(query)}`,
  parameters: (run) => `${paths.run(run)}/parameters`,
  stream: (run) => `/v1/stream${queryString({ run })}`,
  acknowledge: (id) => `/v1/incidents/${id}/acknowledge`,
  archive: (run) => `${paths.run(run)}/archive`,
  restore: (run) => `${paths.run(run)}/restore`,
};

function queryString(query) {
  const given = Object.entries(query)
    .flatMap(([name, value]) => (Array.isArray(value) ? value.map((one) => [name, one]) : [[name, value]]))
    .filter(([, value]) => value !== null && value !== undefined);
  return given.length ? `?${new URLSearchParams(given)}` : "";
}

/** How far the exporter's clock is ahead of the browser's (s), from the Date header of its answers. */
let clockAhead = 0;

/** Seconds since 1970 by the exporter's clock. All times on the page come from that clock, so ages must use it, too. */
export function exporterNow() {
  return Date.now() / 1000 + clockAhead;
}

function compareClocks(response) {
  const date = Date.parse(response.headers.get("date") ?? "");
  const ahead = (date - Date.now()) / 1000;
  // Date has whole seconds, and the answer took time to arrive: small differences mean nothing.
  clockAhead = Math.abs(ahead) > 3 ? ahead : 0;
}

/**
 * Gets the JSON at `path`. Throws HttpError if the status is not a success, and the browser's own error if nothing answers.
 *
 * @param {string} path
 * @returns {Promise<any>}
 */
export async function getJson(path) {
  const response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT) });
  compareClocks(response);
  if (!response.ok) throw new HttpError(response.status, path);
  return response.json();
}

/**
 * Why the exporter stores no reports: `store` in the answer of /-/healthy. Null while it stores them.
 *
 * @returns {Promise<{condition: string, since: number, why: string, remedy: string} | null>}
 */
export async function getStoreTrouble() {
  const response = await fetch("/-/healthy", { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT) });
  return response.status === 503 ? ((await response.json()).store ?? null) : null;
}

/** Every page of a list, as one list. */
export async function getAll(/** @type {(query: any) => string} */ path, query = {}) {
  const items = [];
  let cursor = null;
  do {
    // Each page begins where the one before it ended.
    const page = await getJson(path({ ...query, cursor }));
    items.push(...page.items);
    ({ cursor } = page);
  } while (cursor !== null);
  return items;
}

/**
 * Sends a request that changes something. Throws HttpError if it is refused.
 *
 * @param {"POST" | "DELETE"} method
 * @param {string} path
 * @param {string | null} token the exporter's token, if it wants one
 */
export async function change(method, path, token) {
  const headers = /** @type {Record<string, string>} */ (token === null ? {} : { authorization: `Bearer ${token}` });
  const response = await fetch(path, { method, headers, cache: "no-store", signal: AbortSignal.timeout(TIMEOUT) });
  if (!response.ok) throw new HttpError(response.status, path, await reasonOf(response));
}

/** Why a request was refused, in the exporter's words. */
async function reasonOf(response) {
  try {
    const [{ field, value, allowed }] = (await response.json()).detail;
    return `${field} ${JSON.stringify(value)} is refused; allowed: ${allowed}`;
  } catch {
    return response.statusText;
  }
}

/**
 * Opens the stream of committed reports of `run`. The browser reconnects by itself, with Last-Event-ID. If the browser
 * gives up (the answer was not a stream), the stream is opened again after a pause that grows.
 *
 * @param {string} run
 */
export function openStream(run, { onOpen, onLost, onMessage }) {
  let source;
  let timer;
  let pause = 1_000;
  const handle = (type) => (message) => onMessage({ type, data: JSON.parse(message.data) });

  const open = () => {
    source = new EventSource(paths.stream(run));
    source.addEventListener("open", () => {
      pause = 1_000;
      onOpen();
    });
    // The stream has left out reports, because this page was too far behind. It loads everything again.
    source.addEventListener("gap", onOpen);
    source.addEventListener("report", handle("report"));
    source.addEventListener("run", handle("run"));
    source.addEventListener("error", () => {
      onLost();
      if (source.readyState !== EventSource.CLOSED) return;
      clearTimeout(timer);
      timer = setTimeout(open, pause);
      pause = Math.min(2 * pause, 10_000);
    });
  };
  open();
  return {
    close: () => {
      clearTimeout(timer);
      source.close();
    },
    isOpen: () => source.readyState === EventSource.OPEN,
  };
}
