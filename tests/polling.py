"""For tests: wait until a condition holds. `time.sleep` is for tests whose subject is real time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T | None], limit: float = 60.0, *, pause: float = 0.02, problem: Callable[[], object] = str
) -> T:
    """Call a condition again and again until it returns something true.

    Args:
      condition: what must become true.
      limit: for how many seconds.
      pause: seconds between two calls.
      problem: what the failure says beside the limit.

    Returns:
      What the condition returned.

    Raises:
      AssertionError: the limit has passed.
    """
    deadline = time.monotonic() + limit
    while not (result := condition()):
        assert time.monotonic() < deadline, f"still false after {limit} s: {problem()}"
        time.sleep(pause)
    return result
