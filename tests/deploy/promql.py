"""Analysis of PromQL expressions: the names they use, and how they aggregate over processes."""

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import promql_parser
from optwrap_exporter.metrics.metric import Metric
from optwrap_exporter.metrics.table import METRICS, PROCESS

GRAFANA: Final = {
    "$__rate_interval": "20s",
    "$__range": "1800s",
    "$run": "lm",
    "$instance": "node-0:10425",
    "$cluster": ".*",
    "$namespace": ".*",
}
"""Values of the variables that Grafana substitutes in a query."""

OF_SCRAPING: Final = {"job", "instance", "cluster", "namespace", "pod", "node"}
OF_PROMETHEUS: Final = {"up": OF_SCRAPING, "ALERTS": {*OF_SCRAPING, "alertname", "alertstate", "severity", "run"}}
"""Series that Prometheus creates itself, and their labels."""

SERIES: Final[dict[str, Metric]] = {
    name: metric
    for metric in METRICS
    for name in (
        [f"{metric.name}{suffix}" for suffix in ("_bucket", "_sum", "_count")]
        if metric.type == "histogram"
        else [metric.name]
    )
}
"""The metric of each series name."""


def substituted(expr: str) -> str:
    """`expr` as Grafana would send it."""
    for name, value in GRAFANA.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, f"a variable that is not in GRAFANA: {expr}"
    return expr


class Node(NamedTuple):
    """A node of an expression's tree."""

    expr: Any
    above: tuple[Any, ...]
    """Its ancestors, the outermost first."""
    chooses: bool
    """Whether it is on the right of `and` or `unless`. It then selects series, and its values are not in the result."""


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
    """The names in the expression that are in neither the metric table nor the recording rules."""
    wrong = []
    known_labels = set(OF_SCRAPING)
    for selector in selectors(expr):
        if selector.name in SERIES:
            labels = {*SERIES[selector.name].labels, *OF_SCRAPING}
            if SERIES[selector.name].type == "histogram":
                labels.add("le")
        elif selector.name in recorded:
            labels = {*selector.name.split(":")[0].split("_"), "cluster", "namespace"}
            if "instance" in labels:
                labels |= {"pod", "node"}
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
    """The values that the metric table does not list for this label. Labels with free values have no list."""
    listed = re.findall(r"`(\w+)`", metric.note) if metric is not None else []
    # "As for `optwrap_process_health`": the values are listed there.
    listed += [value for name in listed if name in SERIES for value in re.findall(r"`(\w+)`", SERIES[name].note)]
    if not listed or matcher.name in {*PROCESS, *OF_SCRAPING, "parameter"}:
        return
    for value in matcher.value.split("|"):
        if value not in listed:
            yield f"{matcher.name}={value!r}"


def wrong_over_processes(expr: str, *, shown: bool = False) -> list[str]:
    """Wrong aggregations over processes in the expression.

    Args:
      expr: the expression.
      shown: whether its result is only displayed. It may then be the largest raw counter.
    """
    wrong = []
    for node, above, chooses in nodes(expr):
        if chooses or not isinstance(node, promql_parser.VectorSelector):
            continue
        metric = None if node.name is None else SERIES.get(node.name)
        if metric is None or not _repeated(metric) or _of_one_process(node):
            continue
        if any(isinstance(outer, promql_parser.SubqueryExpr) for outer in above):
            wrong.append(f"{node.name} under a subquery: a rate of an aggregate jumps when a process goes")
        if metric.type == "counter":
            rated = any(
                isinstance(outer, promql_parser.Call) and outer.func.name in {"rate", "increase"} for outer in above
            )
            if not rated and not shown:
                wrong.append(f"{node.name}: a raw counter")
        for outer in reversed(above):
            if not isinstance(outer, promql_parser.AggregateExpr) or _keeps_processes(outer):
                continue
            # The first aggregation over the processes decides. What is above it is over runs.
            if str(outer.op) in {"sum", "avg"}:
                wrong.append(f"{outer.op} over the processes of {node.name}")
            break
    return wrong


def merged_runs(expr: str) -> list[str]:
    """The aggregations that make one of two runs that have the same name in two clusters or namespaces.

    They aggregate series of runs before anything has kept the runs apart, or they group by the name alone.
    """
    wrong = []
    for node, above, chooses in nodes(expr):
        metric = SERIES.get(node.name or "") if isinstance(node, promql_parser.VectorSelector) else None
        if chooses or metric is None or "run" not in metric.labels:
            continue
        over = [outer for outer in reversed(above) if isinstance(outer, promql_parser.AggregateExpr)]
        for outer in over:
            by = set(outer.modifier.labels) if outer.modifier is not None else set()
            without = outer.modifier is not None and str(outer.modifier.type) == "AggModifierType.Without"
            if without or {"cluster", "namespace"} <= by:
                continue
            if "run" in by or outer is over[0]:
                wrong.append(f"{outer.op} by {sorted(by)} of {node.name}")
    return wrong


def _repeated(metric: Metric) -> bool:
    """Whether several series have the same counts: those of processes, and those of a run from several exporters."""
    of_run = metric.labels[:1] == PROCESS[:1] and metric.type == "counter"
    return set(PROCESS) <= set(metric.labels) or (of_run and metric.name != "optwrap_run_client_dropped_total")


def _of_one_process(selector: Any) -> bool:
    """Whether it selects the series of one process, which is in one place at a time."""
    return any(
        matcher.name == "process" and str(matcher.op) == "MatchOp.Equal" for matcher in selector.matchers.matchers
    )


def _keeps_processes(aggregation: Any) -> bool:
    modifier = aggregation.modifier
    if modifier is None:
        return False
    without = str(modifier.type) == "AggModifierType.Without"
    return ("process" in modifier.labels) != without


def words(text: str) -> set[str]:
    """All words in a text that look like the name of a metric of ours."""
    return set(re.findall(r"\boptwrap_[a-z_]+", text)) - {"optwrap_exporter"}
