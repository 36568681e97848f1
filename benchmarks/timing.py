"""What the benchmarks of the training step share: wall and CPU time by round, ratios, and XLA's own figures."""

import contextlib
import dataclasses
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import jax
import optax

MIB: Final = 2**20


@dataclasses.dataclass
class Times:
    """What one step took, round by round."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    """Wall time, on average over the round."""
    cpu_seconds: list[float] = dataclasses.field(default_factory=list)
    """CPU time of all threads of the process, likewise."""

    @contextlib.contextmanager
    def round(self, steps: int = 1) -> Iterator[None]:
        """Measure the block, which takes `steps` steps."""
        began, cpu_began = time.perf_counter(), time.process_time()
        yield
        self.seconds.append((time.perf_counter() - began) / steps)
        self.cpu_seconds.append((time.process_time() - cpu_began) / steps)

    def clear(self) -> None:
        """Forget the rounds so far, which warmed up."""
        self.seconds.clear()
        self.cpu_seconds.clear()

    @property
    def ms(self) -> float:
        """Median milliseconds of a step."""
        return statistics.median(self.seconds) * 1e3

    @property
    def cpu_ms(self) -> float:
        """Median milliseconds of CPU time of a step."""
        return statistics.median(self.cpu_seconds) * 1e3


def take_turns(forms: Mapping[str, Callable[[], object]], until: Callable[[int], bool]) -> None:
    """Run every form once a round, in a new random order, until `until(rounds so far)` returns true.

    What slows the machine for a while then slows all forms of a round, and none of them always follows the same one.
    """
    order = random.Random(0)
    rounds = 0
    while not until(rounds):
        for form in order.sample(list(forms.values()), len(forms)):
            form()
        rounds += 1


def quartiles(ours: list[float], baseline: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the rounds' own ratios; two rounds at least."""
    return spread([a / b for a, b in zip(ours, baseline, strict=True)])


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of two values or more."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratio(ours: list[float], baseline: list[float]) -> str:
    """The median of the rounds' own ratios, with the quartiles."""
    low, middle, high = quartiles(ours, baseline)
    return f"{middle:.3f} ({low:.2f} to {high:.2f})"


def temporary_bytes(compiled: Any) -> float:
    """What XLA allots to a compiled step for temporary values; NaN if the backend does not tell."""
    figures = compiled.memory_analysis()
    return float("nan") if figures is None else float(figures.temp_size_in_bytes)


def cost(compiled: Any, name: str) -> float:
    """One figure of XLA's cost analysis, every branch counted as taken; NaN if the backend does not tell."""
    figures = compiled.cost_analysis()
    return float("nan") if figures is None else float(figures.get(name, "nan"))


def wait(tree: Any) -> None:
    """Wait until the device has computed these arrays."""
    jax.block_until_ready(tree)  # type: ignore[no-untyped-call]  # jax gives it no types


def machine() -> str:
    """Versions and device, for the line below a table."""
    device = jax.devices()[0]
    return (
        f"jax {jax.__version__}, optax {optax.__version__}, {device.platform} ({device.device_kind}), "
        f"{os.cpu_count()} CPU cores"
    )
