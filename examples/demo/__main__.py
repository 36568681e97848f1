"""`python -m examples.demo`, which is what `make demo` runs."""

import signal
import sys

from examples.demo.errors import DemoError
from examples.demo.options import parse


def main() -> int:
    """Run the demo as the command line says; returns the exit code."""
    options = parse()
    # On SIGTERM, clean up as on Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        # Imported here, so that a missing package is one line and no traceback.
        if options.processes:
            from examples.demo.pod import run  # noqa: PLC0415
        else:
            from examples.demo.run import run  # noqa: PLC0415
    except ImportError as error:
        print(f"demo: {error}; `make setup` installs what the demo needs", file=sys.stderr)
        return 1
    try:
        run(options)
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
