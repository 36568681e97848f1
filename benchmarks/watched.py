"""What a real Prometheus with the shipped configuration sees of an exporter, and what its rules and the panels cost."""

import dataclasses
import json
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.servers import Server

DASHBOARDS: Final = Path(__file__).parents[1] / "deploy" / "grafana" / "dashboards"
EVALUATION: Final = 15.0
"""Seconds between two evaluations of a rule, as shipped."""
HOUR: Final = 3600


@dataclasses.dataclass
class Watched:
    """What Prometheus saw of the exporter."""

    scrapes: int
    failed: int
    """Scrapes after which `up` was 0."""
    longest: float
    """Seconds of the longest scrape."""
    series: int
    """Samples of the last scrape."""


def observe(watching: Server, minutes: float) -> tuple[Watched, dict[str, list[float]]]:
    """Wait, and return what Prometheus saw, and the seconds of each evaluation of each group and rule.

    Args:
      watching: the Prometheus.
      minutes: for how long.
    """
    begun = time.monotonic()
    evaluations: dict[str, dict[str, float]] = defaultdict(dict)
    while (left := begun + 60 * minutes - time.monotonic()) > 0:
        time.sleep(min(left, EVALUATION))
        for group in watching.json("/api/v1/rules")["data"]["groups"]:
            evaluations[f"group {group['name']}"][group["lastEvaluation"]] = group["evaluationTime"]
            for rule in group["rules"]:
                name = f"{rule['name']} {rule.get('labels', {}).get('severity', '')}".rstrip()
                evaluations[name][rule["lastEvaluation"]] = rule["evaluationTime"]
                if rule["health"] == "err":
                    raise RuntimeError(f"Prometheus could not evaluate {name}: {rule['lastError']}")

    def value(expr: str) -> float:
        result = watching.json("/api/v1/query", query=expr)["data"]["result"]
        return float(result[0]["value"][1]) if result else 0.0

    past = f"[{int(time.monotonic() - begun)}s]"
    up = 'up{job="optwrap"}'
    seen = Watched(
        scrapes=int(value(f"count_over_time({up}{past})")),
        failed=int(value(f"count_over_time({up}{past}) - sum_over_time({up}{past})")),
        longest=value(f'max_over_time(scrape_duration_seconds{{job="optwrap"}}{past})'),
        series=int(value('scrape_samples_scraped{job="optwrap"}')),
    )
    return seen, {name: list(found.values()) for name, found in evaluations.items()}


def print_rules(seconds: dict[str, list[float]]) -> None:
    """Print how long each group and rule took, the slowest first."""
    print("\n| rule | ms, median | ms, longest | evaluations |\n|---|---|---|---|")
    for name, found in sorted(seconds.items(), key=lambda one: -max(one[1])):
        print(f"| {name} | {1000 * statistics.median(found):.1f} | {1000 * max(found):.1f} | {len(found)} |")


def targets() -> Iterator[tuple[str, str, bool]]:
    """The title, the query and whether it is of one time only, of every query of every dashboard."""
    for path in sorted(DASHBOARDS.glob("*.json")):
        dashboard = json.loads(path.read_text("utf-8"))
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                title = f"{dashboard['title']}: {panel['title']} {target['refId']}"
                yield title, target["expr"], bool(target.get("instant"))
        for annotation in dashboard.get("annotations", {}).get("list", ()):
            if "expr" in annotation:
                yield f"{dashboard['title']}: marks {annotation['name']}", annotation["expr"], False


def print_panels(watching: Server, run: str) -> None:
    """Ask each query of each dashboard over half an hour, and print how long Prometheus took, the slowest first."""
    values = {"run": run, "instance": ".+", "cluster": ".*", "namespace": ".*"}
    values |= {"__rate_interval": "1m", "__range": "30m"}
    seconds: dict[str, float] = {}
    now = time.time()
    for title, expr, instant in targets():
        query = re.sub(r"\$(\w+)", lambda found: values[found[1]], expr)
        if instant:
            answer = watching.json("/api/v1/query", query=query, stats="all")
        else:
            asked = {"start": f"{now - HOUR / 2}", "end": f"{now}", "step": "15"}
            answer = watching.json("/api/v1/query_range", query=query, stats="all", **asked)
        seconds[title] = answer["data"]["stats"]["timings"]["execTotalTime"]
    print("\nqueries of the dashboards over half an hour, by Prometheus' own clock\n")
    print("| query | ms |\n|---|---|")
    for board in dict.fromkeys(title.partition(":")[0] for title in seconds):
        print(f"| all of {board} | {1000 * sum(seconds[one] for one in seconds if one.startswith(f'{board}:')):.0f} |")
    for title in sorted(seconds, key=lambda title: -seconds[title]):
        print(f"| {title} | {1000 * seconds[title]:.1f} |")
