"""Reports that wait for the writer, and how their answers get back to those who wait, in threads and in event loops."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from optwrap_exporter.group_commit import Answer, Offer
from optwrap_exporter.wire.answers import Acknowledgement


@dataclass(slots=True)
class Waiting:
    """An offer in the queue, and who waits for its answer."""

    offer: Offer
    future: "Future[Acknowledgement] | asyncio.Future[Acknowledgement]"
    gone: Callable[[], bool] | None
    """Returns whether nobody waits any more. Called in the writer's thread."""

    def dropped(self) -> bool:
        """Whether the report is not to be stored. To be called once, when the writer takes the report."""
        if self.gone is not None and self.gone():
            return True
        future = self.future
        return future.cancelled() if isinstance(future, asyncio.Future) else not future.set_running_or_notify_cancel()


def give_answers(answered: Sequence[tuple[Waiting, Answer | None]]) -> None:
    """Give the answers to those who wait, from the writer's thread. Each event loop is woken once.

    Args:
      answered: reports with their answers; None if the report was dropped.
    """
    of_loops: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Acknowledgement], Answer | None]]] = {}
    for waiting, answer in answered:
        future = waiting.future
        if isinstance(future, asyncio.Future):
            of_loops.setdefault(future.get_loop(), []).append((future, answer))
        elif answer is not None:
            _resolve(future, answer)
    for loop, futures in of_loops.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
            loop.call_soon_threadsafe(_resolve_all, futures)


def _resolve_all(answered: Sequence[tuple["asyncio.Future[Acknowledgement]", Answer | None]]) -> None:
    """Runs in the event loop of the futures. Without an answer a future is cancelled."""
    for future, answer in answered:
        if answer is None:
            future.cancel()
        elif not future.done():
            _resolve(future, answer)


def _resolve(future: "Future[Acknowledgement] | asyncio.Future[Acknowledgement]", answer: Answer) -> None:
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)
