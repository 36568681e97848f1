"""The rows of the launches of a run. Pure.

Processes whose launch is unknown have an attempt each. The first ones of all of them count as one launch, and so on;
once the processes have left them, their rows are apart.
"""

from collections.abc import Mapping

from optwrap_exporter.ledger.change import health
from optwrap_exporter.ledger.state.past import Launch
from optwrap_exporter.ledger.state.process import ProcessState
from optwrap_exporter.ledger.state.run import RunState
from optwrap_exporter.wire.answers import AttemptRow


def rows(run: RunState, now: float, listening: float) -> list[AttemptRow]:
    """The launches of the run, by their first report. Of those that are over long ago only the last ones."""
    found: dict[str | int, Launch] = {}

    def add(launch: Launch, key: str | int | None = None) -> None:
        key = launch.attempt if key is None else key
        known = found.get(key)
        found[key] = known.joined(launch) if known is not None else launch

    for past in (*run.past.launches, *(one.launch for one in run.past.open.values())):
        add(past)
    for process in run.processes.values():
        silent = health.stale_since(process, now, listening) is not None
        mine: dict[str, Launch] = {}
        for part in process.parts:  # the state of a process is that of its last part
            lost = not part.ended and (silent or part is not process.incarnation)
            before = mine.get(part.attempt)
            mine[part.attempt] = Launch(
                part.attempt,
                min(part.first_report, before.since if before is not None else part.first_report),
                max(part.last_report, before.until if before is not None else part.last_report),
                "lost" if lost else part.state,
                part.reason,
                part.began_at if before is None or before.start_step is None else before.start_step,
            )
        numbers = _own_numbers(process)
        for launch in mine.values():
            add(launch, numbers.get(launch.attempt))
    return [AttemptRow(**one._asdict()) for one in sorted(found.values(), key=lambda one: (one.since, one.attempt))]


def _own_numbers(process: ProcessState) -> Mapping[str, int]:
    """By attempt of a process whose launch is unknown, which one of those it is."""
    own = list(dict.fromkeys(part.attempt for part in process.parts if part.own_attempt))
    return {attempt: process.own_attempts - len(own) + number for number, attempt in enumerate(own, 1)}
