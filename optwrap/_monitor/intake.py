"""From the inbox to the account: in the reporting thread, without ever waiting for a device."""

import time
from collections.abc import Callable
from typing import Final

from optwrap._monitor import arrays
from optwrap._monitor.account import Account, Observed
from optwrap._monitor.log import Once, place_of
from optwrap._monitor.queue import Inbox, Item
from optwrap._reading.counters import Words
from optwrap._reading.replicas import Brought, brought
from optwrap._reading.unpack import Layout, Reading, unpack

_BREATH: Final = 4
"""Readings after which another thread is let in. Giving up the interpreter for no time at all would not do: who waits
for it is not awake yet when it is taken again, and otherwise gets it only after 5 ms."""


class Intake:
    """Takes readings out of the inbox in their order, as the device finishes them.

    A step that hangs on the device keeps the readings behind it waiting, not this thread: reports go on, and say that
    no step was taken.

    Args:
      inbox: where readings come from.
      account: where they are counted.
      once: says what could not be counted.
      breathe: called after every few readings: waits for an instant, so that who wants the interpreter gets it.
    """

    def __init__(
        self, inbox: Inbox, account: Account, once: Once, *, breathe: Callable[[], None] = lambda: time.sleep(1e-5)
    ) -> None:
        self._inbox = inbox
        self._account = account
        self._once = once
        self._breathe = breathe
        self._head: Item | None = None
        """The oldest reading: out of the inbox, where it could be overwritten, and not ready yet."""
        self._unnamed: tuple[Item, int] | None = None
        """A first reading that came before anybody said what its parameters are called, and how many were lost."""
        self._last_number = 0
        self._last_time: float | None = None

    def drain(self, *, last: bool = False) -> bool:
        """Count what the device has finished; returns whether that is everything.

        Args:
          last: whoever asks does not want to wait for what the parameters are called.
        """
        while True:
            if self._head is None:
                self._head = self._next()
            if self._head is None:
                if self._inbox.layout is not None or last:
                    self._count_unnamed()
                return True
            if not arrays.is_ready(self._head.observed):
                return False
            item, self._head = self._head, None
            lost = item.number - self._last_number - 1
            self._last_number = item.number
            self._count_unnamed()
            if self._account.untouched and self._inbox.layout is None:
                # The step was not traced yet: the parameters' names come with its first trace, before its first result.
                self._unnamed = item, lost
            else:
                self._count(item, lost)
            if item.number % _BREATH == 0:
                self._breathe()

    def abandon(self) -> None:
        """Count as dropped what is still waiting."""
        waiting = len(self._inbox.items) + (self._head is not None)
        self._account.current.drop(waiting, 0)

    def _next(self) -> Item | None:
        """The oldest reading there is that was not taken yet."""
        first = self._inbox.first
        if first is not None and not self._last_number:
            # Held there no longer than here; what stays says that there was a first.
            self._inbox.first = first._replace(observed=None)
            return first
        item = self._inbox.take()
        return self._inbox.take() if item is not None and item.number == 1 else item

    def _count_unnamed(self) -> None:
        if self._unnamed is not None:
            (item, lost), self._unnamed = self._unnamed, None
            self._count(item, lost)

    def _is_restored(self, item: Item, newest: Words, layout: Layout | None) -> bool:
        """Whether the item says where a restored state stands, and is no step."""
        if item.restored is not None:
            return item.restored
        return self._account.untouched and not item.stepping and unpack(newest, layout).step > 1

    def _unseen(self, words: Words) -> Words:
        """Those after the last reading that was counted, where that is one of them; else all."""
        for i in range(len(words), 0, -1):
            if self._account.repeats(words[i - 1].tobytes()):
                return words[i:]
        return words

    def _count(self, item: Item, lost: int) -> None:
        layout = self._inbox.layout
        try:
            words, single = arrays.readings(arrays.on_host(item.observed))
            restored = single and self._is_restored(item, words[-1], layout)
            # What waited when that state was saved was of an earlier life; what was seen already is not told twice.
            words = words[-1:] if restored else self._unseen(words)
            if not len(words):
                return
            rows = arrays.rows(words, lambda row: unpack(row, layout), item.time, self._last_time)
            self._last_time = item.time
            for i, row in enumerate(rows):
                self._account.take(
                    Observed(
                        reading=row.reading,
                        identity=row.words.tobytes(),
                        time=row.time,
                        layout=layout,
                        interpolated=row.interpolated,
                        restored=restored,
                        brought=_brought(row.reading, layout, item.observed),
                        lost=lost * len(rows) if i == 0 else 0,
                    )
                )
        except Exception as error:
            # Ours are ValueErrors and JAX's RuntimeErrors; of any other kind it matters where it came from.
            unknown = None if isinstance(error, ValueError | RuntimeError) else error
            self._once.warn(
                place_of(error),
                "optwrap: a reading was passed over, as will be others like it: %s",
                error,
                error=unknown,
            )


def _brought(reading: Reading, layout: Layout | None, observed: object) -> Brought | None:
    """Which replicas' gradients were not finite in that step; None where none were, or nobody says."""
    if reading.replica is None or not reading.replicas_not_finite:
        return None
    return brought(reading.replica, reading.replicas_not_finite, layout.replicas if layout else None, observed)
