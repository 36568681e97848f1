"""The examples of other libraries' loops and one's own: their totals are exactly what happened."""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.optwrap.monitoring import Books, StubExporter

Totals = dict[str, int]
Trained = Callable[[str], tuple[Any, dict[str, Totals], Any]]
"""Runs an example in this process: its module, the totals of each of its runs, and what it returned."""


def skipped(steps: int, bad: int, *parameters: str) -> Totals:
    """The totals of a guarded run: each bad step was non-finite in these parameters."""
    found = {"applied": steps - bad, "skipped_not_finite": bad, "not_finite_steps": bad}
    return {name: n for name, n in (found | {f"parameter {path}": bad for path in parameters}).items() if n}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trained]:
    stub = StubExporter()
    monkeypatch.setenv("OPTWRAP_ENDPOINT", stub.endpoint)

    def run(name: str) -> tuple[Any, dict[str, Totals], Any]:
        module = importlib.import_module(f"examples.loops.{name}")
        returned = module.main()
        runs: dict[str, Books] = {}
        for report in list(stub.books.order):
            body = stub.books.reports[report["incarnation"], report["seq"]]
            runs.setdefault(report["run"], Books()).take(body)
        assert all(books.order[-1]["state"] == "finished" for books in runs.values())
        assert all(books.dropped() == {"steps": 0, "bad_steps": 0} for books in runs.values())
        return module, {run: books.totals() for run, books in runs.items()}, returned

    yield run
    stub.close()


@pytest.mark.parametrize(
    ("name", "run", "parameters"),
    [
        ("flax_nnx", "flax-nnx", ("bias", "kernel")),
        ("equinox_model", "equinox", ("bias", "weight")),
        ("orbax_resume", "orbax-resume", ("w",)),
    ],
)
def test_models_of_other_libraries(trained: Trained, name: str, run: str, parameters: tuple[str, ...]) -> None:
    """Twenty steps, two of them bad; the third in two launches, of which the first saw both."""
    _, totals, _ = trained(name)
    assert totals == {run: skipped(20, 2, *parameters)}


def test_a_scan_inside_jit(trained: Trained) -> None:
    """The corrupted minibatch comes once in each epoch."""
    module, totals, _ = trained("rl_scan")
    steps = module.UPDATES * module.EPOCHS * module.MINIBATCHES
    assert totals == {"rl-scan": skipped(steps, module.EPOCHS, "w")}


def test_an_ensemble(trained: Trained) -> None:
    module, totals, _ = trained("ensemble")
    assert totals == {
        f"ensemble.{member}": skipped(module.STEPS, int(member == module.CORRUPTED[0]), "w")
        if member == module.CORRUPTED[0]
        else skipped(module.STEPS, 0)
        for member in range(module.MEMBERS)
    }


def test_two_optimizers(trained: Trained) -> None:
    """The generator never sees the NaN: the discriminator skips its step."""
    module, totals, _ = trained("gan")
    assert totals == {
        "gan.generator": skipped(module.STEPS, 0),
        "gan.discriminator": skipped(module.STEPS, 1, "slope"),
    }


def test_micro_batches(trained: Trained) -> None:
    """23 of the 24 were accumulated, which is five windows of four and three more."""
    module, totals, _ = trained("micro_batches")
    good = module.BATCHES * module.MICRO - 1
    windows = good // module.MICRO
    assert totals == {
        "micro-batches": {
            "applied": windows,
            "accumulated": good - windows,
            "skipped_not_finite": 1,
            "not_finite_steps": 1,
            "parameter w": 1,
        }
    }


def test_a_guard_for_each_group(trained: Trained) -> None:
    """The body goes on while the head skips."""
    module, totals, _ = trained("partition")
    bad = len(module.CORRUPTED)
    assert totals == {
        "partition.body": skipped(module.STEPS, 0),
        "partition.head": skipped(module.STEPS, bad, "head"),
    }


def test_a_hidden_loop(trained: Trained) -> None:
    """NumPyro's own losses say in which steps the NaN was drawn."""
    module, totals, result = trained("numpyro_svi")
    bad = int(np.isnan(np.asarray(result.losses)).sum())
    assert 0 < bad < module.STEPS
    (found,) = totals.values()
    assert found == skipped(module.STEPS, bad, *[name.removeprefix("parameter ") for name in found if "param" in name])
    assert any(name.startswith("parameter mean_auto") for name in found)


def test_keras(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters have Keras's own paths."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    _, totals, _ = trained("keras_fit")
    (found,) = totals.values()
    assert found == skipped(20, 2, "line/dense/bias", "line/dense/kernel")
