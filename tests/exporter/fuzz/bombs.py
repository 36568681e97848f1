"""Bodies of 4 MiB that are made to cost as much as possible, and are refused."""

import json
from collections.abc import Callable
from typing import Any, Final

SIZE: Final = 4 << 20
"""The largest body that the exporter reads."""


def base() -> dict[str, Any]:
    """A small valid report."""
    counters = {
        "steps": 0,
        "gradient_steps": 0,
        "not_finite_steps": 0,
        "outcomes": dict.fromkeys(
            ("applied", "accumulated", "skipped_not_finite", "skipped_large", "skipped_other", "accepted_not_finite"), 0
        ),
        "parameters": {},
    }
    return {
        **{"run": "bomb", "process": 0, "incarnation": "b", "attempt": "b", "seq": 1, "oldest_held": 1},
        **{"interval": 1.0, "sent_at": 1763800000.0, "state": "starting"},
        "source": {
            **{"host": "h", "platform": "cpu", "device_kind": "cpu", "device_count": 1, "process_count": 1},
            **{"jax_version": "0", "optwrap_version": "0"},
        },
        "totals": counters,
        "at_start": counters,
        "gauges": {},
        "steps": {name: [] for name in ("step", "time", "outcome", "finite", "norm", "mini_step")},
        "offenders": [],
        "dropped": {"steps": 0, "bad_steps": 0},
    }


def filled(at: str, item: Callable[[int], str], ends: str = "[]", *, size: int = SIZE, most: int = 10**9) -> bytes:
    """A report in which the value at the path `at` (dots between keys) is as many items as fit."""
    report = base()
    inner = report
    *outer, last = at.split(".")
    for key in outer:
        inner[key] = dict(inner[key])  # `totals` and `at_start` are one object
        inner = inner[key]
    inner[last] = "@"
    head, tail = json.dumps(report, separators=(",", ":")).split('"@"')
    left = size - len(head) - len(tail) - 2
    items: list[str] = []
    for n in range(most):
        one = item(n)
        left -= len(one.encode()) + 1
        if left < 0:
            break
        items.append(one)
    return f"{head}{ends[0]}{','.join(items)}{ends[1]}{tail}".encode()


def unknown(item: Callable[[int], str], *, most: int = 10**9) -> bytes:
    """A body of as many unknown fields as fit."""
    return filled("more", item, "{}", most=most)


FEW: Final = 40_000
"""As many items of one key, or of three, as pass the limit of values."""

ESCAPED: Final = "\\u00e9" * 10
NESTED: Final = '{"a":' * 150 + "1" + "}" * 150

BOMBS: Final[dict[str, Callable[[], bytes]]] = {
    "empty offenders": lambda: filled("offenders", lambda _: "{}"),
    "empty offenders, 0.3 MB": lambda: filled("offenders", lambda _: "{}", size=300_000),
    "empty offenders that may be parsed": lambda: filled("offenders", lambda _: "{}", most=FEW),
    "empty replicas that may be parsed": lambda: filled("totals.replicas", lambda _: "{}", most=FEW),
    "empty lists": lambda: b"[" + b"[]," * (SIZE // 3 - 1) + b"[]]",
    "lists in lists": lambda: b"[" * SIZE,
    "objects in objects": lambda: b'{"a":' * (SIZE // 5),
    "wrong norms": lambda: filled("steps.norm", lambda _: '"x"'),
    "wrong norms that may be parsed": lambda: filled("steps.norm", lambda _: '"x"', most=100_000),
    "ones": lambda: filled("steps.step", lambda _: "1"),
    "ones that may be parsed": lambda: filled("steps.step", lambda _: "1", most=100_000),
    "nulls that may be parsed": lambda: filled("steps.time", lambda _: "null", most=100_000),
    "wrong parameters": lambda: filled("totals.parameters", lambda n: f'"{n}":-1', "{}"),
    "wrong parameters that may be parsed": lambda: filled(
        "totals.parameters", lambda n: f'"{n:060}":-1', "{}", most=60_000
    ),
    "empty names of parameters": lambda: filled("totals.parameters", lambda _: '"":1', "{}", most=60_000),
    "too many parameters": lambda: filled("totals.parameters", lambda n: f'"{n:060}":1', "{}", most=60_000),
    "unknown fields": lambda: unknown(lambda n: f'"{n}":0'),
    "unknown fields that may be parsed": lambda: unknown(lambda n: f'"{n:060}":0', most=60_000),
    "unknown fields at the top": lambda: b"{" + b",".join(b'"%060d":0' % n for n in range(60_000)) + b"}",
    "unknown fields of a small body": lambda: b"{" + b",".join(b'"%03x":0' % n for n in range(1800)) + b"}",
    "one field again and again": lambda: b"{" + b",".join([b'"run":"r"'] * 60_000) + b"}",
    "unknown fields of gauges": lambda: filled("gauges", lambda n: f'"{n:060}":0', "{}", most=60_000),
    "unknown fields of offenders": lambda: filled(
        "offenders", lambda n: f'{{"step":1,"parameter":"w","not_finite":1,"{n:0400}":0}}', most=8000
    ),
    "nothing but a list": lambda: b'{"x":[' + b",".join([b"1"] * 120_000) + b"]}",
    "a field that is a list": lambda: filled("run", lambda _: "1", most=120_000),
    "a long string": lambda: filled("run", lambda _: '"' + "a" * (SIZE - 2000) + '"', most=1),
    "a long name": lambda: filled("totals.parameters", lambda _: '"' + "a" * (SIZE - 2000) + '":1', "{}", most=1),
    "escapes": lambda: filled("source.host", lambda _: '"' + "\\u0041" * ((SIZE - 2000) // 6) + '"', most=1),
    "half of a surrogate pair, escaped": lambda: b'{"run":"' + b"\\ud800" * (SIZE // 6 - 2) + b'"}',
    "a long integer": lambda: b"1" * SIZE,
    "a long fraction": lambda: b'{"interval":0.' + b"3" * (SIZE - 20) + b"}",
    "a long exponent": lambda: b'{"interval":1e' + b"9" * (SIZE - 20) + b"}",
    "integers of 4,300 digits": lambda: filled("totals.parameters", lambda n: f'"{n}":' + "9" * 4300, "{}"),
    "integers of 30 digits": lambda: filled("steps.step", lambda _: "9" * 30, most=120_000),
    "fractions of 4,000 digits": lambda: filled("steps.time", lambda _: "0." + "3" * 4000),
    "escaped names of parameters": lambda: filled(
        "totals.parameters", lambda n: f'"{ESCAPED}{n}":0', "{}", most=50_000
    ),
    "one name again and again": lambda: filled("totals.parameters", lambda _: f'"{"a" * 60}":0', "{}", most=60_000),
    "a list of one long string": lambda: filled("source.host", lambda _: '"' + "a" * (SIZE - 3000) + 'é"', most=1),
    "nested unknown fields of gauges": lambda: filled("gauges", lambda n: f'"{n}":{NESTED}', "{}", most=400),
    "a long integer in a field": lambda: b'{"seq":' + b"9" * (SIZE - 20) + b"}",
    "white space": lambda: b" " * SIZE,
    "white space, then no JSON": lambda: b" " * (SIZE - 1) + b"x",
    "no UTF-8": lambda: b'{"run":"' + b"\xff" * (SIZE - 20) + b'"}',
    "an open string": lambda: b'{"run":"' + b"a" * (SIZE - 20),
    "null bytes": lambda: b"\0" * SIZE,
    "commas": lambda: b"," * SIZE,
    "colons": lambda: b":" * SIZE,
    "quotes": lambda: b'"' * SIZE,
}
"""By name, what makes the body."""
