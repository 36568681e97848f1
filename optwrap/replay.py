"""Replays the gradient norms of a run that an exporter stored through the rule of `skip_spikes`.

    python -m optwrap.replay RUN --endpoint URL [--spreads 7.5] [--min-ratio 3] [--rebase-after 32] [--max-norm N]

It prints which steps a guard with these settings would have skipped, so that settings can be chosen from last week's
run. Nothing is written anywhere.
"""

import argparse
import dataclasses
import http.client
import json
import math
import os
import socket
import sys
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from optwrap._core.errors import OptwrapError
from optwrap._monitor import settings as _settings
from optwrap._wrappers import spike_rule as _rule

_TIMEOUT: Final = 30.0
_WINDOW: Final = 10_000
"""Steps asked for at once. The exporter shortens larger answers."""
_SMALLEST: Final = 500
"""Steps of the shortest request: if the exporter leaves out steps even then, the replay says so."""
_LISTED: Final = 20
"""Steps that the text lists."""
_EPILOG: Final = """\
The norms are those of the incoming gradients, so the replay shows a guard that is the outermost wrapper; with
MultiSteps each mini-step is a step. A step that the run took, and that the guard would have skipped, changed all later
norms: the replay shows what the guard would have seen first, not what would have followed. If the exporter left out
steps, the output says so.
OPTWRAP_ENDPOINT, OPTWRAP_TOKEN_FILE and OPTWRAP_CA_FILE mean the same as for a Monitor."""


class ReplayError(OptwrapError):
    """The norms cannot be read from the exporter. The message says why, and what to do."""


@dataclasses.dataclass
class Stored:
    """The norms of one process that the exporter has, in the order of the steps."""

    process: int
    steps: list[int] = dataclasses.field(default_factory=list)
    norms: list[float] = dataclasses.field(default_factory=list)
    """NaN where the gradients were not finite."""
    skipped_large: int = 0
    """Steps that the training itself skipped for their norm."""
    repeated: int = 0
    """Records of steps that were taken again after a rollback; the last one counts."""
    left_out: int = 0
    """Records that the exporter has and did not return, because there are too many in a few steps."""

    @property
    def missing(self) -> int:
        """Steps between the first and the last that have no record."""
        return self.steps[-1] - self.steps[0] + 1 - len(self.steps) if self.steps else 0


class Client:
    """The steps of a run, from GET /v1/runs/{run}/steps."""

    def __init__(self, endpoint: _settings.Endpoint, token: str | None, run: str, process: int | None) -> None:
        self._endpoint = endpoint
        self._headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._run = run
        self._process = process

    def stored(self, since: int | None, until: int | None) -> Stored:
        """All norms from step `since` to `until`; None for no limit.

        Raises:
          ReplayError: there is no exporter, no such run or process, or no step.
        """
        whole = self._steps(since, until, points=2)
        if not whole["total"]:
            raise ReplayError(
                f"run {self._run!r}, process {whole['process']}: no step is stored in that range: leave out --since "
                "and --until, or look at another process with --process"
            )
        first = since or _smallest(lambda step: self._steps(None, step, points=2)["total"] > 0)
        last = until or _smallest(lambda step: self._steps(step + 1, None, points=2)["total"] == 0)
        records: dict[int, tuple[float, bool, bool]] = {}
        found = Stored(whole["process"])
        start, size = first, _WINDOW
        while start <= last:
            answer = self._steps(start, min(start + size - 1, last), points=2 * _WINDOW)
            columns = answer["columns"]
            left_out = answer["total"] - len(columns["step"])
            if left_out > 0 and size > _SMALLEST:
                size = max(_SMALLEST, size // 2)
                continue
            found.left_out += max(0, left_out)
            rows = zip(
                columns["step"], columns["time"], columns["norm"], columns["finite"], columns["outcome"], strict=True
            )
            for step, _, norm, finite, outcome in sorted(rows, key=lambda row: (row[0], row[1])):
                found.repeated += step in records
                records[step] = _number(norm), finite, outcome == "skipped_large"
            start += size
            size = min(_WINDOW, 2 * size)
        for step in sorted(records):
            norm, finite, large = records[step]
            found.steps.append(step)
            found.norms.append(norm if finite else math.nan)
            found.skipped_large += large
        return found

    def _steps(self, since: int | None, until: int | None, *, points: int) -> dict[str, Any]:
        query = {"since": since, "until": until, "points": points, "process": self._process}
        text = urllib.parse.urlencode({name: value for name, value in query.items() if value is not None})
        path = f"{self._endpoint.prefix}/v1/runs/{urllib.parse.quote(self._run, safe='')}/steps?{text}"
        try:
            status, body = self._get(path)
        except (OSError, http.client.HTTPException) as error:
            raise ReplayError(
                f"no exporter answers at {self._endpoint.text}: {error or type(error).__name__}: check --endpoint, and "
                "that the exporter runs"
            ) from error
        try:
            answer = json.loads(body)
            if status == 200:
                return {name: answer[name] for name in ("process", "total", "columns")}
            reason = "; ".join(
                f"{one['field']}: got {one['value']}, allowed: {one['allowed']}" for one in answer["detail"]
            )
        except (ValueError, TypeError, KeyError):
            reason = f"status {status}, and the answer is not an exporter's: check --endpoint"
        raise ReplayError(f"{self._endpoint.text} refuses the steps of run {self._run!r}: {reason}")

    def _get(self, path: str) -> tuple[int, bytes]:
        endpoint, port = self._endpoint, self._endpoint.port or None
        if endpoint.secure:
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                endpoint.host, port, timeout=_TIMEOUT, context=endpoint.tls()
            )
        else:
            connection = http.client.HTTPConnection(endpoint.host, port, timeout=_TIMEOUT)
        try:
            if endpoint.socket_path is not None:
                connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                connection.sock.settimeout(_TIMEOUT)
                connection.sock.connect(endpoint.socket_path)
            connection.request("GET", path, headers=self._headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def replayed(stored: Stored, settings: _rule.Settings) -> dict[str, Any]:
    """What a guard with these settings would have skipped, as `--json` prints it."""
    after = _rule.replay(np.array(stored.norms, np.float32), settings)
    decision, limit = np.asarray(after.decision), np.asarray(after.limit)
    rebases = np.flatnonzero(np.diff(np.asarray(after.rebases), prepend=0))
    large = np.flatnonzero(decision == _rule.LARGE)
    return {
        "process": stored.process,
        "first_step": stored.steps[0],
        "last_step": stored.steps[-1],
        "steps": len(stored.steps),
        "missing": stored.missing,
        "left_out": stored.left_out,
        "repeated": stored.repeated,
        "settings": {name: value if math.isfinite(value) else None for name, value in settings._asdict().items()},
        "skipped_large_by_the_run": stored.skipped_large,
        "would_skip_large": len(large),
        "would_skip_not_finite": int(np.sum(decision == _rule.NOT_FINITE)),
        "large": [{"step": stored.steps[i], "norm": stored.norms[i], "limit": float(limit[i])} for i in large],
        "rebases": [stored.steps[i] for i in rebases],
    }


def text_of(run: str, result: dict[str, Any]) -> str:
    """The result for a terminal."""
    steps = result["steps"]
    lines = [
        f"{run}, process {result['process']}: {steps:,} steps, {result['first_step']:,} to {result['last_step']:,}",
        *_gaps(result),
        "settings: "
        + ", ".join(f"{name} {'none' if v is None else f'{v:g}'}" for name, v in result["settings"].items()),
        f"would skip {result['would_skip_large']:,} steps as large ({_share(result['would_skip_large'], steps)}), "
        f"{result['would_skip_not_finite']:,} as not finite ({_share(result['would_skip_not_finite'], steps)})",
        f"the run itself skipped {result['skipped_large_by_the_run']:,} of these steps as large",
        f"rebases: {_some([f'step {step:,}' for step in result['rebases']])}",
        "large: "
        + _some([f"step {o['step']:,} (norm {o['norm']:.3g}, limit {o['limit']:.3g})" for o in result["large"]]),
    ]
    return "\n".join(lines)


def _gaps(result: dict[str, Any]) -> list[str]:
    """What the replay did not see."""
    notes = []
    if result["left_out"]:
        notes.append(f"{result['left_out']:,} steps are stored, but thinned out in the answers")
    missing = result["missing"] - result["left_out"]
    if missing > 0:
        notes.append(f"{missing:,} steps in between are not stored: they are too old, or were dropped")
    if result["repeated"]:
        notes.append(f"{result['repeated']:,} steps were taken again after a rollback: the last time counts")
    if result["left_out"] or missing > 0:
        notes.append("the true guard would have seen those steps, too: take the figures as an estimate")
    return [f"note: {note}" for note in notes]


def _share(count: int, of: int) -> str:
    return f"{100 * count / of:.2f} %"


def _some(items: list[str]) -> str:
    if not items:
        return "none"
    rest = f" and {len(items) - _LISTED:,} more (--json lists all)" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + rest


def _number(value: Any) -> float:
    """A norm of the wire, where numbers that are not finite are strings, as a float; NaN for null."""
    return math.nan if value is None else float(value)


def _smallest(holds: Callable[[int], bool]) -> int:
    """The smallest number from 1 for which a rising condition holds."""
    high = 1
    while not holds(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m optwrap.replay",
        description="Show which steps of a stored run skip_spikes would have skipped, with settings of your choice.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = _rule.Settings()
    parser.add_argument("run", help="name of the run")
    parser.add_argument(
        "--endpoint", help=f"the exporter: http(s)://HOST:PORT or unix:///PATH ({_settings.DEFAULT_ENDPOINT})"
    )
    parser.add_argument("--token-file", help="file with a bearer token, if a proxy in front of the exporter wants one")
    parser.add_argument("--process", type=int, help="process of the run (default: the one whose steps the run shows)")
    parser.add_argument("--since", type=_step, help="first step (default: the first one stored)")
    parser.add_argument("--until", type=_step, help="last step (default: the last one stored)")
    parser.add_argument(
        "--spreads", type=float, default=default.spreads, help="as in skip_spikes (default %(default)s)"
    )
    parser.add_argument("--min-ratio", type=float, default=default.min_ratio, help="likewise (default %(default)s)")
    parser.add_argument("--rebase-after", type=int, default=default.rebase_after, help="likewise (default %(default)s)")
    parser.add_argument("--max-norm", type=float, default=default.max_norm, help="likewise (default: none)")
    parser.add_argument("--json", action="store_true", help="print JSON, with every step")
    return parser


def _step(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a step's number, from 1, got {text}")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 1 if the norms cannot be read, 2 if an option is wrong."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        given = _settings.resolve(
            os.environ,
            run=options.run,
            endpoint=options.endpoint,
            process=options.process,
            token_file=options.token_file,
        )
        settings = _rule.checked(
            "", _rule.Settings(options.spreads, options.min_ratio, options.rebase_after, options.max_norm)
        )
        if given is None:
            raise ValueError("endpoint: got 'off'; allowed: the address of an exporter that has the run")
        if options.since and options.until and options.since > options.until:
            raise ValueError(f"--until: got {options.until}; allowed: at least --since, {options.since}")
        token = _settings.read_token(given.token_file) if given.token_file else None
    except (ValueError, OSError) as error:
        parser.error(str(error))
    try:
        stored = Client(given.endpoint, token, given.run, given.process).stored(options.since, options.until)
    except ReplayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    result = replayed(stored, settings)
    print(json.dumps({"run": given.run, **result}, indent=1) if options.json else text_of(given.run, result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
