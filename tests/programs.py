"""Finds programs that tests run."""

import os
import shutil
import sys
from pathlib import Path


def located(name: str) -> str | None:
    """The path of a program beside this interpreter, where set-up puts some, or else on PATH; None if there is none."""
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
