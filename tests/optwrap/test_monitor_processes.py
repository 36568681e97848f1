"""Monitors in their own processes: exit, fork, devices and several processes."""

import os
import socket
import subprocess
import sys
import textwrap
import threading

from tests.optwrap.monitoring import StubExporter, counts

HEAD = """
import os, sys, threading, time
import jax, jax.numpy as jnp, numpy as np
from optwrap._monitor.monitor import Monitor
from tests.optwrap.monitoring import Training
from tests.polling import wait_until

training = Training()

def start(**arguments):
    monitor = Monitor("r", interval=0.05, **arguments)
    monitor.describe(training.layout)  # as init does
    monitor.describe(training.layout, stepping=True)  # and update
    return monitor

def threads():
    return [thread for thread in threading.enumerate() if thread.name == "optwrap-monitor"]
"""


def begin(stub: StubExporter, script: str, *arguments: str) -> "subprocess.Popen[str]":
    """Start a program that consists of HEAD and `script`."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OPTWRAP_", "SLURM_"))}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HEAD + textwrap.dedent(script), *arguments],
        env={**environ, "OPTWRAP_ENDPOINT": stub.endpoint, "JAX_PLATFORMS": "cpu"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(stub: StubExporter, script: str) -> str:
    """What a program prints; it has to succeed."""
    process = begin(stub, script)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    return out


def test_a_program_that_ends_without_close_has_reported_everything(stub: StubExporter) -> None:
    """The Monitor is closed at exit, before JAX is gone."""
    run(
        stub,
        """
        jax.devices()
        monitor = start()
        for _ in range(20):
            monitor.observe(training.step().words())
        """,
    )
    assert stub.books.totals() == {"applied": 20}
    assert stub.books.order[-1]["state"] == "finished"


def test_an_uncaught_exception_is_reported_as_failed(stub: StubExporter) -> None:
    """The Monitor sees it at exit."""
    process = begin(
        stub,
        """
        monitor = start(process=0)
        monitor.observe(training.step().words())
        raise ValueError("no more data")
        """,
    )
    assert "no more data" in process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert stub.books.totals() == {"applied": 1}
    assert stub.books.order[-1]["state"] == "failed"


def test_a_hanging_exporter_does_not_delay_the_exit(stub: StubExporter) -> None:
    """The exit does not wait for an answer."""
    reached, release = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        reached.set()
        release.wait(300)

    stub.answer = hang
    process = begin(
        stub,
        """
        from optwrap._monitor.thread import Parts
        from optwrap._monitor.sending.transport import HttpTransport

        def patient(settings):
            return HttpTransport(settings.endpoint, answer_timeout=3600)

        monitor = start(process=0, _parts=Parts(transport=patient))
        monitor.observe(training.step().words())
        sys.stdin.readline()
        """,
    )
    try:
        assert reached.wait(120), "the hello has been sent"
        _, error = process.communicate("end\n", timeout=120)
        assert process.returncode == 0, error
    finally:
        release.set()


def test_a_forked_child_does_not_report_for_its_parent(stub: StubExporter) -> None:
    """It has no thread and no counts; the parent goes on over its own connection."""
    out = run(
        stub,
        """
        jax.devices()
        monitor = start()
        monitor.observe(training.step().words())
        assert monitor.flush(30)
        monitor.observe(training.step().words())
        child = os.fork()
        if child == 0:
            assert not threads()
            assert monitor.flush(0)
            assert monitor._lifecycle.worker.inbox.items.maxlen and not monitor._lifecycle.worker.inbox.items
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        monitor.observe(training.step().words())
        assert monitor.flush(30)
        monitor.close()
        print(len(threads()))
        """,
    )
    assert out == "0\n"
    assert list(stub.books.incarnations()) == [stub.books.order[0]["incarnation"]]
    assert stub.books.totals() == {"applied": 3}
    assert stub.connections == 1


def test_a_forked_child_that_observes_reports_like_a_new_process(stub: StubExporter) -> None:
    """Its first reading, less its own step, starts an incarnation. Closing it leaves the parent's Monitor open."""
    run(
        stub,
        """
        jax.devices()
        monitor = start()
        monitor.observe(training.step().words())
        words = np.array(training.step().words())
        child = os.fork()
        if child == 0:
            monitor.observe(words)
            monitor.close("failed")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        monitor.observe(words)
        assert monitor.flush(30)
        """,
    )
    incarnations = stub.books.incarnations()
    ends = sorted((reports[-1]["state"], counts(reports[-1]["at_start"])) for reports in incarnations.values())
    assert [state for state, _ in ends] == ["failed", "finished", "starting"], "the child's, the parent's, its hello"
    assert ends[0][1] == {"applied": 1}
    assert stub.books.totals() == {"applied": 3}


def test_a_closed_monitor_stays_closed_in_a_forked_child(stub: StubExporter) -> None:
    """No thread is started there."""
    run(
        stub,
        """
        jax.devices()
        monitor = start()
        monitor.close()
        child = os.fork()
        if child == 0:
            monitor.observe(None)
            os._exit(len(threads()))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """,
    )
    assert len(stub.books.incarnations()) == 1


def test_a_monitor_does_not_initialise_the_devices(stub: StubExporter) -> None:
    """They can still be configured after it is made. Then readings on several devices are read.

    A replicated array is one reading; rows on a device each, replicas of one step, are one step.
    """
    out = run(
        stub,
        """
        from jax.sharding import NamedSharding, PartitionSpec as P
        from optwrap._monitor.queue import Flush
        monitor = start()
        for _ in range(2):  # until the reporting thread has gone through its loop once
            flush = Flush()
            monitor._lifecycle.worker.inbox.flushes.append(flush)
            wait_until(lambda: flush.started)
            monitor._lifecycle.worker.inbox.flushes.remove(flush)
        jax.config.update("jax_transfer_guard_device_to_host", "disallow")  # an explicit one is allowed
        jax.config.update("jax_num_cpu_devices", 4)  # an error once there are devices
        mesh = jax.make_mesh((4,), ("data",))
        words = training.step().words()
        monitor.observe(jax.device_put(words, NamedSharding(mesh, P())))
        rows = jnp.tile(training.step().words(), (4, 1))
        monitor.observe(jax.device_put(rows, NamedSharding(mesh, P("data"))))
        assert monitor.flush(30)
        print(jax.device_count())
        """,
    )
    assert out == "4\n"
    assert stub.books.totals() == {"applied": 2}
    assert stub.books.order[-1]["source"]["device_count"] == 4


def test_with_a_given_process_the_hello_needs_no_devices(stub: StubExporter) -> None:
    """A job that hangs while it initialises its devices is seen to have started."""
    run(
        stub,
        """
        from jax._src.xla_bridge import backends_are_initialized
        monitor = start(process=0)
        assert monitor.flush(30)
        assert not backends_are_initialized()
        """,
    )
    hello = stub.books.order[0]
    assert (hello["state"], hello["process"], hello["source"]["platform"]) == ("starting", 0, "")


def test_processes_of_one_launch_agree_on_an_attempt(stub: StubExporter) -> None:
    """Two processes of jax.distributed without any settings: one attempt, two indices.

    Each reports a reading that is replicated over both, of which it can read only its own part.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = """
        from jax.experimental import multihost_utils
        from jax.sharding import NamedSharding, PartitionSpec as P
        monitor = start()
        jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
        sharding = NamedSharding(jax.make_mesh((2,), ("data",)), P())
        words = np.array(jax.jit(lambda x: x)(training.step().words()))
        reading = jax.make_array_from_callback(words.shape, sharding, lambda index: words[index])
        assert not reading.is_fully_addressable
        monitor.observe(reading)
        assert monitor.flush(60)
        monitor.close()
        multihost_utils.sync_global_devices("both reported")
    """
    both = [begin(stub, script, f"127.0.0.1:{port}", str(index)) for index in range(2)]
    for process in both:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    reports = stub.books.order
    assert {report["process"] for report in reports} == {0, 1}
    assert {report["source"]["process_count"] for report in reports} == {2}
    assert len({report["attempt"] for report in reports}) == 1
    assert len({report["incarnation"] for report in reports}) == 2
    assert stub.books.totals() == {"applied": 2}
