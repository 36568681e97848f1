/** Keeps the state in step with the exporter: the list of runs by asking, the selected run by its stream. */

import { getJson, HttpError, openStream, paths } from "./api.js";
import { seconds } from "./format.js";
import { PARAMETERS_STREAMED } from "./model.js";
import { stepsAround, visibleRange } from "./view.js";

/** How often the list of runs is asked for (ms); it is also how an exporter that is back is found. */
const POLL = 3_000;
/** A hidden page gives its stream back after this long (ms): browsers allow six connections to one origin. */
const HIDDEN = 60_000;
/** A stream this far (s) behind what the list says is taken for dead; a process this far behind its run may be, too. */
const BEHIND = 10;
/** Least time (s) between two questions that a stream's messages give rise to. */
const ASK_AGAIN = 5;

/** Whether one report came more than BEHIND seconds before another, which came at `latest`. */
const isBehind = (report, latest) => (seconds(latest) ?? 0) - (seconds(report) ?? 0) > BEHIND;

/** @typedef {{type: string, data: any}} Message */

/** Whether the exporter said that there is no such run or process, or that nothing can be called so. */
const unknown = (error) => error instanceof HttpError && (error.status === 404 || error.status === 422);

const notAsked = () => ({ speaker: 0, whole: 0, bad: /** @type {number | null} */ (null), later: 0 });

export function createSession({ getState, dispatch, now }) {
  let stream = /** @type {ReturnType<typeof openStream> | null} */ (null);
  let streamed = /** @type {string | null} */ (null);
  /** Reports that come while a whole answer is under way; null otherwise. */
  let waiting = /** @type {Message[] | null} */ (null);
  let pollTimer = 0;
  let hiddenTimer = 0;
  /** When (s) it was last asked who speaks for the run, and for all its parameters; how many bad steps it had then. */
  let asked = notAsked();

  const connection = (phase) => dispatch({ type: "connection", phase, at: now() });

  function follow(run) {
    if (run === streamed) return;
    stream?.close();
    stream = null;
    streamed = run;
    clearTimeout(asked.later);
    asked = notAsked();
    if (run === null) return;
    stream = openStream(run, {
      onOpen: () => load(run),
      onLost: () => connection("lost"),
      onMessage: (message) => {
        if (waiting) {
          waiting.push(message);
          return;
        }
        dispatch(message);
        if (message.type === "run") complete(run, message.data);
      },
    });
  }

  async function load(run) {
    const mine = /** @type {Message[]} */ ([]);
    waiting = mine;
    try {
      const { wantedProcess: process } = getState();
      const [detail, steps, events] = await Promise.all([
        getJson(paths.run(run)),
        getJson(paths.steps(run, { process })),
        getJson(paths.events(run)),
      ]);
      if (waiting !== mine || run !== getState().selected) return;
      dispatch({ type: "loaded", run: detail, steps, events });
      Object.assign(asked, { whole: now(), bad: detail.totals.not_finite_steps });
      // A long run comes thinned out: what is looked at comes whole, too.
      const visible = visibleRange(getState());
      const lookedAt = steps.sampled && visible && stepsAround(getState(), visible);
      if (lookedAt) await range(...lookedAt);
      if (waiting !== mine || run !== getState().selected) return;
      connection("live");
    } catch (error) {
      if (waiting !== mine || run !== getState().selected) return;
      if (!unknown(error)) restart();
      else if (getState().wantedProcess !== null) {
        dispatch({ type: "no such process" });
        await load(run);
      } else dispatch({ type: "missing", run });
    } finally {
      if (waiting === mine) {
        waiting = null;
        for (const message of mine) dispatch(message);
      }
    }
  }

  /** Asks for what a message about the run leaves out: all its parameters, and who speaks for it now. */
  async function complete(run, detail) {
    const { process, wantedProcess, steps } = getState();
    const bad = detail.totals.not_finite_steps;
    try {
      const early = asked.whole + ASK_AGAIN - now();
      const lacking = detail.parameters.length >= PARAMETERS_STREAMED && bad !== asked.bad;
      if (lacking && early > 0) {
        // No other message may come: it is asked once the time is up.
        clearTimeout(asked.later);
        asked.later = setTimeout(() => complete(run, detail), 1_000 * early + 100);
      } else if (lacking) {
        Object.assign(asked, { whole: now(), bad });
        dispatch({ type: "parameters", run, parameters: (await getJson(paths.run(run))).parameters });
      }
      const speaker = getState().detail?.processes.find((row) => row.process === process);
      const silent = speaker && isBehind(speaker.last_report, detail.last_report);
      if (wantedProcess === null && silent && now() > asked.speaker + ASK_AGAIN) {
        asked.speaker = now();
        const answer = await getJson(paths.steps(run, { since: steps.last ?? 0, points: 2 }));
        if (answer.process !== process && run === getState().selected) await load(run);
      }
    } catch {
      // It is asked again with a later message; a lost connection is said elsewhere.
    }
  }

  /** Lets go of the stream; the next answer to a poll opens it again. */
  function restart() {
    stream?.close();
    stream = null;
    streamed = null;
    connection("lost");
  }

  async function poll() {
    clearTimeout(pollTimer);
    try {
      const { items } = await getJson(paths.runs());
      dispatch({ type: "runs", items });
      const { selected, detail, connection: link } = getState();
      const row = items.find(({ run }) => run === selected);
      if (selected === null || (!row && !detail)) connection("live");
      if (row && detail && link.phase === "live" && isBehind(detail.last_report, row.last_report)) restart();
      if (document.hidden && streamed === null) connection("live");
      else follow(row ? selected : await knows(selected));
    } catch {
      // The stream may look open for long after the exporter is gone; this question had no answer.
      connection("lost");
      if (stream?.isOpen()) restart();
    }
    clearTimeout(pollTimer);
    pollTimer = setTimeout(poll, POLL);
  }

  /** `run` if the exporter knows it although its list, which has pages, does not show it; else null. */
  async function knows(run) {
    if (run === null) return null;
    try {
      await getJson(paths.run(run));
      return run;
    } catch (error) {
      if (!unknown(error)) throw error;
      dispatch({ type: "missing", run });
      return null;
    }
  }

  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiddenTimer);
    if (document.hidden) {
      hiddenTimer = setTimeout(() => follow(null), HIDDEN);
    } else {
      poll();
    }
  });

  /** The steps of a range, as dense as the exporter gives them: for a look into what was thinned. */
  async function range(since, until) {
    const { selected: run, process, view } = getState();
    // Along time they are thinned out by time, or the slow ones among many fast ones would not be seen.
    const axis = view.axis === "time" ? "time" : null;
    try {
      const { columns } = await getJson(paths.steps(run, { since, until, process, axis }));
      dispatch({ type: "steps", run, columns });
    } catch {
      // What is held already stays in view; a lost connection is said elsewhere.
    }
  }

  /** The events before the oldest that is held. */
  async function older() {
    const { selected: run, olderEvents: cursor } = getState();
    if (cursor === null) return;
    try {
      const { items, cursor: next } = await getJson(paths.events(run, { limit: 1000, cursor }));
      dispatch({ type: "older events", run, items, cursor: next });
    } catch {
      // The button is still there; a lost connection is said elsewhere.
    }
  }

  return {
    start: poll,
    older,
    /** The selected run's data anew. */
    reload: () => load(getState().selected),
    /** After the selection changed: its stream and its data, at once. */
    selected: () => {
      const { selected } = getState();
      follow(selected);
    },
    range,
  };
}
