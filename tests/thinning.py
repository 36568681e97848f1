"""`@pytest.mark.thin(n)`: of the cases of a test, one in `n` runs by default, so that the suite ends in minutes.

`make thorough` (or `pytest --thorough`) runs all of them. The cases that stay are spread over the table; `n` is best
odd, since many tables count by two. On a module, `pytestmark = pytest.mark.thin(n)` marks every test in it that has
cases. `pytest --sample n` leaves one in `n` of those: enough to see what another JAX or Python breaks.
"""

import pytest


def thinned(items: list[pytest.Item], sample: int = 1) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """The tests that run, and those that are left out. Tests without cases run."""
    run: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    seen: dict[str, int] = {}
    for item in items:
        function, case, _ = item.nodeid.partition("[")
        marker = item.get_closest_marker("thin")
        one_in = sample * (marker.args[0] if marker else 1)
        index = seen[function] = seen.get(function, -1) + 1
        (run if not case or index % one_in == 0 else left_out).append(item)
    return run, left_out
