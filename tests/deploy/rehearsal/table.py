"""The table at the end of a rehearsal: for each fault what was expected, what each source said, and how soon."""

from collections.abc import Iterator, Sequence
from typing import Final

from tests.deploy.rehearsal.findings import Compared
from tests.deploy.rehearsal.scene import Alert, Outcome

HEAD: Final = (
    "fault",
    "what the trainers did",
    "Prometheus, sidecars",
    "Prometheus, shared",
    "JSON, shared",
    "alerts of the sidecars' run",
    "alerts of the shared run",
)


def table(outcomes: Sequence[Outcome]) -> str:
    """The rows in Markdown."""
    head, *rows = (f"| {' | '.join(row)} |" for row in (HEAD, *map(_row, outcomes)))
    return "\n".join([head, "|---" * len(HEAD) + "|", *rows])


def differences(outcomes: Sequence[Outcome]) -> list[str]:
    """Every difference between a source and the truth, in words."""
    return [
        f"{outcome.fault.name}: {source}: {difference}"
        for outcome in outcomes
        for source, compared in outcome.sources.items()
        for difference in compared.differences
    ]


def _row(outcome: Outcome) -> tuple[str, ...]:
    sources = outcome.sources
    gone = "gone with the job"
    return (
        outcome.fault.title,
        outcome.truth,
        str(sources["sidecars"]),
        str(sources["shared"]),
        str(sources["JSON"]) if "JSON" in sources else gone,
        *(_alerts(outcome, kind, sources["alerts"]) for kind in ("sidecars", "shared")),
    )


def _alerts(outcome: Outcome, kind: str, compared: Compared) -> str:
    said = ", ".join(_alert(outcome, alert) for alert in outcome.fault.alerts if alert[0] == kind) or "none"
    return said if not compared.differences else f"{said}; **others fired**"


def _alert(outcome: Outcome, alert: Alert) -> str:
    _, name, severity = alert
    after = f" after {outcome.seconds[alert]:.0f} s" if alert in outcome.seconds else ""
    return f"{name} ({severity}){after}"


def closing(outcomes: Sequence[Outcome], took: float) -> Iterator[str]:
    """The last lines."""
    values = sum(compared.values for outcome in outcomes for compared in outcome.sources.values())
    found = differences(outcomes)
    yield f"{len(outcomes)} faults, {took:.0f} s, {values} values compared, {len(found)} differ"
    yield from found
