"""Reports of a real Monitor, and random changes of them. The same random generator makes the same body."""

import copy
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.exporter.fuzz.bombs import BOMBS
from tests.optwrap.monitoring import PARAMETERS, Training
from tests.optwrap.simulated_monitor import SimulatedMonitor

ROOT: Final = Path(__file__).parents[3]
RUNS: Final = ("fuzz-0", "fuzz-1", "fuzz-2")
JUNK: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, 1, -1, 2, 65_536, 2**31, 2**32, 2**53, 2**53 + 1, -(2**63), 2**64, 10**400, 0.5, -0.0),
    *(1e308, -1e308, 5e-324, 1763800000.5, float("nan"), float("inf"), "", "NaN", "Infinity", "-Infinity", "nan"),
    *("w", "a/b", "..", "\0", "\n", "\x1b[31m", "\u202e", "\ud800", "\U0001f4a9", "é", "x" * 1024, "x" * 1025),
    *("x" * 100_000, '"', "\\", "<script>", "' OR 1=1 --", "applied", "finished", [], {}, [[]], [{}], {"": 0}),
)


def bases() -> list[dict[str, Any]]:
    """Reports in every shape that a Monitor makes: hello, steps, bad steps, blocks of steps, a rollback, an end."""
    sim = SimulatedMonitor()
    sim.training = Training(PARAMETERS, mini_step=1)
    sim.inbox.layout = sim.training.layout
    for n in range(30):
        if n == 10:
            saved = sim.training.saved()
        if n == 20:
            sim.training = saved
        bad = {"head": n, PARAMETERS[0]: 1} if n % 7 == 3 else None
        sim.step("skipped_not_finite" if bad else "accumulated" if n % 2 else "applied", bad)
        sim.run(0.4)
    sim.finish()
    wide = SimulatedMonitor()
    wide.training = Training(tuple(f"layer_{n}/w" for n in range(5000)))
    wide.inbox.layout = wide.training.layout
    wide.step("skipped_not_finite", dict.fromkeys(wide.training.layout.parameters, 1))
    wide.run(1.0)
    text = (ROOT / "docs" / "reference" / "wire.md").read_text()
    documented = re.search(r"```json\n(.*?)```", text, re.DOTALL)
    assert documented is not None
    return [*sim.books.order, *wide.books.order[-1:], json.loads(documented[1])]


def body_of(rng: random.Random, originals: list[dict[str, Any]]) -> bytes:
    """One mutated report."""
    if rng.random() < 0.002:
        return BOMBS[rng.choice(sorted(BOMBS))]()
    report = copy.deepcopy(rng.choice(originals))
    # Few enough runs and incarnations that they are met again, in every order.
    report |= {"run": rng.choice(RUNS), "incarnation": f"i{rng.randrange(20)}", "seq": rng.randrange(1, 200)}
    report["oldest_held"] = rng.randrange(1, report["seq"] + 1)
    tree: Any = report
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
        tree = _changed(tree, rng)
    body = json.dumps(tree, separators=rng.choice([(",", ":"), (", ", ": ")]), ensure_ascii=rng.random() < 0.5)
    text = body.encode("utf-8", "surrogatepass")
    return rng.choice(_BYTES)(text, rng) if rng.random() < 0.2 else text


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every container with a key or index in it. Of a long list only a few."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            keys: list[Any] = list(one)
        elif isinstance(one, list):
            keys = list(range(len(one)))[:20]
        else:
            continue
        found += [(one, key) for key in keys[:40]]
        waiting += [one[key] for key in keys[:40]]
    return found


def _changed(tree: Any, rng: random.Random) -> Any:
    places = _places(tree)
    if not places:
        return rng.choice(JUNK)
    container, key = rng.choice(places)
    value = container[key]
    match rng.randrange(9):
        case 0:
            del container[key]
        case 1:
            container[key] = copy.deepcopy(rng.choice(JUNK))
        case 2 if isinstance(value, int | float) and not isinstance(value, bool):
            container[key] = rng.choice(
                [value + 1, value - 1, -value, value * 2, value % 2**53 + 0.5, value * 1000, 2**53]
            )
        case 3 if isinstance(value, list) and value:
            container[key] = [copy.deepcopy(rng.choice(value)) for _ in range(rng.choice((1, 2, 100, 8192, 8193)))]
        case 4 if isinstance(value, dict):
            count = rng.choice((1, 10, 4097))
            value.update({f"{rng.choice(PARAMETERS)}{n}": rng.choice((0, 1, -1, "x")) for n in range(count)})
        case 5:
            other, place = rng.choice(places)
            container[key] = copy.deepcopy(other[place])
        case 6:
            container[key] = rng.choice([[value], {"a": value}, [value] * 3, str(value)[:2000]])
        case 7 if isinstance(value, str):
            at = rng.randrange(len(value) + 1)
            container[key] = value[:at] + str(rng.choice(JUNK))[:200] + value[at:]
        case _ if isinstance(value, list):
            rng.shuffle(value)
        case _:
            container[key] = copy.deepcopy(rng.choice(JUNK))
    return tree


def _flip(body: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(body) + 1)
    return body[:at] + rng.randbytes(rng.randrange(4)) + body[at + rng.randrange(4) :]


def _twice(body: bytes, rng: random.Random) -> bytes:
    """A key twice in its object."""
    keys = list(re.finditer(rb'[{,]\s*("[^"\\]*"\s*:)', body[:20_000]))
    if not keys:
        return body
    found = rng.choice(keys)
    return body[: found.start(1)] + found[1] + rng.choice([b"0,", b'"x",', b"[],", b"null,"]) + body[found.start(1) :]


_BYTES: Final[tuple[Callable[[bytes, random.Random], bytes], ...]] = (
    _flip,
    _twice,
    lambda body, rng: body[: rng.randrange(len(body) + 1)],
    lambda body, rng: body + rng.choice([b"\0", b"{}", b" " * 100_000, b"]"]),
    lambda body, rng: body.replace(b"1", rng.choice([b"01", b"1e999", b"-", b"NaN", b"1.0"]), 1),
)
