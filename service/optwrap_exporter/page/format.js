/** Formats numbers, times and names for people. Pure functions, no DOM. */

const grouped = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

/**
 * A number from the API: "NaN", "Infinity" and "-Infinity" become numbers; anything else that is not a number becomes null.
 *
 * @param {unknown} value
 * @returns {number | null}
 */
export function wireNumber(value) {
  if (typeof value === "number") return value;
  if (value === "NaN") return NaN;
  if (value === "Infinity") return Infinity;
  if (value === "-Infinity") return -Infinity;
  return null;
}

/** 12345 -> "12,345"; "–" for anything that is not a finite number. */
export function integer(value) {
  return Number.isFinite(value) ? grouped.format(value) : "–";
}

/** 12345678 -> "12.3M", for a figure whose exact value is in a tooltip. */
export function compact(value) {
  if (!Number.isFinite(value)) return "–";
  return Math.abs(value) < 1e7 ? grouped.format(value) : short.format(value);
}

/** Three significant digits, with an exponent below 0.001 and from a million on: 0.812, 12.3, 4,120, 3.1e-7. */
export function norm(value) {
  if (value === null || value === undefined) return "–";
  if (!Number.isFinite(value)) return String(value).replace("Infinity", "∞");
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e6 || size < 1e-3) return Number(value.toPrecision(2)).toExponential().replace("e+", "e");
  if (size >= 1000) return grouped.format(Math.round(value));
  return String(Number(value.toPrecision(3)));
}

/** A share in per cent: "0 %", "< 0.1 %", "1.4 %", "12 %". */
export function percent(part, whole) {
  if (!whole || !part) return "0 %";
  const share = (100 * part) / whole;
  if (share < 0.1) return "< 0.1 %";
  return `${share < 10 ? share.toFixed(1) : Math.round(share)} %`;
}

/** Seconds as "12 s", "3 min 20 s", "2 h 5 min", "3 d 4 h". */
export function duration(time) {
  if (!Number.isFinite(time)) return "–";
  const s = Math.max(0, Math.floor(time));
  const pair = (big, bigUnit, small, smallUnit) => `${big} ${bigUnit}${small ? ` ${small} ${smallUnit}` : ""}`;
  if (s < 60) return `${s} s`;
  if (s < 3600) return pair(Math.floor(s / 60), "min", s % 60, "s");
  if (s < 86400) return pair(Math.floor(s / 3600), "h", Math.floor((s % 3600) / 60), "min");
  return pair(Math.floor(s / 86400), "d", Math.floor((s % 86400) / 3600), "h");
}

/**
 * A time as seconds since 1970, from that or from ISO 8601 text; null for anything else.
 *
 * @param {unknown} time
 * @returns {number | null}
 */
export function seconds(time) {
  if (typeof time === "number") return time;
  if (typeof time !== "string") return null;
  const parsed = Date.parse(time);
  return Number.isNaN(parsed) ? null : parsed / 1000;
}

/** How long ago `time` was, as "12 s"; "–" if it is null. Takes the same times as `seconds`. */
export function durationSince(time, now) {
  const from = seconds(time);
  return from === null ? "–" : duration(now - from);
}

/** "14:03:22" today, "Nov 22, 14:03:22" on another day, in the browser's time zone. */
export function clock(time, now = Date.now() / 1000) {
  if (time === null || time === undefined) return "–";
  const date = new Date(time * 1000);
  const today = date.toDateString() === new Date(now * 1000).toDateString();
  const hours = date.toLocaleTimeString("en-GB");
  return today ? hours : `${date.toLocaleDateString("en", { month: "short", day: "numeric" })}, ${hours}`;
}

/**
 * Labels for the ticks of a time axis, `increment` seconds apart. The first label of each day has a second line with the
 * date.
 */
export function dayAndTime(times, increment) {
  let before = "";
  return times.map((time) => {
    const date = new Date(time * 1000);
    const day = date.toLocaleDateString("en", { month: "short", day: "numeric" });
    const fresh = day !== before;
    before = day;
    if (increment >= 86_400) return day;
    const whole = date.toLocaleTimeString("en-GB");
    const digits = increment < 1 ? (time % 1).toFixed(increment < 0.01 ? 3 : 2).slice(1) : "";
    return `${increment < 60 ? whole + digits : whole.slice(0, 5)}${fresh ? `\n${day}` : ""}`;
  });
}

/** The date and time in UTC, for tooltips. */
export function dateTime(time) {
  return time === null || time === undefined ? "" : new Date(time * 1000).toISOString().replace("T", " ").replace("Z", " UTC");
}

/** "1 step", "2 steps", "12,345 steps". */
export function plural(count, one, many = `${one}s`) {
  return `${integer(count)} ${count === 1 ? one : many}`;
}

/** A phrase of the exporter as a sentence: with a capital letter. */
export function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

// Control characters, zero-width characters and those that change the direction of text. A name must not be able to hide
// or reorder the text beside it.
// eslint-disable-next-line no-control-regex
const INVISIBLE = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g;

/** A name from the API with its invisible characters written out: "a\u202eb". */
export function visible(text) {
  return String(text).replace(INVISIBLE, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/**
 * Names the first parameters of a list, and says how many more there are; of shares, those of at least 1 %. Null for an
 * empty list.
 *
 * @param {{parameter: string, not_finite?: number, norm_share?: number}[]} parameters with their numbers of non-finite values,
 *   or with their shares of the squared norm
 * @param {number} count how many parameters there are in all
 */
export function parametersInWords(parameters, count = parameters.length) {
  if (!parameters.length) return null;
  if (parameters[0].norm_share !== undefined) {
    const large = parameters.slice(0, 2).filter(({ norm_share: share = 0 }, i) => i === 0 || share >= 0.01);
    return large.map(({ parameter, norm_share: share }) => `${percent(share, 1)} ${visible(parameter)}`).join(", ");
  }
  const named = parameters.slice(0, 2).map(({ parameter, not_finite: values }) => `${visible(parameter)} (${plural(values, "value")})`);
  return named.join(", ") + (count > named.length ? ` and ${integer(count - named.length)} more` : "");
}
