"""Schemas of the custom resources in deploy/kubernetes, which kubernetes_validate has none of.

They have only the fields that the manifests use, from the projects' public API references, and are closed, so that a
misspelt field is an error.
"""

from typing import Any, Final

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string", "minLength": 1}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
DURATION: Final[Schema] = {"type": "string", "pattern": r"^(0|([0-9]+(ms|s|m|h|d|w|y))+)$"}
PORT_NAME: Final[Schema] = {"type": "string", "pattern": "^(?=.*[a-z])[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?$"}
TEXTS: Final[Schema] = {"type": "object", "additionalProperties": TEXT}


def closed(required: str = "", **properties: Schema) -> Schema:
    """An object with these fields and no others; `required` names those that must be there."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def listed(items: Schema) -> Schema:
    """A list of one item or more."""
    return {"type": "array", "items": items, "minItems": 1}


def resource(api_version: str, kind: str, spec: Schema) -> Schema:
    """A whole object."""
    metadata = closed("name", name=TEXT, labels=TEXTS, annotations=TEXTS)
    return closed(
        "apiVersion kind metadata spec",
        apiVersion={"const": api_version},
        kind={"const": kind},
        metadata=metadata,
        spec=spec,
    )


def rules(api_version: str, kind: str, **more: Schema) -> Schema:
    """An object with groups of rules."""
    rule = closed(
        "expr", record=TEXT, alert=TEXT, expr=TEXT, labels=TEXTS, annotations=TEXTS, **{"for": DURATION}, **more
    )
    rule["oneOf"] = [{"required": ["record"]}, {"required": ["alert"]}]
    group = closed("name rules", name=TEXT, rules=listed(rule))
    return resource(api_version, kind, closed("groups", groups=listed(group)))


_PORT = {"port": PORT_NAME, "interval": DURATION}
_RELABELING: Final = closed(sourceLabels=listed(TEXT), targetLabel=TEXT, replacement=TEXT, regex=TEXT, action=TEXT)

SCHEMAS: Final[dict[str, Schema]] = {
    "PodMonitor": resource(
        "monitoring.coreos.com/v1",
        "PodMonitor",
        closed(
            "selector podMetricsEndpoints",
            namespaceSelector=closed(any={"type": "boolean"}),
            selector=closed(matchLabels=TEXTS),
            podMetricsEndpoints=listed(closed("port", **_PORT, relabelings=listed(_RELABELING))),
        ),
    ),
    "PrometheusRule": rules("monitoring.coreos.com/v1", "PrometheusRule", keep_firing_for=DURATION),
    "PodMonitoring": resource(
        "monitoring.googleapis.com/v1",
        "PodMonitoring",
        closed(
            "selector endpoints",
            selector=closed(matchLabels=TEXTS),
            endpoints=listed(closed("port interval", **_PORT)),
            targetLabels=closed(metadata=listed({"enum": ["pod", "container", "node"]})),
        ),
    ),
    "Rules": rules("monitoring.googleapis.com/v1", "Rules"),
    "JobSet": resource(
        "jobset.x-k8s.io/v1alpha2",
        "JobSet",
        closed(
            "replicatedJobs",
            coordinator=closed("replicatedJob", replicatedJob=TEXT, jobIndex=COUNT, podIndex=COUNT),
            failurePolicy=closed(
                maxRestarts=COUNT,
                rules=listed(
                    closed(
                        "name action",
                        name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
                        action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
                        onJobFailureReasons=listed(
                            {"enum": ["BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "PodFailurePolicy"]}
                        ),
                    )
                ),
            ),
            replicatedJobs=listed(
                # The Job of the template is validated by the schema of Kubernetes.
                closed("name template", name=TEXT, replicas=COUNT, template=closed("spec", spec={"type": "object"}))
            ),
        ),
    ),
}
