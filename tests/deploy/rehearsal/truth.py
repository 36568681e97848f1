"""The truth: what the trainers wrote of their own steps, and what the counters must therefore be."""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self


@dataclasses.dataclass(frozen=True)
class Tally:
    """Counts of steps."""

    outcomes: Counter[str] = dataclasses.field(default_factory=Counter)
    not_finite: int = 0
    parameters: Counter[str] = dataclasses.field(default_factory=Counter)
    """Steps in which the parameter's gradient was non-finite."""

    @classmethod
    def of(cls, steps: Sequence[dict[str, Any]]) -> Self:
        return cls(
            Counter(step["outcome"] for step in steps),
            sum(not step["finite"] for step in steps),
            Counter(path for step in steps for path in step["parameters"]),
        )

    @property
    def steps(self) -> int:
        return self.outcomes.total()

    @property
    def gradient_steps(self) -> int:
        return self.outcomes["applied"] + self.outcomes["accepted_not_finite"]

    @property
    def skipped(self) -> dict[str, int]:
        return {reason: self.outcomes[f"skipped_{reason}"] for reason in ("not_finite", "large", "other")}

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.outcomes + other.outcomes, self.not_finite + other.not_finite, self.parameters + other.parameters
        )

    def __or__(self, other: "Tally") -> "Tally":
        """The largest of each count."""
        return Tally(
            self.outcomes | other.outcomes, max(self.not_finite, other.not_finite), self.parameters | other.parameters
        )


@dataclasses.dataclass(frozen=True)
class Written:
    """What one process wrote in one attempt."""

    steps: list[dict[str, Any]]
    stop: dict[str, Any] | None

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read the file of a process that runs, has ended, or was killed: a line that is not whole is left out."""
        text = file.read_text() if file.exists() else ""
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        steps = [line for line in lines if "step" in line]
        return cls(steps, next((line["stop"] for line in lines if "stop" in line), None))

    @property
    def last(self) -> int:
        """The last step of the optimizer's state; 0 before the first one."""
        return int(self.steps[-1]["step"]) if self.steps else 0


@dataclasses.dataclass(frozen=True)
class Truth:
    """What all processes wrote, by attempt in the order of the launches, and by process."""

    attempts: dict[str, list[Written]]

    @classmethod
    def read(cls, directory: Path, attempts: Sequence[str], processes: int) -> Self:
        return cls(
            {
                attempt: [Written.read(directory / f"{attempt}-{process}.jsonl") for process in range(processes)]
                for attempt in attempts
            }
        )

    def run(self) -> Tally:
        """The run: of each attempt the process with the most, field by field; all attempts together."""
        total = Tally()
        for attempt in self.attempts.values():
            largest = Tally()
            for written in attempt:
                largest |= Tally.of(written.steps)
            total += largest
        return total

    def process(self, process: int, first_attempt: int = 0) -> Tally:
        """One process, from the attempt with this index on."""
        total = Tally()
        for attempt in list(self.attempts.values())[first_attempt:]:
            total += Tally.of(attempt[process].steps)
        return total

    def redone(self) -> int:
        """Steps that were taken again, because a later attempt began at an older checkpoint.

        The place of a step is its number without the skipped steps before it in the state's history. So a step that
        takes the place of a skipped one is not redone.
        """
        places, taken = set(), 0
        at = {0: 0}  # by step of the state, the place that it is at
        for attempt in self.attempts.values():
            for step in max((written.steps for written in attempt), key=len):
                skipped = step["outcome"].startswith("skipped")
                at[step["step"]] = place = at[step["step"] - 1] + (not skipped)
                if not skipped:
                    places.add(place)
                    taken += 1
        return taken - len(places)

    def problems(self, bad: Sequence[int]) -> list[str]:
        """Where the trainers contradict each other, or the faults that were put in.

        Args:
          bad: the batches that have a NaN.
        """
        found = []
        for attempt, processes in self.attempts.items():
            longest = max(processes, key=lambda written: len(written.steps))
            for process, written in enumerate(processes):
                if written.steps != longest.steps[: len(written.steps)]:
                    found.append(f"{attempt}: process {process} took other steps than another one")
                if written.stop != longest.stop and len(written.steps) == len(longest.steps):
                    found.append(f"{attempt}: process {process} decided {written.stop}, another one {longest.stop}")
            for step in longest.steps:
                if step["finite"] != (step["batch"] not in bad):
                    found.append(
                        f"{attempt}: step {step['step']} with batch {step['batch']}: finite is {step['finite']}"
                    )
        return found
