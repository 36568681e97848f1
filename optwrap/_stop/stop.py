"""`Stop`: the decision that a training should stop, and what to do about it."""

import contextlib
import dataclasses
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final

from optwrap._reading.replicas import Replica

_VERSION: Final = 1
"""Version of the file that `Stop.save` writes."""


@dataclasses.dataclass(frozen=True)
class BadStep:
    """A step that was skipped, was accepted with non-finite values, or had non-finite gradients."""

    step: int
    """Its number: 1 for the first call of `update` on a new optimizer state."""
    outcome: str
    """Its outcome, such as `skipped_not_finite`."""
    parameter: str | None = None
    """The first parameter with a non-finite gradient, in the tree's order; if all were finite, the one with the largest
    share of the squared norm."""
    parameter_count: int = 0
    """Number of parameters with a non-finite gradient."""
    replica: Replica | None = None
    """The first replica whose own gradients were non-finite; None without `replica_flags`."""
    replica_count: int = 0
    """Number of such replicas."""


@dataclasses.dataclass(frozen=True)
class Stop:
    """The training should stop. Every host gets the same `Stop` at the same call of `Monitor.should_stop`."""

    exit_code: ClassVar[int] = 65
    """The exit code for `sys.exit`, by which a scheduler can tell a stop from a crash: EX_DATAERR of sysexits.h."""

    reason: str
    """The condition that holds, in words; it begins with the policy's field."""
    step: int
    """The step at which the condition first held."""
    first_bad_step: int
    """The step with which the trouble began. Bad steps in a row are one trouble. This is the one in which the condition
    began, or the one in which a non-finite value was first accepted, if that is earlier."""
    last_clean_step: int
    """The step before it, to which to roll back: restore the newest checkpoint of this step or an earlier one. 0 if the
    trouble began with the first step."""
    bad_steps: tuple[BadStep, ...] = ()
    """The bad steps from `first_bad_step` on, in order, up to the first `accepted_not_finite`: what is wrong after it
    may be the fault of the parameters, and not of the batch. At most the last 4,096."""
    unlisted: int = 0
    """Number of further bad steps in that range: those before the last 4,096, and those that were not observed."""

    def save(self, path: str | os.PathLike[str], batch_of: Callable[[int], int] | None = None) -> None:
        """Add this stop to a JSON file, so that the next launch can leave out the bad batches.

        The file has `version` (1), `batches` (the batches of all bad steps of all its stops, ascending, each once) and
        `stops`. Each of these has the fields of a `Stop`, and its `bad_steps` those of a `BadStep` and their `batch`.
        The file is replaced in one piece. Saving the same stop again changes nothing, so all processes of a job may
        save to one file.

        Args:
          path: the file; it need not exist.
          batch_of: the number of the batch of a step. Needed once batches have been left out, because from then on step
            n is not the n-th batch any more. Default: the step's own number, from 1.

        Raises:
          OSError: the file cannot be read or written.
          ValueError: the file exists, and was not written by this function.
        """
        file = Path(path)
        stops = _stops_in(file)
        mine = self._as_json(batch_of or (lambda step: step))
        if mine not in stops:
            stops.append(mine)
        batches = sorted({bad["batch"] for stop in stops for bad in stop["bad_steps"]})
        text = json.dumps({"version": _VERSION, "batches": batches, "stops": stops}, indent=1)
        part = file.with_name(f"{file.name}.{secrets.token_hex(4)}.part")
        try:
            part.write_text(text + "\n", encoding="utf-8")
            part.replace(file)
        finally:
            with contextlib.suppress(OSError):
                part.unlink()

    def _as_json(self, batch_of: Callable[[int], int]) -> dict[str, Any]:
        bad_steps = []
        for bad in self.bad_steps:
            replica = None if bad.replica is None else bad.replica._asdict()
            bad_steps.append({**dataclasses.asdict(bad), "replica": replica, "batch": int(batch_of(bad.step))})
        return {**dataclasses.asdict(self), "bad_steps": bad_steps}


def _stops_in(file: Path) -> list[dict[str, Any]]:
    """The stops in a file of `Stop.save`; none if it does not exist."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    try:
        content = json.loads(text)
        if content["version"] != _VERSION:
            raise KeyError("version")
        return [
            {**stop, "bad_steps": [{**bad, "batch": int(bad["batch"])} for bad in stop["bad_steps"]]}
            for stop in content["stops"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"Stop.save: {file} was not written by Stop.save, version {_VERSION}; allowed: such a file, or a new one"
        ) from error
