"""Autopsy: values, programs, granularity, bad input, and what the findings look like."""

import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import optwrap
from optwrap._autopsy.interpreter import Interpreter
from optwrap._autopsy.program.jaxprs import size
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
    calls = iter([1.0, np.nan])
    passed = optwrap.autopsy(lambda best, x: (best, x + answer()), jnp.float32(np.inf), jnp.float32(1))
    assert not passed.reproduced, "an infinity that is passed through hides nothing"


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
    assert "but infinities that were passed through" in str(findings)
    masked = optwrap.autopsy(lambda w: jax.nn.log_softmax(jnp.where(w > 0, w, -jnp.inf)), W)
    assert not masked, "the log-probability of an impossible event"
    assert optwrap.autopsy(lambda w: jnp.sum(jax.nn.log_softmax(jnp.where(w > 0, w, -jnp.inf))), W)
    both = optwrap.autopsy(lambda best: (best, best * 0), np.float32(np.inf))
    assert both.faults[0].outputs == ("output[1]",), "it passes through to one output, and is NaN in the other"
    assert "output[0] is infinite" in both.notes[0]
    assert optwrap.autopsy(lambda state: state, jnp.nan).faults[0].cause.kind == "argument"


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
    assert optwrap.autopsy(fn, -W, "log", 3, scale=np.inf).faults[0].cause.primitive == "log"


def branches(x: jax.Array) -> jax.Array:
    return x if x > 0 else -x


def written(x: jax.Array) -> Any:
    total = jax.new_ref(x)
    total[...] = jnp.log(total[...])
    return total[...]


DELETED = jnp.ones(3)
DELETED.delete()
SHAPE = jax.ShapeDtypeStruct((3,), np.float32)
COMPILED = jax.jit(jnp.log).lower(W).compile()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: optwrap.autopsy(3, W), TypeError, "fn must be callable, got 3 .int.: pass the function"),  # type: ignore[arg-type]
        (lambda: optwrap.autopsy(branches, np.float32(1)), TypeError, "branches cannot be traced .*functools.partial"),
        (lambda: optwrap.autopsy(jnp.log, W, granularity="file"), ValueError, "granularity must be 'operation' or"),  # type: ignore[arg-type]
        (lambda: optwrap.autopsy(lambda p: p["w"], {"w": DELETED}), ValueError, r"p\['w'\] was donated .*Recorder"),
        (lambda: optwrap.autopsy(lambda x: x + DELETED, W), ValueError, "array that <lambda> captured was donated"),
        (lambda: optwrap.autopsy(COMPILED, W), TypeError, "fn is compiled .*pass the function"),
        (lambda: optwrap.autopsy(jnp.log, SHAPE), ValueError, "x is a shape without values"),
        (lambda: optwrap.autopsy(lambda _: "done", W), TypeError, "returns no arrays, but str"),
        (lambda: optwrap.autopsy(written, W), TypeError, "mutable references .*takes and returns the arrays"),
        (lambda: jax.jit(lambda x: optwrap.autopsy(jnp.log, x))(W), ValueError, "is a traced value; .*outside of jit"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^autopsy: .*{message}"):
        call()


def test_arrays_of_other_processes_are_refused_unless_they_are_replicated(monkeypatch: pytest.MonkeyPatch) -> None:
    x = jnp.asarray(-W)
    monkeypatch.setattr(type(x), "is_fully_addressable", property(lambda array: array.shape != (3,)))
    monkeypatch.setattr(type(x), "is_fully_replicated", property(lambda _: False))
    with pytest.raises(ValueError, match=r"x is on devices of other .*pass one process's part, array.addressable_data"):
        optwrap.autopsy(jnp.log, x)
    with pytest.raises(ValueError, match="an array that <lambda> captured is on devices of other processes"):
        optwrap.autopsy(lambda: x * 2)
    monkeypatch.setattr(type(x), "is_fully_replicated", property(lambda _: True))
    monkeypatch.setattr(type(x), "addressable_data", lambda array, _: array[:2])
    assert optwrap.autopsy(jnp.log, x).faults[0].cause.shape == (2,)


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
