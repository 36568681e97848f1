"""Autopsy names the cause of every fault of a table in plain JAX, flax.nnx and Equinox, and finds nothing elsewhere."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import optwrap
from benchmarks.autopsy_faults import FAULTS, ONES, Fault
from benchmarks.autopsy_healthy import HEALTHY


def plain(fault: Fault) -> tuple[Any, ...]:
    def loss(w: jax.Array, x: jax.Array) -> Any:
        with jax.named_scope("block"):
            return jnp.sum(fault.function(w, x))

    return loss if fault.direction == "forward" else jax.value_and_grad(loss), fault.w, fault.x


def in_flax(fault: Fault) -> tuple[Any, ...]:
    class Block(nnx.Module):
        def __init__(self) -> None:
            self.w = nnx.Param(jnp.asarray(fault.w))

        def __call__(self, x: jax.Array) -> Any:
            with jax.named_scope("block"):
                return fault.function(self.w[...], x)

    def loss(model: Block, x: jax.Array) -> Any:
        return jnp.sum(model(x))

    return nnx.jit(loss) if fault.direction == "forward" else nnx.value_and_grad(loss), Block(), fault.x


def in_equinox(fault: Fault) -> tuple[Any, ...]:
    class Block(eqx.Module):
        w: jax.Array
        activation: Callable[..., Any] = jnp.sum

        def __call__(self, x: jax.Array) -> Any:
            with jax.named_scope("block"):
                return fault.function(self.w, x)

    def loss(model: Block, x: jax.Array) -> Any:
        return model.activation(model(x))

    wrap: Any = eqx.filter_jit if fault.direction == "forward" else eqx.filter_value_and_grad
    return wrap(loss), Block(jnp.asarray(fault.w)), fault.x


@pytest.mark.thin(3)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.function.__name__)
def test_the_cause_is_named(fault: Fault) -> None:
    for framework in (plain, in_flax, in_equinox):
        findings = optwrap.autopsy(*framework(fault))
        assert findings.fault_count == 1, f"{framework.__name__}\n{findings}"
        cause = findings.faults[0].cause
        assert cause.primitive == fault.primitive, f"{framework.__name__}\n{findings}"
        assert fault.remedy in (findings.faults[0].remedy or ""), findings
        if fault.path:
            assert cause.kind == "argument"
            assert cause.path is not None
            assert fault.path[0] in cause.path
            assert str(list(cause.indices[0])) == fault.path[1:]
        else:
            assert "# here" in (cause.code or ""), findings
            assert "block" in cause.name_stack, findings
        assert (cause.iterations[-1].index if cause.iterations else None) == fault.iteration, findings
        assert findings.reproduced


@pytest.mark.parametrize("healthy", HEALTHY, ids=lambda healthy: healthy.__name__)
def test_nothing_is_found_where_nothing_is(healthy: Callable[..., Any]) -> None:
    findings = optwrap.autopsy(healthy, ONES, ONES)
    assert not findings, findings
    assert findings.reproduced or findings.notes
    assert findings.largest is not None
    assert "nothing non-finite" in str(findings)
