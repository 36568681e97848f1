"""Encodes an incarnation and its step records as the JSON of one report: see docs/reference/wire.md."""

import dataclasses
import json
import math
import operator
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from optwrap._monitor.account import Incarnation, subtract
from optwrap._monitor.backlog import Record
from optwrap._monitor.queue import Diagnosis, Ending
from optwrap._monitor.worst import MAX_PARAMETERS, Named, name_worst
from optwrap._reading.replicas import Replica
from optwrap._reading.unpack import Totals

_Value = TypeVar("_Value", int, float)


@dataclasses.dataclass(frozen=True)
class Identity:
    """The identity of the reporting process."""

    run: str
    process: int
    attempt: str
    interval: float
    """Seconds between reports."""
    replicated: bool = True
    """Whether all processes of the attempt train the same parameters."""


def encode(
    identity: Identity,
    incarnation: Incarnation,
    records: Sequence[Record],
    *,
    oldest_held: int,
    source: Mapping[str, Any],
    sent_at: float,
    max_parameters: int = MAX_PARAMETERS,
) -> bytes:
    """The body of one report.

    Args:
      identity: the reporting process.
      incarnation: the counts, gauges and `seq`.
      records: records of its steps, in order.
      oldest_held: the lowest `seq` that is not acknowledged.
      source: the wire's `source`: host, platform, devices and versions.
      sent_at: seconds since 1970.
      max_parameters: limit of the parameters that the totals name, and the record of one step; at most MAX_PARAMETERS.
    """
    # Parameters are counted from the start of the incarnation, as replicas are. So `at_start` need not name any.
    parameters = subtract(incarnation.totals, incarnation.at_start).parameters
    if max_parameters < MAX_PARAMETERS:
        records = [
            dataclasses.replace(record, nonfinite_parameters=_fewer(record.nonfinite_parameters, max_parameters))
            for record in records
        ]
    body = {
        "run": identity.run,
        "process": identity.process,
        "incarnation": incarnation.id,
        "attempt": identity.attempt,
        "seq": incarnation.seq,
        "oldest_held": oldest_held,
        "interval": identity.interval,
        "sent_at": sent_at,
        "state": incarnation.state,
        "source": source,
        "totals": totals(dataclasses.replace(incarnation.totals, parameters=parameters), max_parameters),
        "at_start": totals(dataclasses.replace(incarnation.at_start, parameters={})),
        "gauges": _gauges(incarnation.gauges),
        "steps": _columns(records),
        "offenders": [
            {"step": record.step, "parameter": parameter, field: value}
            for record in records
            for field, values in (
                ("not_finite", _by_path(record.nonfinite_parameters.counts, operator.add)),
                ("norm_share", _by_path(record.largest_parameters, lambda a, b: min(1.0, a + b))),
            )
            for parameter, value in values.items()
        ],
    }
    if not identity.replicated:
        body["replicated"] = False
    if incarnation.ending is not None:
        body |= _ending(incarnation.ending)
    unnamed = [
        {"step": record.step, "parameters": others, "not_finite": rest}
        for record in records
        if (others := record.nonfinite_parameters.others) and (rest := record.nonfinite_parameters.rest)
    ]
    if unnamed:
        body["unnamed"] = unnamed
    replicas = [
        {"step": record.step, **_replica(found.first), "count": found.affected, "of": found.total}
        for record in records
        if (found := record.nonfinite_replicas) is not None
    ]
    if replicas:
        body["replicas"] = replicas
    if incarnation.diagnoses:
        body["diagnoses"] = [_diagnosis(diagnosis) for diagnosis in incarnation.diagnoses]
    body["dropped"] = {"steps": incarnation.dropped_steps, "bad_steps": incarnation.dropped_bad_steps}
    return json.dumps(body, allow_nan=False, separators=(",", ":")).encode("ascii")


def totals(of: Totals, max_parameters: int = MAX_PARAMETERS) -> dict[str, Any]:
    """The JSON of totals; without `replicas` if there are none, and without `parameter_steps` if all are named."""
    named = name_worst(of.parameters, max_parameters)
    found: dict[str, Any] = {
        "steps": of.steps,
        "gradient_steps": of.gradient_steps,
        "not_finite_steps": of.not_finite_steps,
        "outcomes": dict(of.outcomes),
        "parameters": _by_path(named.counts, max),
    }
    if named.others:
        found["parameter_steps"] = sum(of.parameters.values())
    if of.replicas:
        found["replicas"] = [_replica(replica) | {"steps": steps} for replica, steps in of.replicas.items()]
    return found


def _ending(ending: Ending) -> dict[str, Any]:
    """Why it ended and where to roll back to."""
    found: dict[str, Any] = {}
    if ending.reason is not None:
        found["reason"] = _line(ending.reason)
    if ending.last_clean_step is not None:
        found["last_clean_step"] = ending.last_clean_step
    return found


def _diagnosis(diagnosis: Diagnosis) -> dict[str, Any]:
    found: dict[str, Any] = {} if diagnosis.step is None else {"step": diagnosis.step}
    found["cause"] = _line(diagnosis.cause)
    if diagnosis.remedy is not None:
        found["remedy"] = _line(diagnosis.remedy)
    return found


def _line(text: str) -> str:
    """A text in the form that the wire allows: one line of at most 256 characters."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in line)[:256]


def _fewer(named: Named, limit: int) -> Named:
    """The same parameters, of which at most `limit` are named."""
    fewer = name_worst(named.counts, limit, keep_first=True)
    return Named(fewer.counts, named.others + fewer.others, named.rest + fewer.rest)


def _replica(replica: Replica) -> dict[str, Any]:
    return {"replica": replica.number, "process": replica.process, "device": replica.device}


def _by_path(counts: Mapping[str, _Value], combine: Callable[[_Value, _Value], _Value]) -> dict[str, _Value]:
    """The counts or shares by escaped path. If several paths become the same one, their values are combined."""
    found: dict[str, _Value] = {}
    for parameter, count in counts.items():
        path = _path(parameter)
        found[path] = combine(found[path], count) if path in found else count
    return found


def _path(parameter: str) -> str:
    """A parameter's path in the form that the wire allows: 1 to 1024 characters, none of them a control character."""
    if parameter.isascii() and parameter.isprintable() and 0 < len(parameter) <= 1024:
        return parameter
    # Cc are control characters; Cs are lone surrogates, which UTF-8 cannot encode.
    escaped = (c.encode("unicode_escape").decode() if unicodedata.category(c) in ("Cc", "Cs") else c for c in parameter)
    return "".join(escaped)[:1024] or "."


def _gauges(gauges: Mapping[str, float | int]) -> dict[str, Any]:
    """The gauges that have a value. The wire has no gradient_step, and only the two norms may be non-finite."""
    return {
        name: _number(value)
        for name, value in gauges.items()
        if name in ("gradient_norm", "update_norm") or (name != "gradient_step" and math.isfinite(value) and value >= 0)
    }


def _columns(records: Sequence[Record]) -> dict[str, Any]:
    """The step records, column by column."""
    found: dict[str, Any] = {
        "step": [record.step for record in records],
        "time": [record.time for record in records],
        "outcome": [record.outcome for record in records],
        "finite": [record.finite for record in records],
        "norm": [_number(record.norm) for record in records],
        "mini_step": [record.mini_step for record in records],
    }
    if any(record.interpolated for record in records):
        found["interpolated"] = [record.interpolated for record in records]
    if any(record.update_norm is not None for record in records):
        found["update_norm"] = [_optional(record.update_norm) for record in records]
    if names := list(dict.fromkeys(name for record in records for name in record.scalars)):
        found["scalars"] = {name: [_optional(record.scalars.get(name)) for record in records] for name in names}
    return found


def _optional(value: float | None) -> float | str | None:
    return None if value is None else _number(value)


def _number(value: float) -> float | str:
    """The number, or its name if it is non-finite, because JSON has no such numbers."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
