"""`@pytest.mark.thin(n)`: of the cases of a test, one in `n` runs by default, so that the suite ends in minutes.

`make thorough` (or `pytest --thorough`) runs all of them. The cases that stay are spread over the table; `n` is best
odd, since many tables count by two. On a module, `pytestmark = pytest.mark.thin(n)` marks every test in it that has
cases.
"""

import pytest


def thinned(items: list[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """The tests that run, and those that are left out. Tests without cases run."""
    run: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    seen: dict[str, int] = {}
    for item in items:
        function, case, _ = item.nodeid.partition("[")
        marker = item.get_closest_marker("thin")
        index = seen[function] = seen.get(function, -1) + 1
        (run if not case or marker is None or index % marker.args[0] == 0 else left_out).append(item)
    return run, left_out
