"""Makes changed copies of states, in a fraction of the time of `dataclasses.replace`: each report needs six of them."""

from functools import cache, cached_property
from typing import Any, TypeVar

State = TypeVar("State")


def evolved(state: State, /, **changes: Any) -> State:
    """A copy of a frozen dataclass with some fields changed. Cached properties are not copied.

    Args:
      state: an instance of a dataclass without slots and without `__post_init__`.
      changes: the new values, by field.
    """
    new = object.__new__(type(state))
    fields = new.__dict__
    fields.update(state.__dict__)
    of: type = type(state)
    for name in _derived(of):
        fields.pop(name, None)
    fields.update(changes)
    return new


def plain(named: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    """A named tuple as a tuple; None stays None. pydantic writes the same JSON in a fifth of the time."""
    return None if named is None else tuple(named)


@cache
def _derived(of: type) -> tuple[str, ...]:
    return tuple(name for name, value in vars(of).items() if isinstance(value, cached_property))
