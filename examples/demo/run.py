"""The demo from start to end: exporter, training with optwrap, training without, summary."""

import json
import logging

from rich.console import Console

import optwrap
from examples.demo import summary, train
from examples.demo.errors import DemoError
from examples.demo.exporter import answer, hold, running, say_where
from examples.demo.options import Options
from examples.demo.progress import Progress

_FLUSH_LIMIT = 5.0
"""Seconds that the last report may take."""


def run(options: Options) -> None:
    """Run the demo; the last line on stdout is the exporter's answer about the run.

    Raises:
      DemoError: something is missing; raised after the training if that can run without it.
    """
    settings = options.settings
    console = Console(stderr=True)
    _log_to(console)
    with running(options.listen, options.data_dir, options.endpoint) as endpoint:
        try:
            # With emit="callback" the reports come later than the steps, so a stop cannot be decided from them.
            policy = None if options.emit == "callback" else train.POLICY
            monitor = optwrap.Monitor(run=options.run, endpoint=endpoint, stop=policy)
        except ValueError as error:
            raise DemoError(str(error)) from error
        say_where(endpoint)
        recorder = optwrap.Recorder(keep=8)  # the step runs ahead of the device by a few
        with monitor, Progress(console, "with optwrap", settings.steps) as progress:
            training = train.with_optwrap(
                settings,
                seed=options.seed,
                monitor=monitor,
                emit=options.emit,
                progress=progress,
                recorder=recorder,
            )
            monitor.flush(_FLUSH_LIMIT)
            held, findings = recorder.bad_step(), None
            if options.baseline and held is not None:
                findings = train.autopsy(settings, seed=options.seed, held=held)
                findings.report(monitor, held.step)
        found, problem = None, None
        try:
            found = answer(endpoint, options.run)
        except DemoError as error:
            problem = error

        baseline = None
        if options.baseline:
            with Progress(console, "without", settings.steps) as progress:
                baseline = train.without_optwrap(settings, seed=options.seed, progress=progress)

        print(summary.summarize(settings, found, training, baseline))
        if held is not None and findings is not None:
            print(f"Why step {held.step} was skipped:\n{findings}\n")
        if found is None:
            assert problem is not None
            raise problem
        if options.endpoint is None and not options.hold:
            print("The page ends with the demo; --hold (make demo HOLD=1) keeps it up.\n")
        print(json.dumps(found), flush=True)
        if options.hold:
            hold(endpoint)


def _log_to(console: Console) -> None:
    """Print log lines above the progress bar."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.print(self.format(record), highlight=False, markup=False, soft_wrap=True)

    logging.basicConfig(handlers=[Handler()], format="%(message)s")
    logging.getLogger("optwrap").setLevel(logging.INFO)
