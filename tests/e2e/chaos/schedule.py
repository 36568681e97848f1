"""What happens in a run, and in which order: a function of the seed and of nothing else."""

import dataclasses
import random
from typing import Final, Literal

from tests.e2e.chaos.truth import Recipe

Kind = Literal[
    "train",
    "save",
    "kill and resume",
    "resume twice",
    "restart one alone",
    "roll back",
    "SIGTERM, handled",
    "SIGTERM",
    "exception",
    "fork",
    "exporter killed",
    "directory lost",
    "directory lost while compiling",
    "trainer's clock set back",
    "exporter's clock set back",
]

INTERRUPTIONS: Final[tuple[Kind, ...]] = (
    "kill and resume",
    "resume twice",
    "restart one alone",
    "roll back",
    "SIGTERM, handled",
    "SIGTERM",
    "exception",
    "fork",
    "exporter killed",
    "exporter killed",
    "directory lost",
    "directory lost while compiling",
    "trainer's clock set back",
    "exporter's clock set back",
)

Checkpoints = Literal["orbax", "numpy"]

Fate = Literal["passed", "twice", "delayed", "late", "dropped", "cut short", "answer lost", "hung"]
FATES: Final[tuple[Fate, ...]] = ("passed", "twice", "delayed", "late", "dropped", "cut short", "answer lost", "hung")


@dataclasses.dataclass(frozen=True)
class Action:
    """One thing that happens. A kind that has no use for a field ignores it."""

    kind: Kind
    steps: int
    """Steps that are taken meanwhile, or before."""
    moment: float
    """From 0 to 1: when it happens during these steps."""
    pause: float
    """Seconds that it lasts."""
    which: int
    """Which checkpoint, 0 the newest; or how many children."""
    back: float
    """Seconds by which a clock is set back."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Everything that is drawn from a seed."""

    seed: int
    recipe: Recipe
    emit: Literal["reading", "callback"]
    processes: int
    pace: float
    """Seconds of sleep after each step."""
    checkpoints: Checkpoints
    """What saves the state."""
    weather: tuple[float, ...]
    """The probability of each of FATES for a report, without "passed", which has the rest."""
    actions: tuple[Action, ...]

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: {self.recipe}, emit={self.emit!r}, "
            f"{self.processes} processes, {self.pace} s a step, checkpoints by {self.checkpoints}",
            "weather: " + ", ".join(f"{fate} {p:.0%}" for fate, p in zip(FATES[1:], self.weather, strict=True)),
            *(f"{n:3} {action}" for n, action in enumerate(self.actions)),
        ]
        return "\n".join(lines)


def draw(seed: int) -> Schedule:
    """Half of all interruptions, with training and checkpoints between them; seeds 2n and 2n + 1 have all of them."""
    rng = random.Random(seed)
    recipe = Recipe(
        kind=rng.choice(["guard", "window", "guard around window", "window around guard"]),
        limit=rng.randint(1, 4),
        every_k=rng.randint(2, 5),
        skip=rng.choice(["not_finite", "large", None]),
    )
    storminess = rng.uniform(0.0, 0.08)

    def action(kind: Kind) -> Action:
        return Action(
            kind,
            steps=rng.randint(20, 120),
            moment=rng.random(),
            pause=rng.uniform(0.0, 0.5),
            which=rng.randint(0, 2),
            back=rng.uniform(1.0, 7200.0),
        )

    emit: Literal["reading", "callback"] = rng.choice(["reading", "reading", "callback"])
    actions = [action("train"), action("save")]
    both = random.Random(seed // 2).sample(INTERRUPTIONS, len(INTERRUPTIONS))
    for kind in both[seed % 2 :: 2]:
        actions.append(action(kind))
        if rng.random() < 0.3:
            actions.append(action("train"))
        if rng.random() < 0.4:
            actions.append(action("save"))
    return Schedule(
        seed=seed,
        recipe=recipe,
        emit=emit,
        processes=rng.choice([1, 2, 2]),
        pace=rng.choice([0.0, 0.0005, 0.002]),
        checkpoints=rng.choice(["orbax", "numpy"]),
        weather=tuple(storminess * rng.uniform(0.3, 1.7) for _ in FATES[1:]),
        actions=tuple(actions),
    )
