"""Autopsy: values, programs, granularity, bad input, and what the findings look like."""

import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import optwrap
from optwrap._autopsy.interpreter import Interpreter
from optwrap._autopsy.program import size
from optwrap._autopsy.progress import Progress
from optwrap._autopsy.records import Records
from optwrap._autopsy.values import Frame

W = np.array([0.5, -1.0, 2.0], np.float32)


def everything(w: jax.Array, key: jax.Array) -> Any:
    """Every kind of control flow, several dtypes, random numbers and a gradient."""

    @jax.checkpoint
    def layer(x: jax.Array) -> jax.Array:
        return jnp.exp(x) + jax.random.bits(key, x.shape, jnp.uint8)

    def loss(w: jax.Array) -> jax.Array:
        def body(carry: jax.Array, row: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            return jnp.tanh(carry * row), (layer(carry), jnp.sum(carry).astype(jnp.bfloat16))

        carry, (rows, sums) = jax.lax.scan(body, w, jnp.stack([w, w + 1, w * 2]), reverse=True)
        looped = jax.lax.fori_loop(0, 20, lambda i, x: x + jnp.cos(x) / (i + 2), carry)
        chosen = jax.lax.cond(jnp.sum(w) > 1, jnp.sin, jnp.cos, looped)
        return jnp.sum(chosen) + jnp.sum(rows) + jnp.sum(sums).astype(jnp.float32)

    complex_ = jnp.abs(jnp.fft.fft(w.astype(jnp.complex64)))
    return jax.value_and_grad(loss)(w), complex_, jnp.argsort(w), jax.random.split(key), jax.vmap(jnp.sum)(w[None])


@pytest.mark.parametrize("granularity", ["operation", "line", "scope"])
def test_the_values_are_those_of_the_jitted_function(granularity: Any) -> None:
    arguments = (jnp.asarray(W), jax.random.key(0))
    closed = jax.jit(everything).trace(*arguments).jaxpr
    records = Records()
    values = [records.given("argument", argument, None, Frame(), path="") for argument in arguments]
    progress = Progress("everything", size(closed), shown=False)
    results = Interpreter(records, granularity, progress).block(closed, values, Frame())
    expected = jax.tree.leaves(jax.jit(everything)(*arguments))
    assert len(results) == len(expected)
    for result, leaf in zip(results, expected, strict=True):
        assert result.array.dtype == leaf.dtype
        assert result.node is None
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(jax.random.key_data(result.array), jax.random.key_data(leaf))
        else:
            np.testing.assert_allclose(result.array, leaf, rtol=2e-5, atol=1e-5)
    assert not values, "the arguments are freed when they are dead"
    if granularity != "operation":
        assert progress.count < size(closed)


@pytest.mark.parametrize("granularity", ["operation", "line", "scope"])
def test_each_granularity_names_the_line(granularity: Any) -> None:
    def loss(w: jax.Array) -> jax.Array:
        with jax.named_scope("first"):
            shifted = w + 1
        with jax.named_scope("second"):
            return jnp.sum(jnp.log(shifted) * shifted)  # here

    findings = optwrap.autopsy(loss, W, granularity=granularity)
    cause = findings.faults[0].cause
    assert "# here" in (cause.code or "")
    assert "second" in cause.name_stack
    assert findings.granularity == granularity
    if granularity == "line":
        assert cause.primitive == "fused"
        assert "log" in (cause.detail or "")


def test_a_fault_that_only_the_compiled_function_has_is_reported_as_such() -> None:
    # The result of the callback depends on how often it is called: first by the evaluation, then by the whole program.
    calls = iter([1.0, np.nan])
    answer = functools.partial(jax.pure_callback, lambda: np.float32(next(calls)), jax.ShapeDtypeStruct((), np.float32))
    findings = optwrap.autopsy(lambda x: x + answer(), jnp.float32(1))
    assert not findings
    assert not findings.reproduced
    assert 'granularity="line"' in str(findings)
    assert findings.notes == ("pure_callback was run once more",)


def test_callbacks_without_results_are_skipped() -> None:
    seen: list[Any] = []

    def fn(x: jax.Array) -> jax.Array:
        jax.debug.print("{}", x)
        jax.debug.callback(seen.append, x)
        return jnp.log(x)

    findings = optwrap.autopsy(fn, jnp.zeros(()))
    assert findings.faults[0].cause.primitive == "log"
    assert set(findings.notes) == {"debug_print was skipped", "debug_callback was skipped"}
    assert seen == []


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


def test_operands_have_the_paths_of_the_arguments() -> None:
    def fn(params: Any, *, batch: Any) -> Any:
        return params["w"] / batch["x"].reshape(3)

    findings = optwrap.autopsy(fn, {"w": W}, batch={"x": np.zeros((1, 3), np.float32)})
    (fault,) = findings.faults
    assert [operand.path for operand in fault.cause.operands] == ["params['w']", "batch['x']"]
    assert fault.cause.operands[0].least == -1
    assert fault.cause.operands[0].greatest == 2
    assert fault.cause.nonfinite == 3
    assert fault.cause.indices == ((0,), (1,), (2,))


def test_two_origins_in_different_elements_are_two_faults() -> None:
    def fn(w: jax.Array) -> jax.Array:
        first = jnp.log(w - 0.5)  # one element is -inf, one NaN
        second = jnp.sqrt(first)
        return jnp.concatenate([second[:2], jnp.arccos(w[2:])])

    findings = optwrap.autopsy(fn, W)
    assert [fault.cause.primitive for fault in findings.faults] == ["log", "acos"]


def test_two_origins_that_meet_in_a_sum_are_two_faults() -> None:
    def fn(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.stack([jnp.exp(w * x), x])) + jnp.max(jnp.where(w > 0, w, -jnp.inf))

    findings = optwrap.autopsy(fn, W, np.array([300, np.inf, 300], np.float32))
    assert [fault.cause.primitive for fault in findings.faults] == ["argument", "exp"]
    assert findings.faults[1].outputs == ("output",)


def test_elements_that_are_cut_off_are_no_fault() -> None:
    def fn(w: jax.Array) -> jax.Array:
        both = jnp.stack([jnp.log(-jnp.abs(w)), jnp.sqrt(w)])
        return both[1, :1] + jnp.exp(w[2:])

    assert not optwrap.autopsy(fn, W)


def test_an_infinite_argument_that_is_passed_through_is_a_note() -> None:
    findings = optwrap.autopsy(
        lambda state: (state["best"].astype(jnp.bfloat16), state["w"] * 2), {"best": jnp.inf, "w": W}
    )
    assert not findings
    assert "output[0] is infinite as state['best'] is" in findings.notes[0]
    assert optwrap.autopsy(lambda state: state, jnp.nan).faults[0].cause.kind == "argument"


def test_a_long_loop_is_compiled_until_something_is_not_finite() -> None:
    def fn(x: jax.Array) -> Any:
        return jax.lax.fori_loop(0, 200, lambda i, carry: jnp.sqrt(carry - 0.01 * i) + carry, x)

    findings = optwrap.autopsy(lambda x: jax.lax.scan(lambda c, _: (c * 1.5, c), x, length=250)[0], jnp.ones(()))
    (fault,) = findings.faults
    assert fault.cause.iterations == (optwrap.LoopIteration("scan", 218, 250),)
    assert findings.operations < 300
    assert not optwrap.autopsy(fn, jnp.full((), 1000.0))


def test_the_number_of_records_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optwrap._autopsy.records.MAX_RECORDS", 5)

    def fn(w: jax.Array) -> Any:
        for _ in range(20):
            w = jnp.sin(jnp.sqrt(w)) - jnp.array([1, 0, 0], jnp.float32)
        return jnp.where(jnp.isnan(w), 0, w)[2], w[0]

    (fault,) = optwrap.autopsy(fn, W).faults
    assert fault.cause.primitive == "sqrt"
    assert fault.outputs == ("output[1]",)
    assert fault.omitted + len(fault.steps) < 12


def on_a_mesh(x: jax.Array, w: jax.Array) -> Any:
    def body(carry: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.lax.pmean(carry * row, "d"), row

    y = jnp.log(x) + jax.lax.axis_index("d")
    grads = jax.grad(lambda w: jax.lax.pmean(jnp.sum(y * w), "d"))(w)
    carry = jax.lax.scan(body, jnp.ones(()), y)[0]
    return (
        *(jax.lax.psum(y, "d"), jax.lax.pmax(y, "d"), jax.lax.all_gather(y, "d"), jax.lax.ppermute(y, "d", [(0, 0)])),
        *(jax.lax.psum_scatter(y[None], "d"), grads, carry),
    )


def test_shard_map_over_one_device_is_looked_into() -> None:
    mesh = Mesh(np.array(jax.devices()[:1]), ("d",))
    mapped = jax.jit(
        jax.shard_map(on_a_mesh, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
    )
    arguments = jnp.array([1.0, 2, 3]), jnp.ones(3)
    closed = mapped.trace(*arguments).jaxpr
    records = Records()
    values = [records.given("argument", argument, None, Frame(), path="") for argument in arguments]
    results = Interpreter(records, "operation", Progress("", 1, shown=False)).block(closed, values, Frame())
    for result, expected in zip(results, mapped(*arguments), strict=True):
        np.testing.assert_allclose(result.array, expected, rtol=1e-6)
    findings = optwrap.autopsy(mapped, jnp.array([1.0, 0, 3]), jnp.ones(3))
    (fault,) = findings.faults
    assert fault.cause.primitive == "log"
    assert fault.output_count == 7
    assert findings.notes == ()


def test_shard_map_over_devices_is_one_operation_and_the_findings_say_what_to_pass() -> None:
    mesh = Mesh(np.array(jax.devices()[:2]), ("d",))
    mapped = jax.shard_map(
        lambda x: jax.lax.psum(jnp.log(x), "d"), mesh=mesh, in_specs=PartitionSpec("d"), out_specs=PartitionSpec()
    )
    findings = optwrap.autopsy(jax.jit(mapped), jnp.zeros(4))
    assert findings.faults[0].cause.primitive == "shard_map"
    assert "map over a mesh of one device" in findings.notes[0]


def test_sharded_arrays() -> None:
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:2]), ("d",)), PartitionSpec("d"))

    def fn(x: jax.Array, index: jax.Array) -> Any:
        both = jnp.concatenate([jnp.log(x), jnp.sqrt(x - 1)])
        return both[index] * 2

    x, index = (jax.device_put(array, sharding) for array in (np.array([0.0, 2, 2, 0]), np.array([0, 4, 1, 2])))
    findings = optwrap.autopsy(fn, x.astype(np.float32), index)
    assert [fault.cause.primitive for fault in findings.faults] == ["log", "sqrt"]


def test_debug_nans_does_not_disturb() -> None:
    with jax.debug_nans(True):
        findings = optwrap.autopsy(jnp.log, -W)
    assert findings.faults[0].cause.primitive == "log"


def test_static_arguments_stay_static() -> None:
    @functools.partial(jax.jit, static_argnames=("mode", "n", "scale"))
    def fn(x: jax.Array, mode: str, n: int, scale: float) -> Any:
        return {"log": jnp.log, "exp": jnp.exp}[mode](x).reshape(n) * scale

    assert optwrap.autopsy(fn, -W, "log", 3, scale=0.5).faults[0].cause.primitive == "log"


def branches(x: jax.Array) -> jax.Array:
    return x if x > 0 else -x


def written(x: jax.Array) -> Any:
    total = jax.new_ref(x)
    total[...] = jnp.log(total[...])
    return total[...]


DELETED = jnp.ones(3)
DELETED.delete()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: optwrap.autopsy(3, W), TypeError, "fn must be callable, got 3 .int.: pass the function"),  # type: ignore[arg-type]
        (lambda: optwrap.autopsy(branches, np.float32(1)), TypeError, "branches cannot be traced .*functools.partial"),
        (lambda: optwrap.autopsy(jnp.log, W, granularity="file"), ValueError, "granularity must be 'operation' or"),  # type: ignore[arg-type]
        (lambda: optwrap.autopsy(lambda p: p["w"], {"w": DELETED}), ValueError, r"p\['w'\] was donated .*Recorder"),
        (lambda: optwrap.autopsy(written, W), TypeError, "mutable references .*takes and returns the arrays"),
        (lambda: jax.jit(lambda x: optwrap.autopsy(jnp.log, x))(W), ValueError, "is a traced value; .*outside of jit"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^autopsy: .*{message}"):
        call()


def test_findings_are_plain_data_and_a_screen_of_text() -> None:
    def fn(w: jax.Array) -> Any:
        for _ in range(40):
            w = jnp.sin(jnp.log(w)) * w + 1
            w = w * w
        return w

    findings = optwrap.autopsy(fn, -np.abs(W))
    text = str(findings)
    assert len(text.splitlines()) <= 40
    assert findings.faults[0].omitted > 50
    assert json.loads(json.dumps(findings.to_dict()))["faults"][0]["cause"]["primitive"] == "log"
    assert "<script" not in findings._repr_html_()
    assert "&quot;" in findings._repr_html_()
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as shown:
        console.print(findings)
    assert "Cause: log returned nan" in shown.get()


def test_progress_is_shown_and_cleared(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optwrap._autopsy.progress._PATIENCE", -1.0)
    optwrap.autopsy(jnp.log, W, progress=True)
    shown = capsys.readouterr().err
    assert "autopsy of log [####" in shown
    assert shown.endswith("\r\033[K")
    optwrap.autopsy(jnp.log, W)
    assert capsys.readouterr().err == ""
