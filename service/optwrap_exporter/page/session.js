/** Keeps the state up to date: polls the list of runs, and listens to the stream of the selected run. */

import { getAll, getJson, getStoreTrouble, HttpError, openStream, paths } from "./api.js";
import { BUCKETS, MOST_SINGLE } from "./buckets.js";
import { seconds } from "./format.js";
import { LOGGED } from "./model.js";

/** Interval between polls of the list of runs (ms). A poll also notices that the exporter is back. */
const POLL_INTERVAL = 3_000;
/** Time between polls, as a multiple of what a poll took: a long list of runs is loaded less often. */
const POLL_PAUSE = 10;
/** A hidden page closes its stream after this time (ms), because browsers allow only six connections to one origin. */
const CLOSE_HIDDEN_AFTER = 60_000;
/**
 * If the stream is this far behind the list of runs (s), the stream is dead. If the shown process is this far behind its run,
 * the exporter may have chosen another one to represent the run.
 */
const MAX_LAG = 10;
/** How many good steps an answer has at most, if it is not asked for more. */
const USUAL_POINTS = 2_000;
/** How many good steps of a range are asked for: more than are drawn one by one, as a step may be there twice. */
const POINTS = 2 * MOST_SINGLE;
/** Minimum time between two requests of the same kind that messages of the stream cause (s). */
const REQUEST_INTERVAL = 5;

/** Whether one report came more than MAX_LAG seconds before another, which came at `latest`. */
const isBehind = (report, latest) => (seconds(latest) ?? 0) - (seconds(report) ?? 0) > MAX_LAG;

/** @typedef {{type: string, data: any}} Message */

/** Whether the exporter answered that the run or process does not exist, or that its name is invalid. */
const isUnknown = (error) => error instanceof HttpError && (error.status === 404 || error.status === 422);

/** On the time axis the exporter thins by time, so that slow steps among many fast ones stay visible. */
const axisOf = ({ axis }) => (axis === "time" ? axis : null);

/** If the whole run is in view, one answer has all that is shown. */
const wholeOf = (view) => (view.window === "all" && view.range === null ? { axis: axisOf(view), buckets: BUCKETS } : {});

/**
 * The first and the last step in view, if they are known before any step is loaded. Null if not, or if the answer about the
 * whole run has all of them.
 *
 * @returns {[number, number] | null}
 */
function firstInView({ axis, window, range }, { last_step: last, totals }) {
  if (totals.steps <= USUAL_POINTS || (range && axis === "time") || (!range && window === "all")) return null;
  return range ? [Math.max(0, Math.floor(range[0])), Math.ceil(range[1])] : [Math.max(0, last - window + 1), last];
}

const noRequests = () => ({ representative: 0, parameters: 0, bad: /** @type {number | null} */ (null), timer: 0 });

export function createSession({ getState, dispatch, now }) {
  let stream = /** @type {ReturnType<typeof openStream> | null} */ (null);
  let streamedRun = /** @type {string | null} */ (null);
  /** Messages that came while a full answer is being loaded; null if none is being loaded. */
  let queued = /** @type {Message[] | null} */ (null);
  let pollTimer = 0;
  let hiddenTimer = 0;
  /**
   * Times (s) of the last requests for the representative process and for all parameters, the number of non-finite steps at
   * the latter, and the timer of a request that waits.
   */
  let lastRequests = noRequests();

  const connection = (phase) => dispatch({ type: "connection", phase, at: now() });

  function follow(run) {
    if (run === streamedRun) return;
    stream?.close();
    stream = null;
    streamedRun = run;
    clearTimeout(lastRequests.timer);
    lastRequests = noRequests();
    if (run === null) return;
    stream = openStream(run, {
      onOpen: () => load(run),
      onLost: () => connection("lost"),
      onMessage: (message) => {
        if (queued) {
          queued.push(message);
          return;
        }
        dispatch(message);
        if (message.type === "run") complete(run, message.data);
      },
    });
  }

  /** The query of the events that the page lists. */
  const eventsWanted = () => ({ kind: getState().everyEvent ? null : LOGGED });

  async function load(run) {
    const mine = /** @type {Message[]} */ ([]);
    queued = mine;
    try {
      const { wantedProcess: process, view } = getState();
      // The answer about the steps takes longest, so it is asked for first.
      const whole = getJson(paths.steps(run, { process, ...wholeOf(view) }));
      const about = getJson(paths.run(run));
      const [steps, detail, recent, events, bad, incidents] = await Promise.all([
        whole,
        about,
        about.then((known) => inView(run, process, known)),
        getJson(paths.events(run, eventsWanted())),
        getJson(paths.events(run, { kind: ["skipped", "accepted_not_finite"] })),
        getJson(paths.incidents(run)),
      ]);
      if (queued !== mine || run !== getState().selected) return;
      dispatch({ type: "loaded", run: detail, steps, events, bad, incidents });
      if (recent) dispatch(recent);
      Object.assign(lastRequests, { parameters: now(), bad: detail.totals.not_finite_steps });
      connection("live");
    } catch (error) {
      if (queued !== mine || run !== getState().selected) return;
      if (!isUnknown(error)) restart();
      else if (getState().wantedProcess !== null) {
        dispatch({ type: "no such process" });
        await load(run);
      } else dispatch({ type: "missing", run });
    } finally {
      if (queued === mine) {
        queued = null;
        for (const message of mine) dispatch(message);
      }
    }
  }

  /** The steps in view of a long run, as an action; null if the answer about all of them suffices. */
  function inView(run, process, detail) {
    const wanted = firstInView(getState().view, detail);
    return wanted && stepsOf(run, process, wanted, { steps: detail.totals.steps, last: detail.last_step });
  }

  /** Loads what a message of the stream leaves out: all parameters, and which process represents the run now. */
  async function complete(run, detail) {
    const { process, wantedProcess, steps } = getState();
    const bad = detail.totals.not_finite_steps;
    try {
      const wait = lastRequests.parameters + REQUEST_INTERVAL - now();
      const more = detail.left_out.parameters > 0 && bad !== lastRequests.bad;
      if (more && wait > 0) {
        // Request later, with a timer: there may be no other message.
        clearTimeout(lastRequests.timer);
        lastRequests.timer = setTimeout(() => complete(run, detail), 1_000 * wait + 100);
      } else if (more) {
        Object.assign(lastRequests, { parameters: now(), bad });
        dispatch({ type: "parameters", run, parameters: (await getJson(paths.run(run))).parameters });
      }
      const representative = getState().detail?.processes.find((row) => row.process === process);
      const silent = representative && isBehind(representative.last_report, detail.last_report);
      if (wantedProcess === null && silent && now() > lastRequests.representative + REQUEST_INTERVAL) {
        lastRequests.representative = now();
        const answer = await getJson(paths.steps(run, { since: steps.last ?? 0, points: 2 }));
        if (answer.process !== process && run === getState().selected) await load(run);
      }
    } catch {
      // A later message causes another request. A lost connection is shown elsewhere.
    }
  }

  /** Closes the stream; the next successful poll opens it again. */
  function restart() {
    stream?.close();
    stream = null;
    streamedRun = null;
    connection("lost");
  }

  async function poll() {
    clearTimeout(pollTimer);
    const began = performance.now();
    try {
      const [items, trouble] = await Promise.all([getAll(paths.runs, { sort: "run" }), getStoreTrouble()]);
      dispatch({ type: "runs", items });
      if (getState().archived !== null) await loadArchived();
      dispatch({ type: "store", trouble });
      const { selected, detail, connection: link } = getState();
      const row = items.find(({ run }) => run === selected);
      if (selected === null || (!row && !detail)) connection("live");
      if (row && detail && link.phase === "live" && isBehind(detail.last_report, row.last_report)) restart();
      if (document.hidden && streamedRun === null) connection("live");
      else follow(row ? selected : await ifKnown(selected));
    } catch {
      // The poll had no answer. The stream may look open for a long time after the exporter is gone.
      connection("lost");
      if (stream?.isOpen()) restart();
    }
    clearTimeout(pollTimer);
    pollTimer = setTimeout(poll, Math.max(POLL_INTERVAL, POLL_PAUSE * (performance.now() - began)));
  }

  /** Learns whether any run is archived, so that the page can offer to show them. */
  async function lookForArchived() {
    try {
      const { items } = await getJson(paths.runs({ archived: true, limit: 1 }));
      dispatch({ type: "has archived", any: items.length > 0 });
    } catch {
      // As with a poll: a lost connection is shown elsewhere.
    }
  }

  async function loadArchived() {
    dispatch({ type: "archived", items: await getAll(paths.runs, { sort: "run", archived: true }) });
  }

  /**
   * Returns `run`, which is not in the list of runs, if the exporter knows it: archived runs are not listed. Else null. An
   * unknown run is not asked for again: once it reports, it is in the list.
   */
  async function ifKnown(run) {
    if (run === null || getState().missing) return null;
    try {
      await getJson(paths.run(run));
      return run;
    } catch (error) {
      if (!isUnknown(error)) throw error;
      dispatch({ type: "missing", run });
      return null;
    }
  }

  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiddenTimer);
    if (document.hidden) {
      hiddenTimer = setTimeout(() => follow(null), CLOSE_HIDDEN_AFTER);
    } else {
      poll();
    }
  });

  /** Loads the steps of a range, as many as the exporter returns. `taken` is what was known of the run before. */
  async function stepsOf(run, process, [since, until], taken) {
    const held = { since, open: until >= (taken.last ?? 0), steps: taken.steps };
    const query = { since, until, process, axis: axisOf(getState().view), points: POINTS, buckets: BUCKETS };
    const { columns, buckets } = await getJson(paths.steps(run, query));
    return { type: "steps", run, columns, buckets: { ...held, answer: buckets } };
  }

  async function range(since, until) {
    const { selected: run, process, steps, detail } = getState();
    try {
      dispatch(await stepsOf(run, process, [since, until], { steps: detail?.totals.steps ?? 0, last: steps.last }));
    } catch {
      // The loaded steps stay in view. A lost connection is shown elsewhere.
    }
  }

  /** Loads the events before the oldest one held. */
  async function older() {
    const { selected: run, olderEvents: cursor } = getState();
    if (cursor === null) return;
    try {
      const { items, cursor: next } = await getJson(paths.events(run, { limit: 1000, cursor, ...eventsWanted() }));
      dispatch({ type: "older events", run, items, cursor: next });
    } catch {
      // The button stays, for another try. A lost connection is shown elsewhere.
    }
  }

  /** Loads the incidents before the oldest one held. */
  async function olderIncidents() {
    const { selected: run, olderIncidents: cursor } = getState();
    if (cursor === null) return;
    try {
      const { items, cursor: next } = await getJson(paths.incidents(run, { cursor }));
      dispatch({ type: "older incidents", run, items, cursor: next });
    } catch {
      // The button stays, for another try. A lost connection is shown elsewhere.
    }
  }

  /** Lists an event for each bad step, too, or only the others. */
  async function everyEvent(every) {
    dispatch({ type: "every event", every });
    const { selected: run } = getState();
    try {
      const { items, cursor } = await getJson(paths.events(run, eventsWanted()));
      if (getState().everyEvent === every) dispatch({ type: "older events", run, items, cursor });
    } catch {
      // As above.
    }
  }

  /** Shows or hides the archived runs. */
  async function showArchived(shown) {
    if (!shown) dispatch({ type: "archived", items: null });
    else await loadArchived().catch(() => connection("lost"));
  }

  return {
    start: () => {
      // A run that is named in the address is asked for without waiting for the list of all.
      if (getState().selected !== null) follow(getState().selected);
      poll();
      lookForArchived();
    },
    older,
    olderIncidents,
    everyEvent,
    showArchived,
    /** Loads the list of runs and the selected run again, after the page changed something. */
    changed: () => {
      const { selected, detail } = getState();
      poll();
      lookForArchived();
      if (selected !== null && detail !== null) load(selected);
    },
    /** Loads the selected run again. */
    reload: () => load(getState().selected),
    /** Opens the stream of the selected run, after the selection changed. */
    selected: () => {
      const { selected, missing } = getState();
      follow(missing ? null : selected);
    },
    range,
  };
}
