"""Run as a script by `serve`: the exporter, until the process that started it ends, however it ends.

It is given that process's id and the exporter's own options. It imports nothing of optwrap, and so no JAX.
"""

import os
import runpy
import signal
import sys
import threading
import time


def end_with(parent: int) -> None:
    """Ask this process to end once it has another parent: its own has ended, perhaps by SIGKILL."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=end_with, args=[int(sys.argv.pop(1))], daemon=True).start()
    runpy.run_module("optwrap_exporter", run_name="__main__", alter_sys=True)
