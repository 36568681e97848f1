"""Deletes a file at the end of its use, unless another process has put its own in its place."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def own_file(path: Path) -> Iterator[None]:
    """Delete the file at `path` after the block if it is still the same file.

    Raises:
      OSError: there is no such file.
    """
    born = _identity(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if _identity(path) == born:
                path.unlink()


def _identity(path: Path) -> tuple[int, int, int]:
    """Device, inode and time of the last write: a file system gives the inode of a deleted file to the next one."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_mtime_ns
