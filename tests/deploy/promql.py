"""What the tests ask of a PromQL expression: which names it has, and how it aggregates over processes."""

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import promql_parser
from optwrap_exporter.metrics.table import METRICS, PROCESS, Metric

GRAFANA: Final = {"$__rate_interval": "20s", "$__range": "1800s", "$run": "lm", "$instance": "node-0:10425"}
"""Values for what Grafana puts in before it sends a query."""

OF_SCRAPING: Final = {"job", "instance"}
OF_PROMETHEUS: Final = {"up": OF_SCRAPING, "ALERTS": {*OF_SCRAPING, "alertname", "alertstate", "severity", "run"}}
"""What Prometheus makes itself, and its labels."""

SERIES: Final[dict[str, Metric]] = {
    name: metric
    for metric in METRICS
    for name in (
        [f"{metric.name}{suffix}" for suffix in ("_bucket", "_sum", "_count")]
        if metric.type == "histogram"
        else [metric.name]
    )
}
"""The metric by the name that its series have."""


def substituted(expr: str) -> str:
    """`expr` as Grafana would send it."""
    for name, value in GRAFANA.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, f"a variable that these tests do not know: {expr}"
    return expr


class Node(NamedTuple):
    """A node of an expression's tree."""

    expr: Any
    above: tuple[Any, ...]
    """Those above it, the outermost first."""
    chooses: bool
    """Whether it is right of an `and` or `unless`: it chooses among series, its own values are not seen."""


def nodes(expr: str) -> Iterator[Node]:
    """Every node of the expression's tree."""

    def below(node: Any, above: tuple[Any, ...], chooses: bool) -> Iterator[Node]:
        yield Node(node, above, chooses)
        sides = {name: getattr(node, name, None) for name in ("lhs", "rhs", "expr", "vector_selector")}
        sides |= {str(place): argument for place, argument in enumerate(getattr(node, "args", []))}
        for side, child in sides.items():
            if isinstance(child, promql_parser.Expr):
                right = side == "rhs" and str(node.op) in {"and", "unless"}
                yield from below(child, (*above, node), chooses or right)

    yield from below(promql_parser.parse(substituted(expr)), (), False)


def selectors(expr: str) -> list[promql_parser.VectorSelector]:
    """Every selector in the expression."""
    return [node.expr for node in nodes(expr) if isinstance(node.expr, promql_parser.VectorSelector)]


def grouping(expr: str) -> set[str]:
    """Every label that an aggregation or a matching of the expression names."""
    labels: set[str] = set()
    for node, _, _ in nodes(expr):
        modifier = getattr(node, "modifier", None)
        if isinstance(node, promql_parser.BinaryExpr) and modifier is not None:
            modifier = modifier.matching
        if modifier is not None:
            labels |= set(modifier.labels)
    return labels


def unknown(expr: str, recorded: set[str]) -> list[str]:
    """What the expression names that neither the metric table nor the recording rules have."""
    wrong = []
    known_labels = set(OF_SCRAPING)
    for selector in selectors(expr):
        if selector.name in SERIES:
            labels = {*SERIES[selector.name].labels, *OF_SCRAPING}
            if SERIES[selector.name].type == "histogram":
                labels.add("le")
        elif selector.name in recorded:
            labels = set(selector.name.split(":")[0].split("_"))
        elif selector.name in OF_PROMETHEUS:
            labels = OF_PROMETHEUS[selector.name]
        else:
            wrong.append(f"metric {selector.name}")
            continue
        known_labels |= labels
        wrong += [
            f"label {matcher.name} of {selector.name}"
            for matcher in selector.matchers.matchers
            if matcher.name not in labels
        ]
        for matcher in selector.matchers.matchers:
            wrong += [f"{value} of {selector.name}" for value in _unknown_values(SERIES.get(selector.name), matcher)]
    return wrong + [f"label {label}" for label in sorted(grouping(expr) - known_labels)]


def _unknown_values(metric: Metric | None, matcher: Any) -> Iterator[str]:
    """A label whose values the table lists has no others; what a job may choose freely is not listed."""
    listed = re.findall(r"`(\w+)`", metric.note) if metric is not None else []
    if not listed or matcher.name in {*PROCESS, *OF_SCRAPING, "parameter"}:
        return
    for value in matcher.value.split("|"):
        if value not in listed:
            yield f"{matcher.name}={value!r}"


def wrong_over_processes(expr: str, *, shown: bool = False) -> list[str]:
    """Where the expression aggregates over processes in a way that tells something untrue.

    Args:
      expr: the expression.
      shown: whether its result is only shown, never recorded: then the largest of the raw counters may be asked for.
    """
    wrong = []
    for node, above, chooses in nodes(expr):
        if chooses or not isinstance(node, promql_parser.VectorSelector):
            continue
        metric = SERIES.get(node.name)
        if metric is None or not set(PROCESS) <= set(metric.labels):
            continue
        if any(isinstance(outer, promql_parser.SubqueryExpr) for outer in above):
            wrong.append(f"{node.name} under a subquery: a rate of an aggregate jumps when a process goes")
        if metric.type == "counter":
            rated = any(
                isinstance(outer, promql_parser.Call) and outer.func.name in {"rate", "increase"} for outer in above
            )
            if not rated and not shown:
                wrong.append(f"{node.name}: a raw counter")
        wrong += [
            f"{outer.op} over the processes of {node.name}"
            for outer in above
            if isinstance(outer, promql_parser.AggregateExpr)
            and str(outer.op) in {"sum", "avg"}
            and not _keeps_processes(outer)
        ]
    return wrong


def _keeps_processes(aggregation: Any) -> bool:
    modifier = aggregation.modifier
    if modifier is None:
        return False
    without = str(modifier.type) == "AggModifierType.Without"
    return ("process" in modifier.labels) != without


def words(text: str) -> set[str]:
    """Everything in a text that looks like the name of one of our metrics."""
    return set(re.findall(r"\boptwrap_[a-z_]+", text)) - {"optwrap_exporter"}
