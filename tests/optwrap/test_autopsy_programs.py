"""Autopsy: train steps, loops, and functions that are mapped over devices."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optwrap
from optwrap._autopsy.interpreter import Interpreter
from optwrap._autopsy.progress import Progress
from optwrap._autopsy.records import Records
from optwrap._autopsy.values import Frame

W = np.array([0.5, -1.0, 2.0], np.float32)


def has_the_values_of_the_jitted(fn: Any, *arguments: Any) -> int:
    """Assert it, and return the number of operations."""
    closed = jax.jit(fn).trace(*arguments).jaxpr
    records, progress = Records(), Progress("", 1, shown=False)
    values = [records.given("argument", jnp.asarray(argument), None, Frame(), path="") for argument in arguments]
    results = Interpreter(records, "operation", progress).block(closed, values, Frame())
    for result, expected in zip(results, jax.tree.leaves(jax.jit(fn)(*arguments)), strict=True):
        assert result.array.dtype == expected.dtype
        np.testing.assert_allclose(result.array, expected, rtol=1e-5)
        assert (result.node is None) == bool(np.isfinite(expected).all())
    return progress.count


def test_a_train_step_with_donated_state_and_wrappers() -> None:
    tx = optwrap.apply_if_finite(optax.sgd(0.1), 5)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, batch: Any) -> Any:
        loss, grads = jax.value_and_grad(lambda p: jnp.sum(jnp.sqrt(p["w"] * batch["x"])))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    params = {"w": jnp.asarray(W)}
    state = tx.init(params)
    findings = optwrap.autopsy(step, params, state, {"x": jnp.ones(3)})
    assert findings.faults[0].cause.primitive == "sqrt"
    assert findings.faults[0].outputs[0] == "output[2]"
    assert [operand.path for operand in findings.faults[0].cause.operands] == [None]
    assert not params["w"].is_deleted(), "nothing is donated"


def test_a_flax_step_that_updates_its_model_in_place() -> None:
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))

    @nnx.jit
    def step(model: nnx.Linear, x: jax.Array) -> Any:
        loss, grads = nnx.value_and_grad(lambda model: jnp.linalg.norm(model(x)))(model)
        nnx.update(model, jax.tree.map(jnp.subtract, nnx.state(model), grads))
        return loss

    findings = optwrap.autopsy(step, model, jnp.zeros((1, 2)))
    (fault,) = findings.faults
    assert fault.cause.primitive == "div"
    assert all(output.startswith("model.") and output.endswith(" after the call") for output in fault.outputs)
    assert np.isfinite(model.kernel[...]).all(), "the model itself is as it was"


@pytest.mark.parametrize("instrumented", [False, True])
def test_a_step_that_was_skipped_has_a_fault_though_its_outputs_are_finite(instrumented: bool) -> None:
    tx = optwrap.apply_if_finite(optax.adam(0.1), 5)
    tx = optwrap.instrument(tx) if instrumented else tx

    def step(params: Any, state: Any, x: Any) -> Any:
        grads = jax.grad(lambda w: jnp.sum(jnp.sqrt(w * x)))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    (fault,) = optwrap.autopsy(step, jnp.asarray(W), tx.init(jnp.asarray(W)), np.ones(3, np.float32)).faults
    assert fault.cause.primitive == "sqrt"
    assert fault.outputs == ("the gradients that optwrap checks",)
    assert not optwrap.autopsy(step, jnp.asarray(W), tx.init(jnp.asarray(W)), W)


def test_the_infinite_limit_of_a_wrapper_is_no_fault() -> None:
    tx = optwrap.skip_spikes(optax.sgd(0.1))
    findings = optwrap.autopsy(tx.update, jnp.asarray(W), tx.init(jnp.asarray(W)), jnp.asarray(W))
    assert not findings
    assert "output[1].statistics is infinite" in findings.notes[0]


def test_a_step_of_equinox_returns_its_model() -> None:
    @eqx.filter_jit
    def step(model: Any, x: jax.Array) -> Any:
        grads = eqx.filter_grad(lambda model: jnp.sum(jnp.sqrt(model(x))))(model)
        return eqx.apply_updates(model, grads), "done"

    findings = optwrap.autopsy(step, eqx.nn.Linear(2, 2, key=jax.random.key(0)), jnp.full(2, jnp.nan))
    assert findings.faults[0].cause.path == "x"
    assert findings.faults[0].outputs[0] == "output[0].weight"


def test_faults_of_one_line_are_one() -> None:
    findings = optwrap.autopsy(lambda x: [jnp.log(x[i] - x[i]) for i in range(30)], np.ones(30, np.float32))
    assert findings.fault_count == 1
    assert findings.faults[0].output_count == 30


def test_a_function_of_jax_has_the_line_of_its_call() -> None:
    (fault,) = optwrap.autopsy(lambda x: jax.scipy.special.xlogy(1, x * 0), W).faults  # here
    assert fault.cause.primitive == "log"
    assert "# here" in (fault.cause.code or "")


def test_a_singular_matrix_is_named() -> None:
    (fault,) = optwrap.autopsy(jnp.linalg.solve, jnp.ones((2, 2)), jnp.arange(2.0)).faults
    assert fault.cause.primitive == "triangular_solve"
    assert "singular" in (fault.remedy or "")


def long_loops(x: jax.Array, rows: jax.Array) -> Any:
    """Loops of 50 iterations: reversed, with stacked results, under vmap, with an infinite constant and with a key."""

    def body(carry: Any, row: jax.Array) -> Any:
        top, key = carry
        key, _ = jax.random.split(key)
        return (jnp.maximum(top, jnp.where(row > 0, row, -jnp.inf)), key), jnp.exp(row - top)

    def grow(value: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda v: v < 50, lambda v: v + 1 + jnp.log(51 - v) * 0, value)

    (top, key), exps = jax.lax.scan(body, (jnp.float32(-jnp.inf), jax.random.key(0)), rows, reverse=True)
    return top, jax.random.key_data(key), exps[::-1][1:], jax.vmap(grow)(x)


def test_long_loops_have_the_values_of_the_jitted_function() -> None:
    rows = np.linspace(-1, 1, 50, dtype=np.float32)
    operations = has_the_values_of_the_jitted(long_loops, W, rows)
    assert operations < 500, "most iterations are compiled"


@pytest.mark.parametrize("bad", [3, 30])
@pytest.mark.parametrize("carried", [True, False])
def test_a_long_scan_names_the_iteration_of_a_fault(bad: int, carried: bool) -> None:
    def body(carry: jax.Array, index: jax.Array) -> Any:
        value = jnp.log(jnp.where(index == bad, -1.0, carry))  # here
        return (jnp.cosh(value) if carried else carry), value

    findings = optwrap.autopsy(lambda x: jax.lax.scan(body, x, jnp.arange(2000)), jnp.float32(2))
    (fault,) = findings.faults
    assert fault.cause.primitive == "log"
    assert fault.cause.iterations == (optwrap.LoopIteration("scan", bad, 2000),)
    assert fault.outputs == (("output[0]", "output[1]") if carried else ("output[1]",))
    assert findings.operations < 700
    told = "iterations after the first non-finite ones were evaluated together"
    assert findings.notes == ((told,) if carried else ())


def test_a_print_in_a_long_loop_is_skipped(capfd: pytest.CaptureFixture[str]) -> None:
    def body(carry: jax.Array, _: Any) -> Any:
        jax.debug.print("printed")
        return jnp.log(carry), None

    assert optwrap.autopsy(lambda x: jax.lax.scan(body, x, length=30)[0], jnp.ones(()))
    jax.effects_barrier()
    assert "printed" not in capfd.readouterr().out


def test_a_long_loop_with_a_mask_in_its_carry_names_the_fault_and_not_the_mask() -> None:
    def body(carry: jax.Array) -> jax.Array:
        count, states = carry[0], carry[1:] - 1
        return jnp.concatenate([count[None] + 1, jnp.where(count == 40, jnp.sqrt(states), states)])  # here

    start = jnp.array([0.0, -jnp.inf, 5.0])
    fn = lambda x: jnp.max(jax.lax.while_loop(lambda carry: carry[0] < 60, body, x))  # noqa: E731
    (fault,) = optwrap.autopsy(lambda x: fn(jnp.where(jnp.array([True, False, True]), x, -jnp.inf)), start).faults
    assert fault.cause.primitive == "sqrt"
    assert fault.cause.iterations == (optwrap.LoopIteration("while", 40, None),)


def test_a_long_loop_is_compiled_until_something_is_not_finite() -> None:
    def fn(x: jax.Array) -> Any:
        return jax.lax.fori_loop(0, 200, lambda i, carry: jnp.sqrt(carry - 0.01 * i) + carry, x)

    findings = optwrap.autopsy(lambda x: jax.lax.scan(lambda c, _: (c * 1.5, c), x, length=250)[0], jnp.ones(()))
    (fault,) = findings.faults
    assert fault.cause.iterations == (optwrap.LoopIteration("scan", 218, 250),)
    assert findings.operations < 300
    assert not optwrap.autopsy(fn, jnp.full((), 1000.0))


MESH = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
EXPLICIT = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2, devices=jax.devices()[:4])
BOTH = PartitionSpec(("a", "b"))


def on_a_mesh(x: jax.Array, w: jax.Array) -> Any:
    def body(carry: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        return carry + jax.lax.pmean(row, "b"), row

    y = jnp.log(x) + jax.lax.axis_index("a")
    grads = jax.grad(lambda w: jax.lax.pmean(jnp.sum(y * w), ("a", "b")))(w)
    start = jax.lax.pmean(y[0], "b")
    return (
        jax.lax.psum(y, ("a", "b")),
        jax.lax.all_gather(y, "b"),
        jax.lax.ppermute(y, "b", [(0, 1), (1, 0)]),
        jax.lax.psum_scatter(y, "b", tiled=True),
        grads,
        jax.lax.scan(body, start, y)[0][None],
        jax.lax.cond(y[0] > 1, lambda y: jax.lax.scan(lambda c, _: (jnp.sin(c), None), y, length=3)[0], jnp.cos, y),
    )


@pytest.mark.parametrize("checked", [True, False])
def test_shard_map_over_devices_is_looked_into(checked: bool) -> None:
    specs = (PartitionSpec(), PartitionSpec("a", "b"), BOTH, BOTH, BOTH, PartitionSpec("a"), BOTH)
    mapped = jax.shard_map(on_a_mesh, mesh=MESH, in_specs=(BOTH, BOTH), out_specs=specs, check_vma=checked)
    x = np.arange(1, 9, dtype=np.float32)
    has_the_values_of_the_jitted(mapped, x, np.ones(8, np.float32))
    x[5] = 0
    (fault,) = optwrap.autopsy(jax.jit(mapped), x, np.ones(8, np.float32)).faults
    assert fault.cause.primitive == "log"
    assert fault.cause.function == "on_a_mesh"
    assert fault.cause.indices == ((1, 0, 1),), "the device's place in the mesh, and the index on it"


def test_a_mesh_with_explicit_axes() -> None:
    """Compiled functions find it in the types of their arguments; single operations do not."""
    sharding = NamedSharding(EXPLICIT, BOTH)

    def fn(x: jax.Array, w: jax.Array) -> Any:
        mapped = jax.shard_map(
            lambda x: jax.lax.psum(jnp.log(x), "a"), mesh=EXPLICIT, in_specs=BOTH, out_specs=PartitionSpec("b")
        )
        looped = jax.lax.scan(lambda c, _: (c * 0.9, jnp.sum(c)), w, length=30)
        return mapped(x), jax.grad(lambda w: jnp.sum(jnp.exp(w)) * jnp.sum(mapped(x * w)))(w), looped

    x, bad = np.linspace(0.5, 2, 8, dtype=np.float32), np.array([1, 1, 1, 1, 1, 0, 1, 1], np.float32)
    w, x, bad = (jax.device_put(array, sharding) for array in (x, x, bad))
    fault = optwrap.autopsy(fn, bad, w).faults[0]
    assert fault.cause.primitive == "log"
    assert fault.outputs[0] == "output[0]"
    assert not optwrap.autopsy(fn, x, w)


def test_the_gradient_of_a_loop_with_a_shard_map_is_looked_into() -> None:
    def body(carry: jax.Array, _: Any) -> Any:
        mapped = jax.shard_map(
            lambda c: jnp.sin(c) * jax.lax.pmean(jnp.sum(jnp.sqrt(c)), ("a", "b")),
            mesh=MESH, in_specs=BOTH, out_specs=BOTH, check_vma=False,
        )  # fmt: skip
        return mapped(carry), None

    gradient = jax.grad(lambda w: jnp.sum(jax.lax.scan(body, w, length=2)[0]))
    findings = optwrap.autopsy(gradient, np.array([0, 1, 1, 1], np.float32))
    assert findings.faults[0].cause.primitive == "div"
    assert findings.faults[0].cause.phase == "derivative"
    assert findings.notes == (), "no shard_map was one operation"


def test_pmap_is_looked_into() -> None:
    mapped = jax.pmap(lambda x: jax.lax.psum(jnp.sqrt(x), "d"), axis_name="d")
    (fault,) = optwrap.autopsy(mapped, -W[:2]).faults
    assert fault.cause.primitive == "sqrt"


def test_a_shard_map_that_cannot_be_looked_into_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise NotImplementedError

    monkeypatch.setattr("optwrap._autopsy.interpreter.on_one_device", fails)
    mapped = jax.shard_map(jnp.log, mesh=MESH, in_specs=PartitionSpec("a"), out_specs=PartitionSpec("a"))
    findings = optwrap.autopsy(mapped, jnp.zeros(4))
    assert findings.faults[0].cause.primitive == "shard_map"
    assert "pass the function that it maps, with the arguments of one device" in findings.notes[0]


@pytest.mark.parametrize(
    ("primitive", "fn"),
    [
        ("dot_general", lambda x: x @ x),
        ("dot_general", lambda x: jnp.einsum("abc,cdb->bad", x.reshape(1, 2, 2), x.reshape(2, 1, 2))),
        ("convert_element_type", lambda x: x.astype(jnp.int16)),
    ],
)
def test_a_product_or_a_cast_of_integers_that_wraps_is_named(primitive: str, fn: Any) -> None:
    (fault,) = optwrap.autopsy(lambda x: 1 / fn(x).astype(jnp.float32), np.full(4, 2**16, np.int32)).faults
    assert fault.cause.kind == "integer_overflow"
    assert fault.cause.primitive == primitive
