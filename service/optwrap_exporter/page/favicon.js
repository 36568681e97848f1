/** Shows the worst run's health in the tab's title and icon, for a tab in the background. */

import { byId } from "./dom.js";
import { healthCounts } from "./model.js";
import { health, SHAPES } from "./words.js";

// Medium tones: they are visible on light and dark browser themes.
const COLOURS = { critical: "#d92d3a", warning: "#d98200", idle: "#7a8699", good: "#1e9e6a" };
const SIGNS = { critical: "✖", warning: "▲", idle: "○", good: "✓" };

let shown = "";

export function updateTab(state) {
  const worst = healthCounts(state.runs)[0]?.[0];
  const lost = state.connection.phase === "lost";
  const tier = worst === undefined ? "idle" : health(worst).tier;
  const names = (state.runs ?? []).filter((row) => row.health === worst).map((row) => row.run);
  const who = names.length > 1 ? `${names.length} runs` : (names[0] ?? "no run yet");
  const title = lost
    ? "⚠ Disconnected · optwrap"
    : worst === undefined
      ? "optwrap"
      : `${SIGNS[tier]} ${health(worst).word} · ${who} · optwrap`;
  const key = `${title} ${tier}`;
  if (key === shown) return;
  shown = key;
  document.title = title;
  const { d } = SHAPES[lost ? "idle" : tier];
  const colour = COLOURS[lost ? "idle" : tier];
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10"><path d="${d}" fill="${colour}" fill-rule="evenodd"/></svg>`;
  const icon = byId("favicon");
  icon.setAttribute("href", `data:image/svg+xml,${encodeURIComponent(svg)}`);
  icon.dataset.tier = lost ? "lost" : tier;
}
