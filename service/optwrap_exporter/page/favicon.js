/** Shows the worst run's health in the tab's title and icon, for a tab in the background. */

import { byId } from "./dom.js";
import { worstRuns } from "./runs.js";
import { health, SHAPES, tierOfRun, TIERS } from "./words.js";

// Medium tones: they are visible on light and dark browser themes.
const COLOURS = { critical: "#d92d3a", warning: "#d98200", idle: "#7a8699", good: "#1e9e6a" };
const SIGNS = { critical: "✖", warning: "▲", idle: "○", good: "✓" };

let shown = "";

export function updateTab(state) {
  const { title, tier, name } = tab(state);
  const key = `${title} ${tier}`;
  if (key === shown) return;
  shown = key;
  document.title = title;
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10"><path d="${SHAPES[tier].d}" fill="${COLOURS[tier]}" fill-rule="evenodd"/></svg>`;
  const icon = byId("favicon");
  icon.setAttribute("href", `data:image/svg+xml,${encodeURIComponent(svg)}`);
  icon.dataset.tier = name ?? tier;
}

/** The title and the tier. `name` is what the icon's data-tier says if it is no tier. */
function tab({ runs, connection, storeTrouble }) {
  if (connection.phase === "lost") return { title: "⚠ Disconnected · optwrap", tier: "idle", name: "lost" };
  if (storeTrouble !== null) return { title: "⚠ Exporter stores no reports · optwrap", tier: "idle", name: "unhealthy" };
  const worst = worstRuns(runs);
  // Trouble that was acknowledged is not shown, but a run that has it is not healthy either.
  if (!worst.length) return { title: "optwrap", tier: "idle" };
  const tier = TIERS[Math.min(...worst.map((row) => TIERS.indexOf(tierOfRun(row))))];
  const who = worst.length > 1 ? `${worst.length} runs` : worst[0].run;
  return { title: `${SIGNS[tier]} ${health(worst[0].health).word} · ${who} · optwrap`, tier };
}
