"""Who reports: what JAX tells without initialising its devices."""

import sys
from typing import Any

import jax
import pytest

from optwrap._monitor import source
from optwrap._monitor.source import JaxSource


class Service:
    """The key-value store of jax.distributed, as one process sees it."""

    def __init__(self, *, down: bool = False) -> None:
        self.values: dict[str, str] = {}
        self.down = down

    def key_value_try_get(self, key: str) -> str:
        if key not in self.values:
            raise jax.errors.JaxRuntimeError("NOT_FOUND")
        return self.values[key]

    def key_value_set(self, key: str, value: str) -> None:
        if self.down or key in self.values:
            raise jax.errors.JaxRuntimeError("ALREADY_EXISTS")
        self.values[key] = value


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    """One that connects two processes."""
    jax.devices()
    made = Service()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(source, "_coordination_client", lambda: made)
    return made


def test_process_0_names_the_attempt_and_the_others_read_it(service: Service) -> None:
    """The others do not report before."""
    first, second = JaxSource(0, None), JaxSource(1, None)
    assert second.attempt("r", "e1", now=0.0) is None
    assert first.attempt("r", "e0", now=1.0) == "e0"
    assert second.attempt("r", "e1", now=2.0) == "e0"
    assert first.attempt("r", "later", now=3.0) == "e0"
    assert service.values == {"optwrap/attempt/r": "e0"}


def test_a_second_monitor_of_a_launch_gets_the_same_attempt(service: Service) -> None:
    """Another run has another attempt."""
    del service
    assert JaxSource(0, None).attempt("r", "e0", now=0.0) == "e0"
    assert JaxSource(0, None).attempt("r", "e9", now=0.0) == "e0"
    assert JaxSource(0, None).attempt("s", "e5", now=0.0) == "e5"


def test_a_process_without_an_attempt_names_its_own_after_10_s(service: Service) -> None:
    """Process 0 may have no Monitor, and two attempts are better than no report."""
    service.down = True
    for process in (0, 1):
        alone = JaxSource(process, None)
        assert alone.attempt("r", "own", now=100.0) is None
        assert alone.attempt("r", "own", now=109.9) is None
        assert alone.attempt("r", "own", now=110.1) == "own"


@pytest.mark.parametrize("process", [0, 3])
def test_a_given_process_or_attempt_is_not_looked_up(service: Service, process: int) -> None:
    """It may come from an argument, a variable or the scheduler."""
    assert JaxSource(process, "slurm-1-0").attempt("r", "e", now=0.0) == "slurm-1-0"
    assert service.values == {}


def test_processes_without_the_coordination_service_have_their_own_attempts(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing tells the exporter that they belong together."""
    del service
    monkeypatch.setattr(source, "_coordination_client", lambda: None)
    assert JaxSource(1, None).attempt("r", "e1", now=0.0) == "e1"


@pytest.fixture
def asleep(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """JAX without devices until `awake` is set; until then a question that would initialise them fails."""
    state = {"awake": False}

    def guarded(function: Any) -> Any:
        def ask(*arguments: Any) -> Any:
            assert state["awake"], "it would have initialised the devices"
            return function(*arguments)

        return ask

    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: state["awake"])
    for name in ("devices", "local_devices", "device_count", "process_index", "process_count"):
        monkeypatch.setattr(jax, name, guarded(getattr(jax, name)))
    return state


def test_nothing_initialises_the_devices(asleep: dict[str, Any]) -> None:
    """The process becomes known when the program has initialised them."""
    unknown = JaxSource(None, None)
    assert unknown.process() is None
    assert unknown.attempt("r", "e", now=0.0) is None
    assert unknown.describe()["device_count"] == 0
    asleep["awake"] = True
    assert unknown.process() == 0
    assert unknown.attempt("r", "e", now=0.0) == "e"
    assert unknown.describe()["device_count"] == jax.device_count()


@pytest.mark.parametrize(
    ("process", "attempt", "named"), [(0, None, "e"), (0, "a", "a"), (3, "a", "a"), (3, None, None)]
)
def test_process_0_names_the_attempt_before_it_has_devices(
    asleep: dict[str, Any], process: int, attempt: str | None, named: str | None
) -> None:
    """The others need to be given it."""
    del asleep
    told = JaxSource(process, attempt)
    assert (told.process(), told.attempt("r", "e", now=0.0)) == (process, named)


def test_without_jaxs_private_function_the_first_reading_tells_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the early hello is lost."""
    jax.devices()
    for module in ("jax._src.xla_bridge", "jax._src.distributed"):
        monkeypatch.setitem(sys.modules, module, None)
    renamed = JaxSource(None, None)
    assert renamed.process() is None
    renamed.note_step()
    assert (renamed.process(), renamed.attempt("r", "e", now=0.0)) == (0, "e")
    assert source._coordination_client() is None


def test_texts_are_made_valid_for_the_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host name may have any characters."""
    monkeypatch.setattr("socket.gethostname", lambda: "node\n\ud800" + "x" * 500)
    host = JaxSource(0, "a").describe()["host"]
    assert host == "node??" + "x" * 250
