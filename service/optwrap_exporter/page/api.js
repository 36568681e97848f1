/** The exporter's HTTP interface, as this page uses it. */

/** How long an answer may take before the exporter counts as gone (ms). */
const TIMEOUT = 8_000;

export class HttpError extends Error {
  constructor(status, path) {
    super(`${path} answered ${status}`);
    this.status = status;
  }
}

/** Addresses of the JSON behind the panels. */
export const paths = {
  runs: () => "/v1/runs?limit=500",
  run: (run) => `/v1/runs/${encodeURIComponent(run)}`,
  steps: (run, query = {}) => `${paths.run(run)}/steps${queryString(query)}`,
  events: (run, query = {}) => `${paths.run(run)}/events${queryString({ limit: 200, ...query })}`,
  parameters: (run) => `${paths.run(run)}/parameters`,
  stream: (run) => `/v1/stream${queryString({ run })}`,
};

function queryString(query) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined);
  return given.length ? `?${new URLSearchParams(given)}` : "";
}

/** How far the exporter's clock is ahead of this machine's, in seconds, as its answers' Date told. */
let clockAhead = 0;

/** Seconds since 1970 by the exporter's clock: ages are differences of its own times. */
export function exporterNow() {
  return Date.now() / 1000 + clockAhead;
}

function compareClocks(response) {
  const date = Date.parse(response.headers.get("date") ?? "");
  const ahead = (date - Date.now()) / 1000;
  // Date has whole seconds and travelled: a small difference is no difference.
  clockAhead = Math.abs(ahead) > 3 ? ahead : 0;
}

/** The JSON at `path`; HttpError where the status is no success, the network's own error where nothing answers. */
export async function getJson(path) {
  const response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT) });
  compareClocks(response);
  if (!response.ok) throw new HttpError(response.status, path);
  return response.json();
}

/**
 * Listens to what is committed for `run`. The browser reconnects by itself, with Last-Event-ID; where it gives up (an
 * answer that is no stream) the stream is opened anew, with growing pauses. Returns how to close it.
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
