"""The scenes of the page's pictures: jobs that report like training processes, until something has happened to them."""

import dataclasses
import math
import random
import time
from collections.abc import Callable
from typing import Any, Final

from tests.e2e.page.desk import GUARD, Reporter
from tests.exporter.running import Job, Served, TurnedClock

STEP_SECONDS: Final = 0.4


class MovingClock(TurnedClock):
    """A clock that moves with time, and can be turned, too."""

    def __init__(self, now: float) -> None:
        super().__init__(now)
        self._started = time.monotonic()

    def __call__(self) -> float:
        """Seconds since 1970."""
        return self.now + time.monotonic() - self._started


@dataclasses.dataclass
class Site:
    """An exporter and its clock; in a rehearsal only the clock."""

    clock: TurnedClock
    exporter: Served | None = None

    def tick(self) -> None:
        """Let the exporter look at its runs."""
        if self.exporter is not None:
            self.exporter.ingest.tick()


class Training:
    """A job with realistic gradient norms and a loss, which can also take bad steps."""

    def __init__(self, site: Site, run: str, **job: Any) -> None:
        self.rng = random.Random(run)
        self.site = site
        url = "" if site.exporter is None else site.exporter.url
        self.reporter = Reporter(Job(**{"run": run, "clock": site.clock, "interval": 20.0, **job}), url)
        self.reporter.job.gauges |= {**GUARD, "mini_step": 0, "guard_not_finite_count": 0}
        self.losses: list[float | str] = []

    @property
    def job(self) -> Job:
        """The training process."""
        return self.reporter.job

    def good(self, count: int, seconds: float = STEP_SECONDS) -> None:
        """Take good steps in accumulation windows of four, and report every 20 s."""
        for _ in range(count):
            self.site.clock.advance(seconds * self.rng.uniform(0.9, 1.1))
            mini = (self.job.gauges["mini_step"] + 1) % 4
            self.job.gauges |= {"mini_step": mini, "guard_not_finite_count": 0}
            height = 0.7 + 8 * 0.97**self.job.state.steps
            self.job.step("accumulated" if mini else "applied", height * self.rng.lognormvariate(0, 0.25))
            self.losses.append(2.1 + 6 * 0.992**self.job.state.steps + self.rng.gauss(0, 0.05))
            if len(self.losses) * seconds >= 20:
                self.send()
        self.send()

    def bad(self, outcome: str = "skipped_not_finite", **offenders: int) -> None:
        """Take one step with non-finite gradients. Offenders are named with `__` for `/`."""
        self.site.clock.advance(STEP_SECONDS)
        self.job.gauges["guard_not_finite_count"] = min(5, self.job.gauges["guard_not_finite_count"] + 1)
        self.job.step(outcome, "NaN", None, **offenders)
        self.losses.append("NaN")
        self.send()

    def large(self) -> None:
        """Take one step whose norm is above the limit."""
        self.site.clock.advance(STEP_SECONDS)
        self.job.step("skipped_large", self.rng.uniform(60, 90))
        self.losses.append(2.4)
        self.send()

    def send(self, state: str = "running", **changes: Any) -> None:
        """Report the steps since the last report, with their losses."""
        if self.losses:
            changes = {"steps": {**self.job.columns, "scalars": {"loss": self.losses}}, **changes}
        self.losses = []
        if self.site.exporter is None:
            self.job.report(state)
        else:
            self.reporter.send(state, **changes)


def wait(site: Site, seconds: float, *others: Training, every: float = 10.0) -> None:
    """Let time pass in which only `others` report, without steps."""
    for _ in range(math.ceil(seconds / every)):
        site.clock.advance(every)
        for one in others:
            one.send()
        site.tick()


def ok(site: Site) -> None:
    """A healthy run with one bad step in its past."""
    training = Training(site, "vit-large")
    training.good(150)
    training.bad(decoder__layer_2__mlp__w=384)
    training.good(430)


def skipping(site: Site) -> None:
    """A run with one bad step, a spike, and a streak that continues."""
    training = Training(site, "lm-7b")
    training.good(180)
    training.bad(decoder__layer_2__mlp__w=384)
    training.good(230)
    training.large()
    training.good(190)
    for values in (3, 60, 262_144):
        more = {"decoder__layer_5__mlp__w": 27} if values > 3 else {}
        training.bad("skipped_not_finite", decoder__layer_4__attention__w=values, **more)


def gave_up(site: Site) -> None:
    """A run whose guard gave up after five of 27 bad steps, and that went on."""
    training = Training(site, "diffusion")
    training.good(460)
    for number in range(27):
        training.bad("skipped_not_finite" if number < 5 else "accepted_not_finite", encoder__block_1__conv=12 + number)
    training.good(200)


def failed(site: Site) -> None:
    """A crash loop: five attempts that ran out of memory."""
    for number in range(5):
        training = Training(site, "rl-agent", attempt=f"a{number}", incarnation=f"e{number}")
        training.good(60 + 10 * number)
        training.send(
            "failed", reason="XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating 12884901888 bytes"
        )
        wait(site, 40)
    wait(site, 400)


def stopped(site: Site) -> None:
    """A run that stopped itself and says where to roll back to."""
    training = Training(site, "lm-1b")
    training.good(400)
    for _ in range(5):
        training.bad(decoder__layer_1__attention__w=128)
    training.send("stopped", reason="not_finite_streak: 5 steps in a row were non-finite", last_clean_step=400)
    wait(site, 180)


def stale(site: Site) -> None:
    """A pod of 16 whose process 12 is silent."""
    pod = [
        Training(site, "llama-16", process=n, process_count=16, incarnation=f"e{n}", interval=40.0) for n in range(16)
    ]
    for training in pod:
        training.good(3, seconds=0.1)
    for _ in range(8):
        site.clock.advance(30)
        for training in pod[:12] + pod[13:]:
            training.good(8, seconds=0)
        site.tick()


def stalled(site: Site) -> None:
    """A run that reports but takes no steps."""
    training = Training(site, "speech")
    training.good(300)
    wait(site, 530, training)


def starved(site: Site) -> None:
    """A run whose steps are all skipped: the norm is above its limit."""
    training = Training(site, "gan-generator")
    training.good(800)
    for _ in range(100):
        for _ in range(10):
            training.job.step("skipped_large", training.rng.uniform(75, 85))
            site.clock.advance(STEP_SECONDS)
        training.send()


def starting(site: Site) -> None:
    """A run that compiles."""
    training = Training(site, "big-compile")
    training.send("starting")
    wait(site, 30)
    training.send("starting")


def conflict(site: Site) -> None:
    """Two attempts under one name."""
    one, two = (Training(site, "notebook", attempt=f"a{n}", incarnation=f"e{n}") for n in (0, 1))
    one.good(50)
    for _ in range(6):
        two.good(10)
        one.good(10)


def diverged(site: Site) -> None:
    """A pod of eight whose process 5 has another norm."""
    pod = [Training(site, "moe-8", process=n, process_count=8, incarnation=f"e{n}") for n in range(8)]
    for step in range(60):
        site.clock.advance(2)
        for training in pod:
            norm = 0.945 + 0.01 * math.sin(step)
            training.job.step("applied", 8018.0 if training.job.process == 5 and step > 40 else norm)
            training.send()


def degraded(site: Site) -> None:
    """A job of 64 of which 60 processes report."""
    for process in range(60):
        Training(site, "bert-64", process=process, process_count=64, incarnation=f"e{process}").good(10, seconds=0.01)


def finished(site: Site) -> None:
    """A run that ended normally."""
    training = Training(site, "mnist")
    training.good(500)
    training.send("finished")
    wait(site, 120)


def host(site: Site) -> None:
    """The processes of one host of a job of 64."""
    for process in range(8, 16):
        Training(site, "bert-64", process=process, process_count=64, incarnation=f"e{process}").good(40, seconds=0.05)


def paused(site: Site) -> None:
    """A run with two pauses, and slow steps between them."""
    training = Training(site, "nightly")
    for steps, seconds, pause in ((600, 1.0, 1800.0), (900, 0.5, 400.0), (300, 5.0, 120.0), (100, 1.0, 0.0)):
        for _ in range(steps // 50):
            training.good(50, seconds)
            if training.rng.random() < 0.4:
                training.bad(embed__table=2)
        wait(site, pause, training, every=20)


def pod(site: Site) -> None:
    """1,024 processes: one failed, some skip, a rack of eight is silent."""
    all_ = [
        Training(site, "llama-pod", process=n, process_count=1024, incarnation=f"e{n}", interval=60.0)
        for n in range(1024)
    ]
    for training in all_:
        training.rng = random.Random(1)
        training.good(40, seconds=0.0005)
        if training.job.process in {17, 130, 131}:
            training.bad(decoder__layer_4__mlp__w=1)
    site.clock.advance(220)
    for training in all_:
        if training.job.process == 77:
            training.send("failed", reason="RuntimeError: NCCL error: unhandled system error")
        elif training.job.process not in range(512, 520):
            training.good(4, seconds=0.0005)
    site.clock.advance(20)
    site.tick()


def runs(count: int) -> Callable[[Site], None]:
    """That many runs: most healthy, a third over, a few ill."""

    def scene(site: Site) -> None:
        rng = random.Random(count)
        kinds = ("lm-7b", "vit-large", "diffusion", "speech", "rl-agent", "moe-8x7b", "gan", "bert-64")
        begun = []
        for number in range(count):
            name = f"{kinds[number % len(kinds)]}.lr-{rng.choice(('1e-4', '3e-4', '1e-3'))}.{number:04}"
            training = Training(site, name, interval=60.0)
            training.good(20 + number % 40, seconds=0.02)
            begun.append(training)
        for number, training in enumerate(begun):
            if number % 3 == 0:
                training.send("finished")
            elif number % 40 == 1:
                training.send("failed", reason="ValueError: batch of shape (0, 512)")
            elif number % 40 in {4, 31}:
                for _ in range(3):
                    training.bad(w=1)
            else:
                training.good(5, seconds=0.01)
                if number % 7 == 0:
                    training.large()

    return scene


def million(site: Site) -> None:
    """A million steps with three bad stretches."""
    training = Training(site, "long-run", interval=60.0)
    rng = training.rng
    for step in range(1, 1_000_001):
        site.clock.advance(0.05)
        norm = 0.6 + 5 * 0.99999**step + rng.lognormvariate(-1, 0.5)
        if step in range(300_000, 300_040) or (step > 700_000 and step % 4_001 == 0):
            training.job.step("skipped_not_finite", "NaN", decoder__layer_3__mlp__w=3)
        elif step % 9_973 == 0:
            training.job.step("skipped_large", 70.0)
        else:
            training.job.step("applied", norm)
        if step % 8_000 == 0:
            training.send()
