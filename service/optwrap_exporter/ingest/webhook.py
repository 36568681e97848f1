"""Posts incidents to a URL as they open and end, for those who have no Alertmanager."""

import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote

import httpx

from optwrap_exporter.ingest.group_commit import Committed
from optwrap_exporter.ledger.incidents.summary import answer
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.ledger.state.incident import IncidentRecord
from optwrap_exporter.wire.vocabulary import IncidentState

_log = logging.getLogger(__name__)

MOST_WAITING: Final = 1000
"""Messages that may wait. Beyond it the oldest is given up."""
TRIES: Final = 8
"""How often a message is sent at most: for about two minutes."""
_LOOK_SECONDS: Final = 1.0
"""The shortest time between two looks for changes, so that a burst of reports costs one look."""
_TIMEOUT: Final = 10.0
_LONGEST_PAUSE: Final = 60.0
_CLOSE_SECONDS: Final = 5.0
_AGAIN: Final = frozenset({408, 425, 429})
"""Statuses below 500 after which the same message may be accepted."""


class Webhook:
    """Posts JSON. Call `start()` when the ledger is restored, then `close()` when nothing is committed any more.

    What the ledger has at the start is not posted: an exporter before has done it.

    Args:
      url: where to post. It may have a secret, so no message shows it.
      ledger: has the incidents.
      link: address of the page.
      failed: called for each message that was given up.
      pause: seconds until the second try; each pause is twice the one before.
    """

    def __init__(self, url: str, ledger: Ledger, *, link: str, failed: Callable[[], None], pause: float = 1.0) -> None:
        self._url = url
        self._ledger = ledger
        self._link = link
        self._failed = failed
        self._pause = pause
        self._told: dict[str, dict[int, IncidentState]] = {}
        self._waiting: deque[dict[str, Any]] = deque()
        self._touched: set[str] = set()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="optwrap-webhook", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        # httpx logs the URL of each request.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._told = {run.run: _states(run.past_incidents, run.incidents) for run in self._ledger.shown()}
        self._thread.start()

    def committed(self, what: Committed) -> None:
        """Look at these runs soon. Any thread may call it; it returns at once."""
        with self._lock:
            self._touched |= what.runs
        self._wake.set()

    def close(self) -> None:
        """Send what waits, each message once, for some seconds at most."""
        self._closing.set()
        self._wake.set()
        self._thread.join(_CLOSE_SECONDS)

    # --- the thread ---

    def _work(self) -> None:
        with httpx.Client(timeout=_TIMEOUT) as client:
            while not self._closing.is_set():
                self._wake.wait()
                self._wake.clear()
                self._look()
                while self._waiting:
                    self._deliver(client, self._waiting.popleft())
                    self._look()
                self._closing.wait(_LOOK_SECONDS)
            self._look()
            while self._waiting:
                self._deliver(client, self._waiting.popleft())

    def _look(self) -> None:
        """Queue a message for each incident of the touched runs that has changed."""
        with self._lock:
            touched, self._touched = self._touched, set()
        if not touched:
            return
        for run in self._ledger.shown():
            if run.run not in touched:
                continue
            before = self._told.get(run.run, {})
            for one in (*run.past_incidents, *run.incidents):
                if before.get(one.id) != one.state:
                    self._waiting.append(self._message(run.run, one))
            self._told[run.run] = _states(run.past_incidents, run.incidents)
        for name in touched - set(self._ledger.runs()):
            self._told.pop(name, None)
        while len(self._waiting) > MOST_WAITING:
            self._waiting.popleft()
            self._give_up(f"more than {MOST_WAITING} messages wait")

    def _message(self, run: str, one: IncidentRecord) -> dict[str, Any]:
        incident = answer(run, one)
        link = f"{self._link}/?run={quote(run, safe='')}"
        return {
            "text": f"optwrap: {run}: {one.kind.replace('_', ' ')}, {one.state}: {incident.summary} {link}",
            "link": link,
            "incident": incident.model_dump(mode="json"),
        }

    def _deliver(self, client: httpx.Client, message: Mapping[str, Any]) -> None:
        why = ""
        for number in range(TRIES):
            try:
                status = client.post(self._url, json=message).status_code
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                why = type(error).__name__  # its text may have the URL
            else:
                if 200 <= status < 300:
                    return
                why = f"status {status}"
                if status < 500 and status not in _AGAIN:
                    break
            if self._closing.is_set():
                break
            pause = min(self._pause * 2**number, _LONGEST_PAUSE)
            self._closing.wait(pause * random.uniform(0.5, 1))
        self._give_up(why)

    def _give_up(self, why: str) -> None:
        self._failed()
        _log.warning("a message to the webhook was given up: %s", why)


def _states(*incidents: tuple[IncidentRecord, ...]) -> dict[int, IncidentState]:
    return {one.id: one.state for some in incidents for one in some}
